"""Data made on the user's machine: no download, the same rows for the same seed, a few seconds to make.

load("text") is for pretraining; load("instructions"), load("preferences") and load("prompts") are three views of one
small world of checkable instructions, for SFT, reward models and RL; its gold scorer is recipes.embedded.instructions.
load("topics"), load("summaries"), load("questions") and load("tags") are tasks that Python's own documentation poses, of
which load("docstrings") mixes three; load("translations") and the two that begin with "second-language" are of a second
language made from English.
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
    "instructions": (
        "instructions",
        "instructions",
        "prompts with demonstrations, right in less than half of the cases",
    ),
    "preferences": ("instructions", "preferences", "pairs of answers, the better one chosen in 90% of them"),
    "prompts": ("instructions", "prompts", "prompts alone, for RL against a reward model or the gold scorer"),
    "topics": ("docstrings", "topics", "docstrings, and which of 13 topics their module is about: classification"),
    "packages": ("docstrings", "packages", "docstrings, and a word for the package each is of: classification"),
    "kinds": ("docstrings", "kinds", "docstrings, and whether a class, function or method has each: classification"),
    "results": ("docstrings", "results", "docstrings, and whether the function returns a value: classification"),
    "docstrings": ("docstrings", "tasks", "topics, packages and kinds together: many tasks at once, by their names"),
    "summaries": ("docstrings", "summaries", "docstrings without their first line, and that line: summarisation"),
    "questions": ("docstrings", "questions", "questions whose answers stand in docstrings: extractive answering"),
    "tags": ("code_in_prose", "tags", "sentences about code, and which of their words are code: tagging"),
    "translations": ("second_language", "translations", "English sentences in a second language: translation"),
    "translations-into-english": ("second_language", "into_english", "the same sentences, to be put into English"),
    "second-language": ("second_language", "documents", "text in a second language, English with other words"),
    "second-language-topics": ("second_language", "topics", "topics in the second language: zero-shot transfer"),
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
