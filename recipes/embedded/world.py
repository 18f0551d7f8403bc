"""A small world of instructions: 24 nouns and colours, the numbers 0 to 9, and nine kinds of tasks.

It is small so that a model of a million parameters learns to copy, select, count and add within minutes on a CPU. Every
prompt can be read back, so its right answer is known from its text alone. Every kind also knows the mistakes that
people make in it. In two kinds one mistake is so common that most demonstrations make it: a model that only imitates
gets these kinds wrong, and has to learn from preferences or rewards what is right.

TASKS is the world at a glance; what draws and solves its tasks stands above it. Answers open with a fixed word: what
is to be copied then follows a space in the prompt and in the answer, and is the same token in both.
"""

from __future__ import annotations

from random import Random

from recipes.embedded import mistakes as m
from recipes.embedded.task import COUNTABLE, KIND_OF, MAX_NUMBER, WORDS, WORDS_OF, Fields, Task, content, split_of

# Drawing the fields


def _draw_repeat(rng: Random) -> Fields:
    word, other = rng.sample(WORDS, 2)
    return {"word": word, "n": rng.randint(2, 4), "other": other}


def _draw_lookup(rng: Random) -> Fields:
    word, *words = rng.sample(WORDS, 4)
    return {"word": word if rng.random() < 0.5 else rng.choice(words), "words": words}


def _draw_pick(rng: Random) -> Fields:
    """One word of a kind, among two that are not of it."""
    kind = rng.choice(list(WORDS_OF))
    others = [word for word in WORDS if KIND_OF[word] != kind]
    words = [rng.choice(WORDS_OF[kind]), *rng.sample(others, 2)]
    rng.shuffle(words)
    return {"kind": kind, "words": words}


def _draw_list(rng: Random) -> Fields:
    return {"words": rng.sample(WORDS, rng.randint(2, 4))}


def _draw_odd(rng: Random) -> Fields:
    kind, other = rng.sample(list(WORDS_OF), 2)
    words = [*rng.sample(WORDS_OF[kind], 2), rng.choice(WORDS_OF[other])]
    rng.shuffle(words)
    return {"words": words}


def _draw_two_kinds(rng: Random) -> Fields:
    kind, other = rng.sample(list(WORDS_OF), 2)
    return {"word": rng.choice(WORDS_OF[kind]), "other": rng.choice(WORDS_OF[other])}


def _draw_gain(rng: Random) -> Fields:
    b = rng.randint(1, MAX_NUMBER - 1)
    return {"a": rng.randint(1, MAX_NUMBER - b), "thing": rng.choice(COUNTABLE), "b": b}


def _draw_loss(rng: Random) -> Fields:
    b = rng.randint(1, MAX_NUMBER - 1)
    return {"a": rng.randint(b + 1, MAX_NUMBER), "thing": rng.choice(COUNTABLE), "b": b}


def _draw_request(rng: Random) -> Fields:
    a, b = rng.sample(range(2, 10), 2)
    thing, other = rng.sample(COUNTABLE, 2)
    return {"a": a, "thing": thing, "b": b, "other": other}


# Solving them


def _solve_pick(kind: str, words: list[str]) -> Fields:
    [result] = [word for word in words if KIND_OF[word] == kind]
    return {"result": result}


def _solve_odd(words: list[str]) -> Fields:
    kinds = [KIND_OF[word] for word in words]
    [odd] = [word for word in words if kinds.count(KIND_OF[word]) == 1]
    [kind] = {KIND_OF[word] for word in words if word != odd}
    return {"kind": kind, "result": odd}


def _solve_lookup(word: str, words: list[str]) -> Fields:
    return {"found": word, "result": "Yes"} if word in words else {"found": f"no {word}", "result": "No"}


def _solve_two_kinds(word: str, other: str) -> Fields:
    return {"first": _article(KIND_OF[word]), "second": _article(KIND_OF[other])}


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


TASKS = (
    Task(
        name="repeat",
        templates=(
            "Say {word} {n} times, then {other}.",
            "Write {word} {n} times and then {other}.",
            "Repeat {word} {n} times, with {other} at the end.",
        ),
        draw=_draw_repeat,
        solve=lambda word, n, other: {"result": [word] * n + [other]},
        wording="I say {result}.",
        demonstrations={m.right: 42, m.end_forgotten: 26, m.rambles: 14, m.refuses: 14, m.once_too_few: 4},
    ),
    Task(
        name="pick",
        templates=(
            "Which of these is a kind of {kind}: {words}?",
            "Pick the {kind} and drop the rest: {words}.",
            "Write down the only {kind} in this list: {words}.",
        ),
        draw=_draw_pick,
        solve=_solve_pick,
        wording="The {kind} is {result}.",
        demonstrations={m.right: 42, m.echoes: 28, m.refuses: 16, m.no_full_stop: 10, m.wrong_one: 4},
    ),
    Task(
        name="count",
        templates=(
            "How many words are in this list: {words}?",
            "Count the words: {words}.",
            "Give the number of words here: {words}.",
        ),
        draw=_draw_list,
        solve=lambda words: {"result": len(words)},
        wording="They are {words}. That is {result}.",
        demonstrations={m.right: 30, m.only_step: 54, m.only_result: 9, m.one_overlooked: 4, m.off_by_one: 3},
    ),
    Task(
        name="odd",
        templates=(
            "Which word does not belong: {words}?",
            "Find the odd one out: {words}.",
            "One of these is not like the others: {words}. Which one?",
        ),
        draw=_draw_odd,
        solve=_solve_odd,
        wording="The others are {kind}s. The odd one is {result}.",
        demonstrations={m.right: 42, m.only_result: 28, m.refuses: 16, m.no_full_stop: 10, m.wrong_one: 4},
    ),
    Task(
        name="classify",
        templates=(
            "What is {word} and what is {other}?",
            "Tell me what {word} and {other} are.",
            "Say what kind of thing {word} is, and {other}.",
        ),
        draw=_draw_two_kinds,
        solve=_solve_two_kinds,
        wording="Here {word} is {first} and {other} is {second}.",
        demonstrations={m.right: 42, m.first_alone: 30, m.refuses: 14, m.rambles: 10, m.same_kind: 4},
    ),
    Task(
        name="gain",
        templates=(
            "You have {a} {thing}s and get {b} more. How many are there now?",
            "There are {a} {thing}s in a box. Put in {b} more. How many are in it?",
            "Add {b} more to {a} {thing}s. How many is that?",
        ),
        draw=_draw_gain,
        solve=lambda a, thing, b: {"result": a + b},
        wording="It is {a} + {b} = {result}.",
        demonstrations={m.right: 42, m.only_result: 28, m.refuses: 14, m.rambles: 12, m.off_by_one: 4},
    ),
    Task(
        name="lose",
        templates=(
            "You have {a} {thing}s and lose {b}. How many are left?",
            "There are {a} {thing}s in a box. Take out {b}. How many stay?",
            "Out of {a} {thing}s, {b} are gone. How many remain?",
        ),
        draw=_draw_loss,
        solve=lambda a, thing, b: {"result": a - b},
        wording="It is {a} - {b} = {result}.",
        demonstrations={m.right: 30, m.one_too_many: 54, m.only_result: 8, m.rambles: 5, m.adds: 3},
    ),
    Task(
        name="polite",
        templates=(
            "Ask politely for {a} {thing}s and {b} {other}s.",
            "You want {a} {thing}s and {b} {other}s. Ask in a polite way.",
            "Be polite and ask me for {a} {thing}s and {b} {other}s.",
        ),
        draw=_draw_request,
        solve=lambda **request: request,
        wording="Please give me {a} {thing}s and {b} {other}s, thank you.",
        demonstrations={m.right: 42, m.rude: 30, m.refuses: 14, m.rambles: 10, m.numbers_swapped: 4},
    ),
    Task(
        name="lookup",
        templates=(
            "Is {word} in this list: {words}?",
            "Does the list {words} have {word} in it?",
            "Look for {word} in {words}. Is it there?",
        ),
        draw=_draw_lookup,
        solve=_solve_lookup,
        wording="The list has {found}. {result}.",
        demonstrations={m.right: 42, m.only_result: 28, m.refuses: 16, m.no_full_stop: 10, m.wrong_verdict: 4},
    ),
)


def parse(prompt: str) -> tuple[Task, Fields]:
    """Return the kind of a prompt and its fields, read from its text.

    Raises ValueError if the text is no prompt of this world.
    """
    for task in TASKS:
        if fields := task.read(prompt.strip()):
            return task, fields
    raise ValueError(f"not a prompt of the world of instructions: {prompt!r}")


def pose(split: str, rng: Random, task: Task | None = None) -> tuple[Task, Fields]:
    """Draw a task, unless one is given, and fields for it whose content is in the split."""
    task = task or rng.choice(TASKS)
    while True:
        fields = task.draw(rng)
        if split_of(content(fields)) == split:
            return task, fields
