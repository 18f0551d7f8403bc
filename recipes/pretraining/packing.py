"""Documents packed into rows of one length, so that no position is padding and no document sees another."""

import math

import numpy as np
import torch

from recipes.core import UserError
from recipes.pretraining.corpus import Tokens
from recipes.pretraining.drawn_rows import DrawnRows

GOLDEN = (
    math.sqrt(5) - 1
) / 2  # its multiples, less their whole parts, lie far from each other however many there are


class PackedDataset(DrawnRows):
    """Rows of `length` tokens cut from all documents joined, each document ended by EOS.

    An item holds `input_ids`, `position_ids` and `labels`, each [length], int64. Positions start anew after each EOS,
    from which transformers derives attention that stays inside a document. The first token of a document has no label
    (-100): nothing before it belongs to it, so the loss is that of the documents fed one by one. A document that is
    cut goes on in the next row as if it began there.

    Args:
        dynamic: in each epoch after the first the rows are cut at other places, so that no text is always cut alike.

    Raises:
        UserError: the documents do not fill one row.
    """

    def __init__(self, tokens: Tokens, length: int, eos_token_id: int, dynamic: bool = True):
        super().__init__(dynamic=dynamic)
        self.ids, self.length, self.eos_token_id = tokens.ids, length, eos_token_id
        if len(self) == 0:
            raise UserError(f"max_length: the {len(self.ids)} tokens of a split do not fill one row of {length}")

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        if row >= len(self):
            raise IndexError(row)  # by which iteration ends
        _, epoch, _ = self.draw(row)
        begin = row * self.length + int(epoch * GOLDEN % 1 * self.length)
        begin = min(begin, len(self.ids) - self.length)  # of the last row
        tokens = self.ids[begin : begin + self.length].astype(np.int64)
        positions = np.arange(self.length)
        for end in np.flatnonzero(tokens[:-1] == self.eos_token_id):
            positions[end + 1 :] -= positions[end + 1]
        tokens, positions = torch.from_numpy(tokens), torch.from_numpy(positions)
        return {"input_ids": tokens, "position_ids": positions, "labels": tokens.masked_fill(positions == 0, -100)}


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of packed rows, [rows, length]; without positions where no document ends inside a row.

    Positions that merely count up are every model's default, and without them attention needs no mask.
    """
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if batch["position_ids"][:, -1].eq(batch["position_ids"].shape[1] - 1).all():
        del batch["position_ids"]
    return batch
