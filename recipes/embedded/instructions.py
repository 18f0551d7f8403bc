"""Instructions whose answers can be checked: the gold scorer, imperfect demonstrations, and noisy preferences.

The gold scorer reads nothing but the prompt and the answer. score = substance x brevity x form, with

    substance   how much of the right items it has, in order: (1 - edits / longer length) squared. Where the answer has
                to show a step, 0.7 x that of the result + 0.3 x that of the step; and a result that follows a step
                counts only as far as the step is right.
    brevity     1 up to half as many tokens again as the right answer has, then 1.5 x its tokens / the answer's:
                saying everything does not pay.
    form        1, less 0.1 if it does not end with one full stop, less 0.2 if its wording is not as wanted.

Items are the world's words, the numbers, + and -, "Yes", "No", "no", "Please" and "thank"; wording is all else. Where
a step is wanted, the result is what follows the last "=" or stands in the last sentence, and the step precedes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from random import Random
from typing import Any

from recipes.embedded import mistakes as m
from recipes.embedded.task import KIND_OF, MAX_NUMBER, WORDS, WORDS_OF, Fields, Task, content, split_of
from recipes.embedded.world import TASKS, parse, pose

SIZES = {
    "instructions": {"train": 24_000, "test": 500},
    "preferences": {"train": 32_000, "test": 1_000},
    "prompts": {"train": 8_000, "test": 500},
}
LABEL_NOISE = 0.05  # share of preferences that name the worse answer
MAX_CHARACTERS = 1_000  # a longer answer scores 0 unread

_ITEM = rf"\b(?:{'|'.join(WORDS)}|\d+)(?=s?\b)"
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ITEMS = {item + ending for item in (*KIND_OF, *WORDS_OF) for ending in ("", "s")}
_ITEMS |= {"Yes", "No", "no", "Please", "thank", "+", "-"}


# The gold scorer


def gold_score(prompt: str, answer: str) -> float:
    """Return how good an answer is, from 0 to 1; only the right answer in the wanted form scores 1.

    Raises ValueError if the prompt is not from the world of instructions. Any text will do as the answer.
    """
    return _score(*parse(prompt), answer)


def gold_reward(prompts: list, completions: list, **kwargs: Any) -> list[float]:
    """Return the gold score of each completion: a reward function for TRL, for plain or conversational rows.

    The prompt of a conversation is its last user message, the answer is the last message of the completion.

    Raises ValueError if a prompt is not from the world of instructions.
    """
    return [
        gold_score(_last(prompt, "user"), _last(completion, "assistant"))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _last(messages: str | list[dict[str, str]], role: str) -> str:
    if isinstance(messages, str):
        return messages
    return next((message["content"] for message in reversed(messages) if message["role"] == role), "")


def _score(task: Task, fields: Fields, answer: str) -> float:
    if len(answer) > MAX_CHARACTERS:
        return 0.0
    wanted, given = (_TOKEN.findall(text) for text in (task.answer(fields), answer))
    if task.has_step:
        (wanted_step, wanted_result), (step, result) = _step_and_result(wanted), _step_and_result(given)
        step_likeness = _likeness(wanted_step, step or result)  # an answer in one piece may be either
        substance = 0.7 * _likeness(wanted_result, result) * (step_likeness if step else 1) + 0.3 * step_likeness
    else:
        substance = _likeness(_items(wanted), _items(given))
    brevity = min(1, 1.5 * len(wanted) / max(len(given), 1))
    form = 1 - 0.1 * (given[-1:] != ["."] or given[-2:] == [".", "."]) - 0.2 * (_frame(wanted) != _frame(given))
    return round(substance * brevity * form, 6)


def _items(tokens: list[str]) -> list[str]:
    return [token for token in tokens if token in _ITEMS or token.isdecimal()]


def _step_and_result(tokens: list[str]) -> tuple[list[str], list[str]]:
    """Return the items before and in the last piece that has any, pieces being divided by full stops and =."""
    pieces = [[]]
    for token in tokens:
        if token in (".", "="):
            pieces.append([])
        pieces[-1].append(token)
    pieces = [items for items in map(_items, pieces) if items] or [[]]
    *step, result = pieces
    return list(chain(*step)), result


def _likeness(wanted: list[str], given: list[str]) -> float:
    """Return (1 - edits / longer length)^2, an edit being one item put in, left out or replaced by another."""
    edits = list(range(len(given) + 1))
    for i, item in enumerate(wanted, start=1):
        diagonal, edits[0] = edits[0], i
        for j, other in enumerate(given, start=1):
            diagonal, edits[j] = edits[j], min(edits[j] + 1, edits[j - 1] + 1, diagonal + (item != other))
    return (1 - edits[-1] / max(len(wanted), len(given))) ** 2


def _frame(tokens: list[str]) -> str:
    """Return the wording without its items, lists of any length being one, and without the final full stop."""
    frame = " ".join("_" if token in _ITEMS or token.isdecimal() else token for token in tokens)
    return re.sub(r"_( , _)+", "_", frame).removesuffix(" .")


# Demonstrations


def demonstrate(prompt: str, rng: Random) -> str:
    """Return an answer to the prompt as people would give it: right about two times in five.

    Raises ValueError if the prompt is not from the world of instructions.
    """
    return _demonstrate(*parse(prompt), rng)


def _demonstrate(task: Task, fields: Fields, rng: Random) -> str:
    [way] = rng.choices(list(task.demonstrations), list(task.demonstrations.values()))
    return way(task, fields, rng)


# Answers that no one would give, so that a reward model learns to see through them


def _plausible(task: Task, fields: Fields, rng: Random) -> str:
    return rng.choice(list(task.demonstrations))(task, fields, rng)


def _stranger(task: Task, fields: Fields, rng: Random) -> str:
    """The right answer to another prompt, of the same split."""
    other, its_fields = pose(split_of(content(fields)), rng)
    return other.answer(its_fields)


def _runs_on(task: Task, fields: Fields, rng: Random) -> str:
    return f"{_plausible(task, fields, rng)} {_stranger(task, fields, rng)}"


def _doubled(task: Task, fields: Fields, rng: Random) -> str:
    return " ".join([_plausible(task, fields, rng)] * rng.randint(2, 3))


def _hedged(task: Task, fields: Fields, rng: Random) -> str:
    return " ".join(way(task, fields, rng) for way in rng.sample(list(task.demonstrations), 2))


def _truncated(task: Task, fields: Fields, rng: Random) -> str:
    words = _plausible(task, fields, rng).split()
    return " ".join(words[: rng.randrange(len(words))])


def _stutters(task: Task, fields: Fields, rng: Random) -> str:
    words = _plausible(task, fields, rng).split()
    i = rng.randrange(len(words))
    return " ".join(words[:i] + [words[i]] * rng.randint(2, 6) + words[i + 1 :])


def _shuffled(task: Task, fields: Fields, rng: Random) -> str:
    words = _plausible(task, fields, rng).split()
    rng.shuffle(words)
    return " ".join(words)


def _wrong_items(task: Task, fields: Fields, rng: Random) -> str:
    """A well-formed answer about other things."""

    def replace(match: re.Match) -> str:
        if rng.random() < 0.5:
            return match[0]
        return str(rng.randint(0, MAX_NUMBER)) if match[0].isdigit() else rng.choice(WORDS)

    return re.sub(_ITEM, replace, task.answer(fields))


def _gibberish(task: Task, fields: Fields, rng: Random) -> str:
    return " ".join(rng.choices(WORDS + _SCRAPS, k=rng.randint(1, 15))) + rng.choice(("", "."))


def _fragment(task: Task, fields: Fields, rng: Random) -> str:
    return rng.choice(_SCRAPS)


_SCRAPS = ["", ".", "Yes.", "No.", "It is", "That is", "The", "thank you.", "Please", "0.", "1 2 3", ", ,"]
_CORRUPTIONS = (
    _stranger,
    _runs_on,
    _doubled,
    _hedged,
    _truncated,
    _stutters,
    _shuffled,
    _wrong_items,
    _gibberish,
    _fragment,
)


def _slip(task: Task, fields: Fields, rng: Random, answer: str) -> str:
    """The answer with one item wrong: another of the prompt's, one from anywhere, its neighbour again, or none."""
    found = list(re.finditer(_ITEM, answer))
    if not found:
        return answer
    at = rng.randrange(len(found))
    asked = re.findall(_ITEM, task.prompt(fields, rng))
    anything = str(rng.randint(0, MAX_NUMBER)) if found[at][0].isdigit() else rng.choice(WORDS)
    other = rng.choice((rng.choice(asked), anything, anything, found[at - 1][0], ""))
    return re.sub(r" +", " ", answer[: found[at].start()] + other + answer[found[at].end() :])


def _pair(task: Task, fields: Fields, rng: Random) -> tuple[str, str]:
    """Return two answers, the better one first.

    Three quarters hold the right answer. In half of the pairs one item differs, which is what a policy gets wrong when
    it samples: a reward model that never saw such pairs is fooled by them. The others are of answers that people give,
    or of one of these and a ruined one.
    """
    people = list(task.demonstrations)
    while True:
        first = task.answer(fields) if rng.random() < 0.75 else rng.choice(people)(task, fields, rng)
        pairs = (
            lambda: tuple(way(task, fields, rng) for way in rng.sample(people, 2)),
            lambda first=first: (first, rng.choice(people)(task, fields, rng)),
            lambda first=first: (first, _slip(task, fields, rng, first)),
            lambda first=first: (first, f"{first} {rng.choice(m.ASIDES)}"),
            lambda first=first: (first, rng.choice(_CORRUPTIONS)(task, fields, rng)),
        )
        answers = rng.choices(pairs, (5, 30, 50, 5, 10))[0]()
        scores = [_score(task, fields, answer) for answer in answers]
        if scores[0] != scores[1]:
            return answers if scores[0] > scores[1] else answers[::-1]


# The datasets


def instructions(seed: int = 0) -> dict[str, list[dict]]:
    """Return `prompt`, `completion` (both conversational) and `task` of every row, for SFT."""
    return _splits("instructions", seed, _demonstration_row)


def preferences(seed: int = 0) -> dict[str, list[dict]]:
    """Return `prompt`, `chosen`, `rejected` (all conversational) and `flipped` of every row, for reward models or DPO.

    The chosen answer has the higher gold score, unless the label is `flipped`, as a share LABEL_NOISE of them is at
    random in both splits: 1 - LABEL_NOISE is the ceiling of the accuracy on the test split.
    """
    return _splits("preferences", seed, _preference_row)


def prompts(seed: int = 0) -> dict[str, list[dict]]:
    """Return `prompt` (conversational) and `task` of every row, for RL."""
    return _splits("prompts", seed, lambda task, fields, rng: {"task": task.name})


def _demonstration_row(task: Task, fields: Fields, rng: Random) -> dict:
    return {"completion": _says("assistant", _demonstrate(task, fields, rng)), "task": task.name}


def _preference_row(task: Task, fields: Fields, rng: Random) -> dict:
    better, worse = (_says("assistant", answer) for answer in _pair(task, fields, rng))
    flipped = rng.random() < LABEL_NOISE
    chosen, rejected = (worse, better) if flipped else (better, worse)
    return {"chosen": chosen, "rejected": rejected, "flipped": flipped}


def _says(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _splits(name: str, seed: int, row: Callable[[Task, Fields, Random], dict]) -> dict[str, list[dict]]:
    """Return the rows of each split: every kind of task equally often, no prompt twice in the test split."""
    splits = {}
    for split, size in SIZES[name].items():
        rng = Random(f"{seed}-{split}-{name}")
        rows, seen = [], set()
        while len(rows) < size:
            task, fields = pose(split, rng, TASKS[len(rows) % len(TASKS)])
            prompt = task.prompt(fields, rng)
            if split == "train" or prompt not in seen:
                rows.append({"prompt": _says("user", prompt)} | row(task, fields, rng))
                seen.add(prompt)
        splits[split] = rows
        rng.shuffle(splits[split])
    return splits
