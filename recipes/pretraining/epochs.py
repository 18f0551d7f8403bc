"""Which epoch it is, for datasets whose noise or masks change from epoch to epoch."""

from typing import Any

import torch
from transformers import TrainerCallback


class CountEpochs(TrainerCallback):
    """Tells a dataset which epoch begins, on a resume too: `dataset.epoch`, made by `epoch_counter`.

    accelerate calls `set_epoch` of datasets in runs of one process only.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.epoch.fill_(int(state.epoch or 0))


def epoch_counter() -> torch.Tensor:
    """[1], zero, in memory that dataloader workers share, also those that outlive an epoch."""
    return torch.zeros(1, dtype=torch.int64).share_memory_()
