"""A few rows of each label, and soft prompts that are carried from one task to another.

Paper: Vu et al. 2021, SPoT, arXiv 2110.07904, section 2.
"""

import random
from pathlib import Path

import torch
from datasets import DatasetDict
from peft import PeftModel
from peft.utils import load_peft_weights
from torch import Tensor

from recipes.core import UserError
from recipes.core.weights import whole_weights


def few_shots(task: DatasetDict, shots: int, seed: int) -> DatasetDict:
    """The task with `shots` training rows of each label, drawn by the seed; the test split whole.

    Raises:
        UserError: a label has fewer rows.
    """
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(task["train"]["label"]):
        rows_of.setdefault(label, []).append(row)
    poor = {label: len(rows) for label, rows in rows_of.items() if len(rows) < shots}
    if poor:
        label = min(poor, key=poor.get)
        raise UserError(f"shots: the label '{label}' has {poor[label]} rows in the training split, not {shots}")
    numbers = random.Random(seed)
    chosen = [row for label in sorted(rows_of) for row in numbers.sample(rows_of[label], shots)]
    return DatasetDict(task) | {"train": task["train"].select(sorted(chosen))}


def load_prompt(folder: Path) -> Tensor:
    """The soft prompt that a run left, [virtual tokens, hidden]."""
    return load_peft_weights(str(folder), "cpu")["prompt_embeddings"]


@torch.no_grad()
def start_from(model: PeftModel, prompt: Tensor) -> None:
    """Put a prompt in the place of the one that the model began with.

    Raises:
        UserError: the two differ in length or width.
    """
    weight = model.prompt_encoder[model.active_adapter].embedding.weight
    with whole_weights(model.prompt_encoder):
        if weight.shape != prompt.shape:
            raise UserError(f"a prompt of {list(prompt.shape)} cannot start one of {list(weight.shape)}")
        weight.copy_(prompt)
