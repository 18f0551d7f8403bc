"""T5's mixture of tasks in one text-to-text form: a prefix names the task, and rates say how often each comes.

Paper: Raffel et al. 2020, T5, arXiv 1910.10683, sections 2.4 and 3.5.2: examples-proportional mixing with an artificial
       limit on a task's size, r_m = min(e_m, K) / Σ min(e_n, K), and temperature-scaled mixing, r_m^(1/T), renormalised.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recipes.pretraining.drawn_rows import DrawnRows
from recipes.pretraining.spans import IGNORED, shift_right


def mixing_rates(sizes: Sequence[int], limit: float, temperature: float) -> np.ndarray:
    """How often an example is of each task, [tasks].

    Args:
        sizes: examples of each task.
        limit: K, at which a task's size is taken to end.
        temperature: T; 1 is proportional to the (limited) sizes, infinity is equal for all.
    """
    rates = np.minimum(np.asarray(sizes, dtype=np.float64), limit)
    rates = (rates / rates.sum()) ** (1 / temperature)
    return rates / rates.sum()


class Mixture(DrawnRows):
    """Examples of several tasks, each drawn anew in each epoch: first its task by the rates, then one of the task's.

    Which, depends on the seed, the epoch and the item's number alone. An epoch is as long as all examples together,
    those beyond a task's limit left out.

    Args:
        encoded: by task, its examples as pairs of token ids: input and target.
    """

    def __init__(
        self, encoded: dict[str, list[tuple[list[int], list[int]]]], limit: int, temperature: float, seed: int
    ):
        super().__init__()
        self.tasks, self.seed = list(encoded.values()), seed
        sizes = [len(task) for task in self.tasks]
        self.rates = mixing_rates(sizes, limit, temperature)
        self.length = sum(min(size, limit) for size in sizes)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[list[int], list[int]]:
        numbers = np.random.default_rng((self.seed, int(self.epoch), number))
        task = self.tasks[numbers.choice(len(self.tasks), p=self.rates)]
        return task[numbers.integers(len(task))]


def with_prefix(task: str, prompt: str) -> str:
    """The input of an example: the name of its task, a colon, the text (section 2.4)."""
    return f"{task}: {prompt}"


def encode_tasks(
    rows: Any, tokenizer: PreTrainedTokenizerBase, max_source_length: int, max_target_length: int
) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Rows of `task`, `prompt` and `completion` as pairs of token ids by task, each cut to its length and ended by EOS."""
    columns = (
        ([with_prefix(*pair) for pair in zip(rows["task"], rows["prompt"])], max_source_length),
        (list(rows["completion"]), max_target_length),
    )
    ends = [tokenizer.eos_token_id]
    inputs, targets = (
        [ids[: length - 1] + ends for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        for texts, length in columns
    )
    tasks: dict[str, list[tuple[list[int], list[int]]]] = {}
    for task, *pair in zip(rows["task"], inputs, targets):
        tasks.setdefault(task, []).append(tuple(pair))
    return tasks


class PairCollator:
    """Pairs of token ids → `input_ids` with `attention_mask`, `decoder_input_ids` and `labels`, padded on the right."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.pad = tokenizer.pad_token_id

    def __call__(self, pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        inputs, targets = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(ids) for ids in column], batch_first=True, padding_value=filler
            )
            for column, filler in zip(zip(*pairs), (self.pad, IGNORED))
        )
        return {
            "input_ids": inputs,
            "attention_mask": (inputs != self.pad).long(),
            "decoder_input_ids": shift_right(targets, self.pad),
            "labels": targets,
        }
