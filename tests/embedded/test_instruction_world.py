"""The world of instructions: its prompts can be read back, and its right answers are right."""

import re
from random import Random

import pytest

from recipes.embedded import mistakes as m
from recipes.embedded.instructions import demonstrate, gold_score, instructions
from recipes.embedded.task import KIND_OF, MAX_NUMBER, WORDS_OF, content, split_of
from recipes.embedded.world import TASKS, parse, pose

SYSTEMATIC = {
    "count": m.only_step,
    "lose": m.one_too_many,
}
BY_HAND = [
    ("Say plum 3 times, then dog.", "I say plum, plum, plum, dog."),
    ("Pick the fruit and drop the rest: cat, plum, saw.", "The fruit is plum."),
    ("How many words are in this list: cat, plum, dog?", "They are cat, plum, dog. That is 3."),
    ("Find the odd one out: cat, plum, dog.", "The others are animals. The odd one is plum."),
    ("What is plum and what is cat?", "Here plum is a fruit and cat is an animal."),
    ("Add 3 more to 4 plums. How many is that?", "It is 4 + 3 = 7."),
    ("Out of 9 plums, 3 are gone. How many remain?", "It is 9 - 3 = 6."),
    ("Ask politely for 4 plums and 2 saws.", "Please give me 4 plums and 2 saws, thank you."),
    ("Is dog in this list: cat, dog, red?", "The list has dog. Yes."),
    ("Look for cow in cat, dog, red. Is it there?", "The list has no cow. No."),
]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def drawn(task, number, seed="drawn"):
    """Random fields of a kind of task, from both splits."""
    rng = Random(f"{seed}-{task.name}")
    return [pose(("train", "test")[i % 2], rng, task)[1] for i in range(number)]


def test_there_are_enough_kinds():
    assert len({task.name for task in TASKS}) == len(TASKS) >= 8
    assert sum(task.has_step for task in TASKS) >= 3
    assert all(3 <= len(set(task.templates)) <= 5 for task in TASKS)
    assert len(KIND_OF) == sum(map(len, WORDS_OF.values())) == 24


@pytest.mark.parametrize(("prompt", "answer"), BY_HAND)
def test_answers_worked_out_by_hand(prompt, answer):
    assert gold_score(prompt, answer) == 1


def test_every_kind_was_worked_out_by_hand():
    assert {parse(prompt)[0].name for prompt, _ in BY_HAND} == {task.name for task in TASKS}


@every_task
def test_prompts_are_read_back_in_every_wording(task):
    for fields in drawn(task, 100):
        for template in task.templates:
            prompt = task.prompt(fields, OneOf(template))
            assert parse(prompt) == (task, fields)
            assert [other.name for other in TASKS if other.read(prompt)] == [task.name]
            assert len(prompt.split()) <= 25


class OneOf:
    """Chooses the template it is given."""

    def __init__(self, template):
        self.choice = lambda templates: templates[templates.index(template)]


@every_task
def test_right_answers_score_1_and_mistakes_less(task):
    rng = Random(0)
    for fields in drawn(task, 300):
        prompt = task.prompt(fields, rng)
        for way in task.demonstrations:
            answer = way(task, fields, rng)
            score = gold_score(prompt, answer)
            assert (score == 1) == (way is m.right), (prompt, answer, score)
            assert len(answer.split()) <= 18


@every_task
def test_the_numbers_stay_in_the_world(task):
    rng = Random(0)
    for fields in drawn(task, 300):
        numbers = map(int, re.findall(r"\d+", task.prompt(fields, rng) + task.answer(fields)))
        assert all(0 <= number <= MAX_NUMBER for number in numbers)


def test_wordings_name_none_of_the_words():
    wordings = " ".join(text for task in TASKS for text in (*task.templates, task.wording))
    words = re.findall("[a-z]+", re.sub(r"\{\w+\}", "", wordings.lower()))
    assert "list" in words
    assert set(words).isdisjoint(KIND_OF)
    assert set(WORDS_OF).isdisjoint(KIND_OF)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "How are you?",
        "Count the words: foo, bar.",
        "Count the words: cat, dog, red, saw. Then sing.",
        "Find the odd one out: cat, dog.",
        "Pick the animal and drop the rest: plum, saw, red.",
        "Find the odd one out: cat, dog, plum, pear.",
        "Out of 99 plums, 3 are gone. How many remain?",
    ],
)
def test_other_prompts_are_an_error(prompt):
    with pytest.raises(ValueError):
        gold_score(prompt, "cat.")


def test_content_is_what_a_prompt_is_about_whatever_it_asks():
    asked = ["Pick the animal and drop the rest: cat, plum, red.", "Count the words: red, cat, plum."]
    assert {content(parse(prompt)[1]) for prompt in asked} == {frozenset({"cat", "plum", "red"})}


def test_one_content_in_ten_is_for_the_test():
    rng = Random(0)
    splits = [split_of(frozenset(rng.sample(list(KIND_OF), 4))) for _ in range(10_000)]
    assert abs(splits.count("test") / 10_000 - 0.1) < 4 * 0.003  # four standard deviations


# Demonstrations


def share_of(way, rows):
    asked = [(*parse(row["prompt"][0]["content"]), row["completion"][0]["content"]) for row in rows]
    return sum(answer == way(task, fields, None) for task, fields, answer in asked) / len(rows)


@pytest.fixture(scope="module")
def demonstrations():
    return instructions()["train"]


def test_demonstrations_are_fair_but_imperfect(demonstrations):
    scores = [gold_score(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in demonstrations]
    assert 0.5 < sum(scores) / len(scores) < 0.72


@every_task
def test_every_kind_is_shown_right_often_enough(task, demonstrations):
    assert sum(task.demonstrations.values()) == 100
    rows = [row for row in demonstrations if row["task"] == task.name]
    assert abs(len(rows) - len(demonstrations) / len(TASKS)) <= 1
    assert 0.25 < share_of(m.right, rows) < 0.6


@pytest.mark.parametrize("name", SYSTEMATIC)
def test_the_common_misconception_is_what_most_people_say(name, demonstrations):
    assert share_of(SYSTEMATIC[name], [row for row in demonstrations if row["task"] == name]) > 0.5


def test_elsewhere_people_are_most_often_right(demonstrations):
    for task in TASKS:
        most_often = max(task.demonstrations, key=task.demonstrations.get)
        assert most_often is SYSTEMATIC.get(task.name, m.right)


def test_demonstrate_reads_the_prompt_and_draws_from_the_generator():
    prompt = BY_HAND[0][0]
    answers = [demonstrate(prompt, Random(seed)) for seed in range(300)]
    assert answers == [demonstrate(prompt, Random(seed)) for seed in range(300)]
    assert 0.25 < answers.count(BY_HAND[0][1]) / 300 < 0.6
    assert len(set(answers)) > 4
    with pytest.raises(ValueError):
        demonstrate("How are you?", Random(0))
