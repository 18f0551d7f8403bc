"""What a kind of task is in the world of instructions: its words, its prompts, and how a prompt is read back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

Fields = dict[str, Any]  # what fills a template: {"kind": "animal", "words": ["cat", "plum", "dog"]}

# Each line is a kind and its words. None of them occurs in a template; those in COUNTABLE take a plain s.
VOCABULARY = """
animal cat cow dog pig
fruit apple lemon pear plum
colour blue green red white
tool axe hammer saw spade
vehicle bike car train truck
instrument bell drum flute harp
"""
WORDS_OF = {kind: words for kind, *words in map(str.split, VOCABULARY.split("\n")[1:-1])}
KIND_OF = {word: kind for kind, words in WORDS_OF.items() for word in words}
WORDS = list(KIND_OF)
COUNTABLE = [word for kind in ("animal", "fruit", "tool", "vehicle", "instrument") for word in WORDS_OF[kind]]
MAX_NUMBER = 9

TEST_SHARE = 0.1


# What a prompt is about, and how that decides its split


def content(fields: Fields) -> frozenset[str]:
    """Return the words and numbers that a prompt is about, whatever it asks about them."""
    items = set()
    for name, value in fields.items():
        if name != "kind":
            items.update(map(str, value if isinstance(value, list) else [value]))
    return frozenset(items)


def split_of(items: frozenset[str]) -> str:
    """Return "train" or "test", the one split in which prompts about these items occur, with any seed."""
    digest = hashlib.sha256(" ".join(sorted(items)).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_SHARE * 2**64 else "train"


# A kind of task, and reading its prompts back

_WORD, _NUMBER = f"(?:{'|'.join(WORDS)})", "[0-9]"
_PATTERNS = {
    "words": f"{_WORD}(?:, {_WORD})+",
    "kind": "|".join(WORDS_OF),
    **dict.fromkeys(("word", "other", "thing"), _WORD),
    **dict.fromkeys(("n", "a", "b"), _NUMBER),
}


@dataclass(frozen=True)
class Task:
    """One kind of task.

    `draw` makes the fields of a prompt, `solve` turns them into the slots of the right answer's `wording`, and
    `demonstrations` says how people answer: functions from mistakes.py, each with its share in percent.
    """

    name: str
    templates: tuple[str, ...]
    draw: Callable[[Random], Fields]
    solve: Callable[..., Fields]
    wording: str
    demonstrations: dict[Callable[[Task, Fields, Random], str], int]

    @property
    def has_step(self) -> bool:
        """Whether the right answer shows a step before its result."""
        return "." in self.wording[:-1] or "=" in self.wording

    def slots(self, fields: Fields) -> Fields:
        """Return what the wording of the right answer is filled with."""
        return fields | self.solve(**fields)

    def answer(self, fields: Fields, **changes: Any) -> str:
        """Return the right answer, or, with changes to some of its slots, a wrong one."""
        return _fill(self.wording, self.slots(fields) | changes)

    def prompt(self, fields: Fields, rng: Random) -> str:
        """Return the fields in one of the wordings of this kind of prompt."""
        return _fill(rng.choice(self.templates), fields)

    def read(self, prompt: str) -> Fields | None:
        """Return the fields of a prompt of this kind, None for any other text."""
        for form in self._forms:
            if match := form.fullmatch(prompt):
                return {name: _value(name, text) for name, text in match.groupdict().items()}
        return None

    @cached_property
    def _forms(self) -> list[re.Pattern]:
        group = r"\\{(\w+)\\}"
        return [
            re.compile(re.sub(group, lambda match: f"(?P<{match[1]}>{_PATTERNS[match[1]]})", re.escape(template)))
            for template in self.templates
        ]


def _fill(wording: str, slots: Fields) -> str:
    lists = {name: ", ".join(map(str, value)) for name, value in slots.items() if isinstance(value, list)}
    return wording.format(**slots | lists)


def _value(name: str, text: str) -> Any:
    if name == "words":
        return text.split(", ")
    return int(text) if text.isdigit() else text
