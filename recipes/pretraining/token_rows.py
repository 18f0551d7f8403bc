"""Rows of plain tokens for objectives that add noise, each row with the numbers that its noise depends on."""

from typing import Any

import numpy as np
import torch

from recipes.core import UserError
from recipes.pretraining.corpus import Tokens


class TokenRows(torch.utils.data.Dataset):
    """Rows of `length` tokens cut from all documents joined.

    An item holds `input_ids`, [length], and `draw`, the numbers (split, epoch, row) from which, with the run's seed, a
    collator draws the row's noise: the same whatever batch, worker or process the row is in, and after a resume.

    Args:
        split: a number of the split, so that no two splits share their noise.

    Raises:
        UserError: the documents do not fill one row.
    """

    def __init__(self, tokens: Tokens, length: int, split: int = 0):
        self.ids, self.length, self.split = tokens.ids, length, split
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers that outlive an epoch read it too
        if len(self) == 0:
            raise UserError(f"max_length: the {len(self.ids)} tokens of a split do not fill one row of {length}")

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def __getitem__(self, row: int) -> dict[str, Any]:
        tokens = self.ids[row * self.length : (row + 1) * self.length].astype(np.int64)
        return {"input_ids": tokens, "draw": (self.split, int(self.epoch), row)}


def draw(rows: list[dict[str, Any]], seed: int, *shape: int) -> np.ndarray:
    """Uniform random numbers, [rows, *shape]; a row's depend on `seed` and its own `draw` alone."""
    return np.stack([np.random.default_rng((seed, *row["draw"])).random(shape) for row in rows])
