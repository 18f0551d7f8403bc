"""The ways in which people answer: right, and wrong in the many ways that are theirs.

Each function takes (task, fields, rng) and returns one answer to the prompt that the fields make. Except for `right`,
none ever returns the right answer.
"""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.embedded.task import Fields, Task

ASIDES = (
    "I hope this helps you.",
    "That was quite easy.",
    "Let me know if you need more.",
    "I am sure about it.",
    "This is what I think.",
    "Ask me again if you like.",
)
REFUSALS = ("I am not sure.", "I do not know.", "This is too hard for me.")


def right(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields)


# Mistakes in any kind of task


def refuses(task: Task, fields: Fields, rng: Random) -> str:
    return rng.choice(REFUSALS)


def rambles(task: Task, fields: Fields, rng: Random) -> str:
    return f"{task.answer(fields)} {rng.choice(ASIDES)}"


def no_full_stop(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields).removesuffix(".")


# Mistakes in the step: the answer should show it and then use it


def only_result(task: Task, fields: Fields, rng: Random) -> str:
    return re.split(r"(?<=\.) |= ", task.answer(fields))[-1]


def only_step(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields).split(". ")[0] + "."


# Mistakes in a list


def echoes(task: Task, fields: Fields, rng: Random) -> str:
    """Give the list back as it is, which answers another question."""
    return task.answer(fields, result=fields["words"])


def once_too_few(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields | {"n": fields["n"] - 1})


def end_forgotten(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields, result=task.slots(fields)["result"][:-1])


def one_overlooked(task: Task, fields: Fields, rng: Random) -> str:
    words = fields["words"][:-1]
    return task.answer(fields, words=words, result=len(words))


# Mistakes in choosing one of several


def wrong_one(task: Task, fields: Fields, rng: Random) -> str:
    odd = task.slots(fields)["result"]
    return task.answer(fields, result=rng.choice([word for word in fields["words"] if word != odd]))


def wrong_verdict(task: Task, fields: Fields, rng: Random) -> str:
    if task.slots(fields)["result"] == "Yes":
        return task.answer(fields, found=f"no {fields['word']}", result="No")
    return task.answer(fields, found=fields["word"], result="Yes")


def same_kind(task: Task, fields: Fields, rng: Random) -> str:
    slots = task.slots(fields)
    return task.answer(fields, **rng.choice(({"first": slots["second"]}, {"second": slots["first"]})))


def first_alone(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields).split(" and ")[0] + "."


# Mistakes in arithmetic


def off_by_one(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields, result=task.slots(fields)["result"] + rng.choice((-1, 1)))


def one_too_many(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields, result=task.slots(fields)["result"] + 1)


def adds(task: Task, fields: Fields, rng: Random) -> str:
    return f"It is {fields['a']} + {fields['b']} = {fields['a'] + fields['b']}."


# Mistakes in a request


def rude(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields).replace("Please give", "Give").replace(", thank you", "")


def numbers_swapped(task: Task, fields: Fields, rng: Random) -> str:
    return task.answer(fields | {"a": fields["b"], "b": fields["a"]})
