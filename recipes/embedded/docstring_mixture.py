"""Two tasks over the same docstrings of the standard library, told apart by nothing but the task's name."""

import re
from collections import Counter

from recipes.embedded.text import documents

MODULES = 12  # the most frequent ones; the others have few docstrings each
MAX_CHARACTERS = 80
WORDS = 3
_CODE = ("def ", "async def ", "class ", "@")


def docstring_tasks(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows (`task`, `prompt`, `completion`) of the splits `train` and `test`.

    A prompt is how a docstring begins. Task `module` asks for the module it is from, `first words` for its first words
    in lower case; every prompt is asked both.
    """
    splits = documents(seed)
    described = {split: list(filter(None, map(_described, rows))) for split, rows in splits.items()}
    frequent = {module for module, _ in Counter(module for module, _ in described["train"]).most_common(MODULES)}
    return {
        split: [
            {"task": task, "prompt": text, "completion": answer}
            for module, text in rows
            if module in frequent
            for task, answer in (("module", module), ("first words", _first_words(text)))
        ]
        for split, rows in described.items()
    }


def _described(row: dict[str, str]) -> tuple[str, str] | None:
    """Module and beginning of a docstring; None for code, for the manual and for a docstring without three words."""
    if not row["source"].endswith(".py") or row["text"].startswith(_CODE):
        return None
    text = " ".join(row["text"].split())
    if len(text) > MAX_CHARACTERS:
        text = text[: MAX_CHARACTERS + 1].rpartition(" ")[0]
    if len(re.findall(r"\w+", text)) < WORDS:
        return None
    return row["source"].partition("/")[0].removesuffix(".py").lstrip("_"), text


def _first_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text)[:WORDS]).lower()
