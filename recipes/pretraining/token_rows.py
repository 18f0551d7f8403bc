"""Rows of plain tokens for objectives that add noise, each row with the numbers that its noise depends on."""

from typing import Any

import numpy as np

from recipes.core import UserError
from recipes.pretraining.corpus import Tokens
from recipes.pretraining.drawn_rows import DrawnRows


class TokenRows(DrawnRows):
    """Rows of `length` tokens cut from all documents joined.

    An item holds `input_ids`, [length], and `draw`, the numbers (split, epoch, row) from which, with the run's seed, a
    collator draws the row's noise: the same whatever batch, worker or process the row is in, and after a resume.

    Args:
        split: see `DrawnRows`.

    Raises:
        UserError: the documents do not fill one row.
    """

    def __init__(self, tokens: Tokens, length: int, split: int = 0):
        super().__init__(split)
        self.ids, self.length = tokens.ids, length
        if len(self) == 0:
            raise UserError(f"max_length: the {len(self.ids)} tokens of a split do not fill one row of {length}")

    def __len__(self) -> int:
        return len(self.ids) // self.length

    def __getitem__(self, row: int) -> dict[str, Any]:
        tokens = self.ids[row * self.length : (row + 1) * self.length].astype(np.int64)
        return {"input_ids": tokens, "draw": self.draw(row)}


def draw(rows: list[dict[str, Any]], seed: int, *shape: int) -> np.ndarray:
    """Uniform random numbers, [rows, *shape]; a row's depend on `seed` and its own `draw` alone."""
    return np.stack([np.random.default_rng((seed, *row["draw"])).random(shape) for row in rows])
