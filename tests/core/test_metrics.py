"""Each metric on an example that is worked out by hand, loaded as `evaluate` loads it, without a network."""

import evaluate
import pytest

from recipes.core.metrics import FOLDER, load

# Three labels, two right of four. Per label: 0 has precision 1/2, recall 1; 1 recall 0; 2 precision 1, recall 1/2.
LABELS = {"predictions": [0, 0, 2, 1], "references": [0, 1, 2, 2]}
TAGS = {
    "predictions": [["B-A", "I-A", "O"], ["B-A", "O", "B-B"]],
    "references": [["B-A", "I-A", "O"], ["B-A", "I-A", "B-B"]],
}
ANSWERS = {"predictions": ["The Eiffel tower!", "a red house", ""], "references": [["eiffel tower"], ["house"], ["x"]]}
TEXTS = {"predictions": ["the cat sat", "a dog"], "references": ["the cat sat", "one dog ran"]}


def test_accuracy():
    assert load("accuracy").compute(**LABELS) == {"accuracy": 0.5}


@pytest.mark.parametrize(("average", "expected"), [("macro", (2 / 3 + 0 + 2 / 3) / 3), ("micro", 0.5)])
def test_f1(average, expected):
    assert load("f1").compute(**LABELS, average=average)["f1"] == pytest.approx(expected)


def test_entities_count_when_both_ends_are_right():
    """Two of three entities are found and two of three predicted ones are right; five of six tags are."""
    assert load("seqeval").compute(**TAGS) == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "accuracy": 5 / 6}
    )


def test_answers():
    """Right but for case, article and stop; one word of two (F1 2/3); nothing."""
    assert load("squad").compute(**ANSWERS) == pytest.approx({"exact_match": 100 / 3, "f1": 100 * (1 + 2 / 3) / 3})


def test_of_several_accepted_answers_the_nearest_counts():
    found = load("squad").compute(predictions=["in 1990"], references=[["1980", "1990"]])
    assert found == pytest.approx({"exact_match": 0, "f1": 100 * 2 / 3})


def test_rouge():
    """The second summary has one of its two words right, of three: F1 = 2 * 1 / (2 + 3)."""
    found = load("rouge").compute(**TEXTS)
    assert found["rouge1"] == found["rougeL"] == pytest.approx((1 + 2 / 5) / 2)
    assert found["rouge2"] == pytest.approx((1 + 0) / 2)


def test_bleu():
    assert load("sacrebleu").compute(predictions=["one two three four"], references=["one two three four"])[
        "score"
    ] == pytest.approx(100)
    found = load("sacrebleu").compute(predictions=["a b c d e"], references=["a b c d f"])
    # Precisions 4/5, 3/4, 2/3, 1/2; no brevity penalty: 100 * (1/5) ** (1/4).
    assert found["score"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert "tok:13a" in found["signature"]


def test_chrf():
    assert load("chrf").compute(predictions=["abcdef"], references=["abcdef"])["score"] == pytest.approx(100)
    assert load("chrf").compute(predictions=["abc"], references=["xyz"])["score"] == 0


def test_every_folder_is_a_module_that_says_what_it_takes():
    names = sorted(path.name for path in FOLDER.iterdir() if (path / f"{path.name}.py").exists())
    assert names == ["accuracy", "chrf", "f1", "rouge", "sacrebleu", "seqeval", "squad"]
    for name in names:
        module = evaluate.load(str(FOLDER / name))
        assert module.name == name
        assert set(module.features) == {"predictions", "references"}
        assert module.inputs_description
