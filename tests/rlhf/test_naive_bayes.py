"""The judge: probabilities by hand and in fractions, the same after JSON, as a reward, and as a recipe."""

import json
import math
from fractions import Fraction
from random import Random

import pytest

from recipes.core import UserError
from recipes.rlhf import naive_bayes
from recipes.rlhf.rewards import load_reward

TEXTS = ["Good film", "good GOOD fun", "bad film"]
LABELS = ["positive", "positive", "negative"]
WORDS = ["good", "bad", "film", "isn't", "fun", "dull", "plot", "!", "never", "cliché"]


@pytest.fixture(scope="module")
def corpus():
    """Texts of 0 to 12 words and labels that lean on two of the words."""
    rng = Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(13))) for _ in range(400)]
    labels = ["positive" if rng.random() < 0.3 + 0.3 * ("good" in text) else "negative" for text in texts]
    return texts, labels


@pytest.fixture
def folder(tmp_path):
    """A run's folder with a judge in it."""
    (tmp_path / naive_bayes.FILE).write_text(naive_bayes.fit(TEXTS, LABELS, "positive").to_json(), encoding="utf-8")
    return tmp_path


def test_features():
    assert naive_bayes.features("It isn't good, GOOD!", 1) == {"it", "isn't", "good", "!"}
    assert naive_bayes.features("not a good\nfilm", 2) == {"not", "a", "good", "film", "not a", "a good", "good film"}
    assert naive_bayes.features("8/10 for Amélie's 'look'", 1) == {"for", "amélie's", "look"}
    assert naive_bayes.features("...", 3) == set()


def test_hand_worked_example():
    model = naive_bayes.fit(TEXTS, LABELS, "positive", ngrams=1)
    # Texts with good, film, fun, bad: 2, 1, 1, 0 of the positive, 0, 1, 0, 1 of the negative; one is added to each.
    positive = {"good": 3 / 8, "film": 2 / 8, "fun": 2 / 8, "bad": 1 / 8}
    negative = {"good": 1 / 6, "film": 2 / 6, "fun": 1 / 6, "bad": 2 / 6}
    assert model.prior == pytest.approx(math.log(2))
    assert model.weights == pytest.approx({word: math.log(positive[word] / negative[word]) for word in positive})
    # 2/1 · (3/8)/(1/6) · (2/8)/(2/6) = 27/8, and 27/(27 + 8)
    assert model.probability("a good, good film") == pytest.approx(27 / 35)
    assert model.probability("") == model.probability("something else") == pytest.approx(2 / 3)


@pytest.mark.parametrize("ngrams", [1, 2, 3])
@pytest.mark.parametrize("min_count", [1, 4])
def test_equals_bayes_rule_in_fractions(corpus, ngrams, min_count):
    texts, labels = corpus
    model = naive_bayes.fit(texts[:300], labels[:300], "positive", ngrams, min_count)

    def runs(text):
        words = text.split()
        return {tuple(words[i:j]) for i in range(len(words)) for j in range(i + 1, min(i + ngrams, len(words)) + 1)}

    seen = [(runs(text), label) for text, label in zip(texts[:300], labels)]
    known = {run for some, _ in seen for run in some if sum(run in other for other, _ in seen) >= min_count}
    assert set(model.weights) == {" ".join(run) for run in known}
    joint = {}
    for label in ("positive", "negative"):
        count = {run: sum(run in some for some, its in seen if its == label) + 1 for run in known}
        total, prior = sum(count.values()), Fraction(labels[:300].count(label), 300)
        joint[label] = [
            prior * math.prod(Fraction(count[run], total) for run in runs(text) & known) for text in texts[300:]
        ]
    expected = [float(p / (p + n)) for p, n in zip(joint["positive"], joint["negative"])]
    assert [model.probability(text) for text in texts[300:]] == pytest.approx(expected)


def test_min_count_counts_texts_of_both_labels():
    model = naive_bayes.fit(TEXTS, LABELS, "positive", ngrams=1, min_count=2)
    assert set(model.weights) == {"good", "film"}


def test_swapped_labels_give_the_other_probability(corpus):
    model = naive_bayes.fit(*corpus, "positive")
    mirrored = naive_bayes.fit(*corpus, "negative")
    for text in corpus[0][:50]:
        assert model.probability(text) + mirrored.probability(text) == pytest.approx(1)


def test_extreme_odds_stay_within_bounds():
    model = naive_bayes.NaiveBayes("positive", "negative", 1, 0.0, {"good": 2000.0, "bad": -2000.0})
    assert [model.probability(text) for text in ("good", "bad", "good and bad")] == [1.0, 0.0, 0.5]


def test_json_round_trip(tmp_path, corpus):
    model = naive_bayes.fit(*corpus, "positive", ngrams=3)
    (tmp_path / "model.json").write_text(model.to_json(), encoding="utf-8")
    assert naive_bayes.load(tmp_path / "model.json") == model
    assert model.to_json() == naive_bayes.fit(*corpus, "positive", ngrams=3).to_json()


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"positive": "a", "wei'])
def test_damaged_file(tmp_path, content):
    if content is not None:
        (tmp_path / naive_bayes.FILE).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="holds no naive Bayes model"):
        naive_bayes.as_reward(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b", "a"], "'positive' and one other; it has a, b"),
        (["positive"] * 3, "it has positive"),
        (["positive", "negative", "neutral"], "it has negative, neutral, positive"),
    ],
)
def test_wrong_labels(labels, message):
    with pytest.raises(UserError, match=message):
        naive_bayes.fit(TEXTS, labels, "positive")


def test_nothing_to_learn_from():
    with pytest.raises(UserError, match="lower 'min_count'"):
        naive_bayes.fit(TEXTS, LABELS, "positive", min_count=4)


# --------------------------------------------------------------------------------------------------------- as a reward
def test_reward_reads_prompt_and_completion(folder):
    model, reward = naive_bayes.load(folder / naive_bayes.FILE), load_reward(str(folder))
    assert (reward.name, reward.tokenizer) == ("judge", None)
    scores = reward.func(
        prompts=["good", "good", "bad fil", "this film"],
        completions=[" film", "film", "m", ", is fun"],
        completion_ids=[[1]] * 4,
        label=["positive"] * 4,
    )
    texts = ["good film", "good film", "bad fil m", "this film, is fun"]
    assert scores == [model.probability(text) for text in texts]
    assert all(type(score) is float and 0 < score < 1 for score in scores)


def test_reward_reads_the_answer_of_a_conversation(folder):
    model, judge = naive_bayes.load(folder / naive_bayes.FILE), naive_bayes.as_reward(folder)
    prompt = [{"role": "user", "content": "say something bad"}]
    answer = [{"role": "assistant", "content": "good fun"}]
    assert judge([prompt], [answer]) == [model.probability("good fun")]


def test_reward_of_a_judge_that_was_not_made():
    with pytest.raises(UserError, match="python -m recipes run rlhf/judge/reviews"):
        load_reward("some/where/rlhf/judge/reviews")


# --------------------------------------------------------------------------------------------------------- as a recipe
@pytest.fixture
def judge(tmp_path, main):
    """Trains a judge on rows of text and label: `judge(train, test, *arguments)`; returns the folder of its run."""

    def train(train, test, *arguments):
        data, output_dir = tmp_path / "data", tmp_path / "run"
        data.mkdir(exist_ok=True)
        for split, rows in {"train": train, "test": test}.items():
            lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
            (data / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "judge.yaml").write_text(f"dataset_name: {data}\n", encoding="utf-8")
        config = ["--config", str(tmp_path / "judge.yaml"), "--output_dir", str(output_dir)]
        main("rlhf/judge")([*config, *arguments])
        return output_dir

    return train


TRAIN = [("good film", "positive"), ("good fun", "positive"), ("bad film", "negative"), ("bad plot", "negative")]


def test_recipe_measures_and_saves(judge):
    test = [("good", "positive"), ("a bad one", "negative"), ("bad, bad", "positive"), ("film", "negative")]
    folder = judge(TRAIN, [*test, ("bad", "negative")], "--min_count", "1")
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"]["accuracy"] == 4 / 5  # "film" is a tie, which goes to negative
    assert result["baselines"]["accuracy"] == 3 / 5
    model = naive_bayes.load(folder / naive_bayes.FILE)
    assert result["metrics"]["features"] == len(model.weights)
    scores = [model.probability("good"), model.probability("bad, bad")]
    assert result["metrics"]["score_of_positive_texts"] == pytest.approx(sum(scores) / 2)
    assert load_reward(str(folder)).func(["good"], [" fun"]) == [model.probability("good fun")]


def test_recipe_with_labels_that_are_numbers(judge):
    folder = judge(
        [(text, int(label == "positive")) for text, label in TRAIN], [("good", 1), ("bad", 0)], "--positive_label", "1"
    )
    assert naive_bayes.load(folder / naive_bayes.FILE).positive == "1"


def test_recipe_without_a_test_split(judge):
    folder = judge(TRAIN, TRAIN, "--dataset_test_split", "null")
    assert set(json.loads((folder / "result.json").read_text())["metrics"]) == {"features", "training_texts"}


@pytest.mark.parametrize(
    ("train", "test", "arguments", "message"),
    [
        (TRAIN, [("good", "neutral")], [], "test row 1, column 'label': 'neutral' is not a label"),
        (TRAIN, [("good", "positive")], [], "the test split must have texts of both labels"),
        (TRAIN, [("good", "positive"), ("bad", None)], [], "test row 2, column 'label': is empty"),
        ([*TRAIN, (" ", "positive")], TRAIN, [], "train row 5, column 'text': is empty"),
        (TRAIN[:2], TRAIN, [], "it has positive"),
        (TRAIN, TRAIN, ["--positive_label", "pos"], "must have 'pos' and one other; it has negative, positive"),
        (TRAIN, TRAIN, ["--ngrams", "0"], "'ngrams' must be at least 1, not 0"),
        (TRAIN, TRAIN, ["--min_count", "0"], "'min_count' must be at least 1, not 0"),
    ],
)
def test_recipe_with_a_mistake(judge, tmp_path, capsys, train, test, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        judge(train, test, *arguments)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
