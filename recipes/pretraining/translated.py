"""Pairs of a foreign source and its translation: rows, batches, what a model writes, and how it is scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer

from recipes.core import UserError, metrics
from recipes.core.catalog import check_source
from recipes.pretraining.masking import IGNORED, pad

FOLDER = "source_tokenizer"  # inside the output folder of stage 1
KEY = "source_tokenizer_name_or_path"
SHOWN = 20


def load_source_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The source language's tokenizer: of a folder or the Hub, or the one that stage 1 left in its model's folder.

    Raises:
        UserError: there is none, or it has no token for padding.
    """
    inside = Path(path) / FOLDER
    path = str(inside) if inside.is_dir() else path
    check_source(path, KEY)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # each backend raises its own kind
        raise UserError(f"{KEY}: no tokenizer could be opened at {path}: {error}") from None
    if tokenizer.pad_token is None:
        raise UserError(f"{KEY}: the tokenizer of {path} has no pad_token")
    return tokenizer


class PairDataset(torch.utils.data.Dataset):
    """Items `input_ids`, the source in its own vocabulary, and `labels`, the target in BART's, with special tokens."""

    def __init__(
        self, pairs: Dataset, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, max_length: int
    ):
        self.pairs, self.max_length = pairs, max_length
        limit = {"truncation": True, "max_length": max_length}
        self.sources = source(list(pairs["source"]), **limit)["input_ids"]
        written = target(list(pairs["target"]), add_special_tokens=False, verbose=False)["input_ids"]
        self.targets = [[target.bos_token_id, *ids[: max_length - 2], target.eos_token_id] for ids in written]

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray([len(source) + len(target) for source, target in zip(self.sources, self.targets)])

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return {"input_ids": self.sources[row], "labels": self.targets[row]}

    def page(self, texts: Sequence[str]) -> str:
        """Markdown: the first sources, their translations, and what a model wrote."""
        lines = ["| source | translation | written |", "| --- | --- | --- |"]
        for source, target, text in list(zip(self.pairs["source"], self.pairs["target"], texts))[:SHOWN]:
            cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in (source, target, text))
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


class PairCollator:
    """Rows → a padded batch of `input_ids`, `attention_mask`, `decoder_input_ids` and `labels`."""

    def __init__(self, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, start_id: int):
        self.source_pad, self.target_pad, self.start_id = source.pad_token_id, target.pad_token_id, start_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        sources, targets = [row["input_ids"] for row in rows], [row["labels"] for row in rows]
        batch = {
            "input_ids": pad(sources, self.source_pad),
            "attention_mask": pad([[1] * len(row) for row in sources], 0),
            "decoder_input_ids": pad([[self.start_id, *row[:-1]] for row in targets], self.target_pad),
            "labels": pad(targets, IGNORED),
        }
        return {name: torch.from_numpy(values) for name, values in batch.items()}


@torch.no_grad()
def translate(trainer: Trainer, rows: PairDataset) -> list[str]:
    """What the model writes for each source, greedily; sources alike in length share a batch."""
    model, tokenizer, size = trainer.model.eval(), trainer.processing_class, trainer.args.per_device_eval_batch_size
    order = np.argsort([len(source) for source in rows.sources], kind="stable")
    texts = [""] * len(rows)
    for begin in range(0, len(order), size):
        chosen = order[begin : begin + size].tolist()
        batch = trainer.data_collator([rows[row] for row in chosen])
        written = model.generate(
            batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=rows.max_length,
            do_sample=False,
            num_beams=1,
        )
        for row, text in zip(chosen, tokenizer.batch_decode(written, skip_special_tokens=True)):
            texts[row] = text.strip()
    return texts


def score(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """chrF and BLEU of sacrebleu, each from 0 to 100."""
    return {
        name: metrics.load(kind).compute(predictions=list(texts), references=list(references))["score"]
        for name, kind in (("chrf", "chrf"), ("bleu", "sacrebleu"))
    }
