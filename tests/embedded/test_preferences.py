"""The preferences: the better answer is chosen but for the noise, and most pairs are hard to tell apart."""

from collections import Counter
from random import Random

import pytest

from recipes.embedded.instructions import LABEL_NOISE, gold_score, preferences
from recipes.embedded.world import TASKS, parse


@pytest.fixture(scope="module")
def pairs():
    """(prompt, chosen, rejected, flipped) of each row, by split."""
    return {
        split: [
            (*(row[key][0]["content"] for key in ("prompt", "chosen", "rejected")), row["flipped"]) for row in rows
        ]
        for split, rows in preferences().items()
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_flipped_says_which_labels_are_wrong(pairs, split):
    for prompt, chosen, rejected, flipped in pairs[split]:
        better, worse = (rejected, chosen) if flipped else (chosen, rejected)
        assert gold_score(prompt, better) > gold_score(prompt, worse)


@pytest.mark.parametrize("split", ["train", "test"])
def test_label_noise(pairs, split):
    flipped = [row[-1] for row in pairs[split]]
    deviation = (LABEL_NOISE * (1 - LABEL_NOISE) / len(flipped)) ** 0.5
    assert abs(sum(flipped) / len(flipped) - LABEL_NOISE) < 4 * deviation


def test_many_pairs_are_of_answers_that_people_give(pairs):
    rng = Random(0)
    plausible = 0
    for prompt, *answers, _ in pairs["train"][:1000]:
        task, fields = parse(prompt)
        said = {way(task, fields, rng) for way in task.demonstrations for _ in range(30)}
        plausible += said.issuperset(answers)
    assert plausible / 1000 > 0.4


def test_answers_are_varied(pairs):
    answers = Counter(answer for _, *answers, _ in pairs["train"] for answer in answers)
    assert "" in answers
    assert len(answers) > 10_000
    assert max(len(answer.split()) for answer in answers) > 25
    assert len({parse(prompt)[0].name for prompt, *_ in pairs["test"]}) == len(TASKS)


@pytest.mark.parametrize(
    "look",
    [len, lambda answer: -len(answer), lambda answer: answer.endswith("."), lambda answer: -len(answer.split())],
    ids=["longer", "shorter", "full stop", "fewer words"],
)
def test_looks_alone_do_not_tell_the_better_answer(pairs, look):
    """A reward model that does not read the prompt for content stays far below the ceiling of 1 - LABEL_NOISE."""
    wins = [
        (look(chosen) > look(rejected)) + (look(chosen) == look(rejected)) / 2
        for _, chosen, rejected, _ in pairs["test"]
    ]
    assert sum(wins) / len(wins) < 0.7
