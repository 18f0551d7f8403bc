"""Batches of rows of similar length, so that little of a batch is padding; the same ones after a resume."""

from collections.abc import Iterator

import numpy as np
import torch
from transformers import Trainer

POOL = 50  # batches' worth of random rows that are sorted together


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Indices of rows, those of one optimizer step next to each other and alike in length, the steps in random order.

    The order depends on the seed and the epoch alone. transformers' sampler for `group_by_length` draws from the global
    generator, whose state in the middle of an epoch is not that of its beginning, and goes from long to short.

    Args:
        lengths: tokens of each row.
        batch_size: rows of an optimizer step, over all processes and micro-batches.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        numbers = np.random.default_rng((self.seed, self.epoch))
        order = numbers.permutation(len(self.lengths))
        steps = []
        for begin in range(0, len(order), POOL * self.batch_size):
            pool = order[begin : begin + POOL * self.batch_size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            steps += [pool[place : place + self.batch_size] for place in range(0, len(pool), self.batch_size)]
        last = [steps.pop()] if len(steps[-1]) < self.batch_size else []  # a step that is not full stays at the end
        steps = [steps[place] for place in numbers.permutation(len(steps))]
        return (int(row) for step in steps + last for row in step)


class LengthGroupedTrainer(Trainer):
    """Trainer whose `train_sampling_strategy: group_by_length` is LengthGroupedSampler; its dataset has `lengths`."""

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(self.train_dataset.lengths, rows, self.args.seed)

    def _get_eval_sampler(self, eval_dataset):
        # In the order of the dataset: Trainer would group held-out rows too, and read every one to learn its length.
        return torch.utils.data.SequentialSampler(eval_dataset)
