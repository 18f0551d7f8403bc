"""Rows with random choices that are made anew in each epoch, the same ones after a resume and in every worker."""

import numpy as np
import torch
from transformers import TrainerCallback


class DrawnRows(torch.utils.data.Dataset):
    """Rows of a split, each with the numbers from which, with a seed, its random choices are drawn.

    Args:
        split: a number of the split, so that no two splits share their random numbers.
        dynamic: the choices change from epoch to epoch; else a row has its own for ever.
    """

    def __init__(self, split: int = 0, dynamic: bool = True):
        self.split, self.dynamic = split, dynamic
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers that outlive an epoch read it too

    def draw(self, row: int) -> tuple[int, int, int]:
        """Split, epoch and row."""
        return self.split, int(self.epoch) if self.dynamic else 0, row


class RangeRows(DrawnRows):
    """Rows that are ranges of a corpus's tokens.

    Args:
        ranges: begin and end of each row, [rows, 2], or of each segment of a row, [rows, segments, 2].
    """

    def __init__(self, ranges: np.ndarray, split: int = 0, dynamic: bool = True):
        super().__init__(split, dynamic)
        self.ranges = ranges

    def __len__(self) -> int:
        return len(self.ranges)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, [rows], but for those that are put around its segments."""
        return np.diff(self.ranges).reshape(len(self.ranges), -1).sum(1)


class CountEpochs(TrainerCallback):
    """Tells rows which epoch begins. On a resume too; accelerate calls `set_epoch` in runs of one process only."""

    def __init__(self, rows: DrawnRows):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.epoch.fill_(int(state.epoch or 0))
