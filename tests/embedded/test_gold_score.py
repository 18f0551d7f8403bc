"""The gold scorer: partial credit is what the rubric says, no text makes it fail, and only right answers pay."""

from random import Random

import pytest

from recipes.embedded import mistakes as m
from recipes.embedded.instructions import gold_reward, gold_score
from recipes.embedded.task import WORDS
from recipes.embedded.world import TASKS, pose

LIST = "Say plum 3 times, then dog."
COUNT = "Count the words: cat, dog."
SUM = "Add 3 more to 4 plums. How many is that?"


@pytest.mark.parametrize(
    ("prompt", "answer", "score"),
    [
        (LIST, "I say plum, plum, plum, dog.", 1),
        (LIST, "  I say plum, plum, plum, dog.\n", 1),
        (LIST, "I say plum, plum, plum, dog", 0.9),
        (LIST, "plum, plum, plum, dog.", 0.8),
        (LIST, "I say plum plum plum dog.", 0.8),
        (LIST, "I say plum, plum, plum, dog..", 1 - 0.1 - 0.2),
        (LIST, "I say plum, plum, plum, dog. I hope this helps you.", 1.5 * 10 / 16 * 0.8),
        (LIST, "I say plum, plum, plum, dog. I say plum, plum, plum, dog.", 1.5 * 10 / 20 * 0.25 * 0.8),
        (LIST, "I say plum, plum, dog.", (3 / 4) ** 2),
        (LIST, "I say plum, plum, dog, plum.", (2 / 4) ** 2),
        (LIST, "I say plum, plum, plum, dog, cat.", (4 / 5) ** 2),
        (LIST, "I say dog, cat, cat, cat.", 0),
        (LIST, "I say Plum, Plum, Plum, Dog.", 0),
        (LIST, "I am not sure.", 0),
        (LIST, ".", 0),
        (LIST, "", 0),
        (COUNT, "They are cat, dog. That is 2.", 1),
        (COUNT, "That is 2.", 0.7 * 0.8),
        (COUNT, "They are cat, dog.", 0.3 * 0.8),
        (COUNT, "They are cat. That is 2.", 1 / 4),
        (COUNT, "They are cat, dog. That is 3.", 0.3),
        (COUNT, "They are plum. That is 2.", 0),
        (SUM, "It is 4 + 3 = 7.", 1),
        (SUM, "It is 4 + 3 = 8.", 0.3),
        (SUM, "It is 4 - 3 = 7.", (2 / 3) ** 2),
        (SUM, "7.", 0.7 * 0.8),
        (SUM, "The answer is 7.", 0.7 * 0.8),
    ],
)
def test_partial_credit(prompt, answer, score):
    assert gold_score(prompt, answer) == pytest.approx(score, abs=1e-6)


def sampled(number=20):
    """(prompt, right answer, kind of task) of random prompts of every kind."""
    rng = Random("sampled")
    for task in TASKS * number:
        _, fields = pose("test", rng, task)
        yield task.prompt(fields, rng), task.answer(fields), task.name


HACKS = {
    "all words": lambda prompt, right: ", ".join(WORDS) + ".",
    "all numbers": lambda prompt, right: ", ".join(map(str, range(21))) + ".",
    "many sums": lambda prompt, right: " ".join(f"That is {number}." for number in range(21)),
    "yes and no": lambda prompt, right: "Yes. No.",
    "please": lambda prompt, right: "Please, please, thank you, thank you.",
    "the prompt": lambda prompt, right: prompt,
    "the prompt, then the answer": lambda prompt, right: f"{prompt} {right}",
    "doubled": lambda prompt, right: f"{right} {right}",
    "thrice": lambda prompt, right: " ".join([right] * 3),
    "all words, then the answer": lambda prompt, right: f"{', '.join(WORDS)}. {right}",
    "a long story": lambda prompt, right: right + " I hope this helps you." * 4,
}


@pytest.mark.parametrize("hack", HACKS)
def test_saying_everything_does_not_pay(hack):
    scores = [gold_score(prompt, HACKS[hack](prompt, right)) for prompt, right, _ in sampled()]
    assert max(scores) < 0.5


def test_one_answer_for_all_prompts_does_not_pay():
    prompts = [prompt for prompt, _, _ in sampled()]
    for _, right, _ in sampled(5):
        assert sum(gold_score(prompt, right) for prompt in prompts) / len(prompts) < 0.1


def test_no_edit_of_the_right_answer_scores_1():
    rng = Random(0)
    for prompt, right, _ in sampled(50):
        words = right.split()
        i = rng.randrange(len(words))
        for edited in (words[:i] + words[i + 1 :], words[:i] + [rng.choice(WORDS)] + words[i:], [*words, "."]):
            assert gold_score(prompt, " ".join(edited)) < 1, (prompt, edited)


RIGHT_IN_CONTENT = {m.right, m.rambles, m.no_full_stop, m.only_result}


def test_a_right_answer_that_rambles_outranks_wrong_ones():
    rng = Random(0)
    for task in TASKS * 20:
        _, fields = pose("test", rng, task)
        prompt = task.prompt(fields, rng)
        wrong = [way(task, fields, rng) for way in task.demonstrations if way not in RIGHT_IN_CONTENT]
        rambling = gold_score(prompt, m.rambles(task, fields, rng))
        assert max(gold_score(prompt, answer) for answer in wrong) < rambling < 0.9


def test_each_right_item_adds_to_the_score():
    for prompt, right, task in sampled():
        if task == "repeat":
            items = right.removesuffix(".").split(", ")
            scores = [gold_score(prompt, ", ".join(items[:n]) + ".") for n in range(len(items) + 1)]
            assert scores == sorted(set(scores))


def test_any_text_is_scored():
    rng = Random(0)
    for prompt, right, _ in sampled(10):
        characters = [chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD800), 0x1F600, 0))) for _ in range(80)]
        for answer in ("".join(characters), right + "".join(characters), "=" * 99, "_ , _ , _.", "٣ ² 3.5 1e9", "\n"):
            assert 0 <= gold_score(prompt, answer) < 1
        assert gold_score(prompt, right * 100_000) == 0


def test_gold_reward_takes_strings_and_conversations():
    prompts = [LIST, COUNT]
    answers = ["I say plum, plum, plum, dog.", "That is 2."]
    scores = [gold_score(*both) for both in zip(prompts, answers)]
    assert gold_reward(prompts, answers) == scores

    chats = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}] for prompt in prompts]
    chats[0][1:1] = [{"role": "user", "content": COUNT}, {"role": "assistant", "content": "That is 2."}]
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    assert gold_reward(prompts=chats, completions=completions, trainer_state=None, task=["a", "b"]) == scores


def test_gold_reward_needs_a_prompt_of_this_world():
    with pytest.raises(ValueError):
        gold_reward([[{"role": "system", "content": LIST}]], ["plum, saw, red, cat."])
    with pytest.raises(ValueError):
        gold_reward([LIST, COUNT], ["plum, saw, red, cat."])
