"""Documents packed into rows of one length, so that no position is padding and no document sees another."""

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase


class PackedDataset(torch.utils.data.Dataset):
    """Rows of `length` tokens cut from all documents joined, each document ended by EOS.

    An item holds `input_ids`, `position_ids` and `labels`, each [length], int64. Positions start anew with each
    document, from which transformers derives attention that stays inside it. The first token of a document has no
    label (-100): nothing before it belongs to it, so the loss is that of the documents fed one by one.
    """

    def __init__(self, documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int):
        encoded = documents.map(
            lambda batch: {
                "input_ids": tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
            },
            batched=True,
            remove_columns=documents.column_names,
            desc="Tokenizing",
        )["input_ids"]
        self.length = length
        self.bytes = sum(len(text.encode()) for text in documents["text"])
        self.tokens = np.concatenate([np.asarray([*ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded])
        self.positions = np.concatenate([np.arange(len(ids) + 1, dtype=np.int32) for ids in encoded])

    def __len__(self) -> int:
        return len(self.tokens) // self.length

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        cut = slice(row * self.length, (row + 1) * self.length)
        tokens = torch.from_numpy(self.tokens[cut].astype(np.int64))
        positions = torch.from_numpy(self.positions[cut].astype(np.int64))
        first = torch.where(positions == 0)[0]
        # The row may begin inside a document; its positions then count from the row's start.
        end = int(first[0]) if len(first) else self.length
        positions[:end] -= positions[0].clone()
        return {"input_ids": tokens, "position_ids": positions, "labels": tokens.masked_fill(positions == 0, -100)}
