"""Data made on the user's machine: no download, the same rows for the same seed, a few seconds to make.

load("text") is for pretraining, load("docstrings") asks two questions about parts of it; load("instructions"),
load("preferences") and load("prompts") are three views of one small world of checkable instructions, for SFT, reward
models and RL; its gold scorer is recipes.embedded.instructions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict

# name -> (module, function that takes the seed and returns the rows of each split, description)
_DATASETS = {
    "text": ("text", "documents", "Python's own documentation, docstrings and functions: real English, real code"),
    "english": ("text", "english", "the English half of text: documentation and docstrings"),
    "code": ("text", "code", "the other half of text: functions of Python's library"),
    "docstrings": ("docstrings", "docstring_tasks", "docstrings, each asked for its module and for its first words"),
    "instructions": (
        "instructions",
        "instructions",
        "prompts with demonstrations, right in less than half of the cases",
    ),
    "preferences": ("instructions", "preferences", "pairs of answers, the better one chosen in 90% of them"),
    "prompts": ("instructions", "prompts", "prompts alone, for RL against a reward model or the gold scorer"),
}


def names() -> dict[str, str]:
    """Return the name and a one-line description of each embedded dataset."""
    return {name: description for name, (_, _, description) in _DATASETS.items()}


def load(name: str, seed: int = 0) -> DatasetDict:
    """Make the embedded dataset `name` and return its splits `train` and `test`.

    The seed says which rows are drawn and in what order; what may be in which split does not depend on it, so that a
    model trained with one seed can be tested with another.

    Raises ValueError if there is no such dataset.
    """
    if name not in _DATASETS:
        raise ValueError(f"no embedded dataset {name!r}; there are: {', '.join(_DATASETS)}")

    from datasets import Dataset, DatasetDict

    module, function, _ = _DATASETS[name]
    splits = getattr(import_module(f"{__name__}.{module}"), function)(seed)
    return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
