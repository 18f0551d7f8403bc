"""How rows are made of labels, words, questions and pairs, each against what is worked out by hand or by brute force."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import AutoTokenizer

from recipes.core.errors import UserError
from recipes.core.losses import mean_over_tokens
from recipes.finetuning import answer_spans, classification_data, few_shots, masked_text, text_pairs, word_tags
from recipes.finetuning.classification_gap import wording


@pytest.fixture(scope="module")
def tokenizer(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models / "encoder")


def splits(train: list[dict], test: list[dict] | None = None, features=None) -> DatasetDict:
    rows = {"train": train} | ({"test": test} if test else {})
    return DatasetDict({split: Dataset.from_list(each, features=features) for split, each in rows.items()})


# ----------------------------------------------------------------------------------------------------- classification
def texts(*labels) -> list[dict]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["b", "a", "b"], ["a", "b"]), ([10, 9, 10], ["9", "10"]), ([True, False], ["False", "True"])],
)
def test_labels_are_the_training_split_s_in_order(labels, expected):
    data = splits(texts(*labels), texts(labels[0]))
    assert classification_data.labels_of(data) == expected
    assert data["test"]["label"] == [str(labels[0])]


def test_labels_that_have_names_keep_their_order():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    data = splits(texts(1, 0, 1), features=features)
    assert classification_data.labels_of(data) == ["pos", "neg"]
    assert data["train"]["label"] == ["neg", "pos", "neg"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", "b"], ["c"], "label 'c' of the test split is not in the training split"),
        (["a", "a"], ["a"], "one label only"),
        ([0.5, 1.5], [0.5], "train row 1, column 'label': must be a word or a whole number, not 0.5"),
        (["a", None], ["a"], "train row 2, column 'label'"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(train, test, message):
    with pytest.raises(UserError, match=message):
        classification_data.labels_of(splits(texts(*train), texts(*test)))


def test_a_pair_is_cut_at_its_longer_text(tokenizer):
    data = Dataset.from_list([{"text": "one", "text_pair": "two three four five six", "label": "a"}])
    [row] = classification_data.encode(data, tokenizer, ["a"], max_length=7)
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[:3] == ["[CLS]", "one", "[SEP]"]
    assert len(row["input_ids"]) == 7
    assert row["labels"] == 0


def test_baselines_of_a_task_that_words_decide():
    train = [{"text": word, "label": label} for word, label in [("red", "x"), ("blue", "y"), ("red sea", "x")]]
    found = classification_data.baselines(
        splits(train, [{"text": "red", "label": "x"}, {"text": "blue", "label": "y"}])
    )
    assert found == {"accuracy": 0.5, "accuracy_naive_bayes": 1.0}


def test_a_verbaliser_has_a_word_for_each_label_and_no_other():
    assert list(wording({"b": "2", "a": "1"}, ["a", "b"]).items()) == [("a", "1"), ("b", "2")]
    assert wording(None, ["a", "b"]) == {"a": "a", "b": "b"}
    with pytest.raises(UserError, match="has no word for the label 'b'"):
        wording({"a": "1"}, ["a", "b"])
    with pytest.raises(UserError, match="no label 'c' in the training split"):
        wording({"a": "1", "b": "2", "c": "3"}, ["a", "b"])


# ------------------------------------------------------------------------------------------------------------- tagging
def test_a_word_s_tag_stands_at_its_first_piece(tokenizer):
    data = Dataset.from_list([{"words": ["say", "qqxx", "one"], "tags": ["O", "B-A", "B-B"]}])
    [row] = word_tags.encode(data, tokenizer, ["B-A", "B-B", "O"], max_length=32)
    pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])
    firsts = [index for index, piece in enumerate(pieces) if piece not in ("[CLS]", "[SEP]") and piece[:2] != "##"]
    assert len(pieces) > 5, "the second word falls into several pieces"
    assert [label for index, label in enumerate(row["labels"]) if index in firsts] == [2, 0, 1]
    assert all(label == -100 for index, label in enumerate(row["labels"]) if index not in firsts)


def test_words_of_a_byte_level_tokenizer_keep_the_blank_before_them(tiny):
    byte_level = AutoTokenizer.from_pretrained(tiny / "bart")
    data = Dataset.from_list([{"words": ["say", "one", "please"], "tags": ["O", "B-A", "O"]}])
    [row] = word_tags.encode(data, byte_level, ["B-A", "O"], max_length=32)
    assert row["input_ids"] == byte_level("say one please")["input_ids"]
    assert [label for label in row["labels"] if label != -100] == [1, 0, 1]


def test_words_beyond_the_length_are_left_out(tokenizer):
    data = Dataset.from_list([{"words": ["say", "one", "two"], "tags": ["O", "O", "O"]}])
    [row] = word_tags.encode(data, tokenizer, ["O"], max_length=4)
    assert [label for label in row["labels"] if label != -100] == [0, 0]


def test_the_loss_of_words_does_not_depend_on_micro_batches_or_on_a_prompt():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 3), torch.randint(0, 3, (4, 6))
    labels[0, 2:] = -100
    whole = mean_over_tokens({"logits": logits}, labels)
    expected = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100])
    torch.testing.assert_close(whole, expected)
    items = (labels != -100).sum()
    parts = [mean_over_tokens({"logits": logits[rows]}, labels[rows], items) for rows in ([0], [1, 2, 3])]
    torch.testing.assert_close(sum(parts), whole)
    prompted = torch.cat([torch.randn(4, 5, 3), logits], dim=1)
    torch.testing.assert_close(mean_over_tokens({"logits": prompted}, labels), whole)
    assert (word_tags.predicted_tags(prompted, labels) == logits.argmax(-1)).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"words": ["a", "b"], "tags": ["O"]}], "train row 1: 'words' and 'tags' must be lists of one length"),
        ([{"words": [], "tags": []}], "train row 1: 'words' and 'tags' must be lists of one length above 0"),
        ([{"words": ["a"], "tags": [None]}], "train row 1, column 'tags'"),
        ([{"words": ["a", "b"], "tags": [0, 3]}], "column 'tags': holds numbers without names"),
    ],
)
def test_rows_without_a_tag_for_each_word_are_refused(rows, message):
    with pytest.raises(UserError, match=message):
        word_tags.tags_of(splits(rows))


def test_tags_by_number_get_their_names():
    features = Features({"words": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X"]))})
    data = splits([{"words": ["a", "b"], "tags": [1, 0]}], features=features)
    assert word_tags.tags_of(data) == ["O", "B-X"]
    assert data["train"]["tags"] == [["B-X", "O"]]


def test_a_tag_of_test_alone_is_refused():
    rows = [{"words": ["a"], "tags": ["O"]}], [{"words": ["a"], "tags": ["B-X"]}]
    with pytest.raises(UserError, match="tag 'B-X' of the test split is not in the training split"):
        word_tags.tags_of(splits(*rows))


# --------------------------------------------------------------------------------------------------- question answering
def test_token_span_against_every_span_of_characters():
    """Tokens of "ab cd e": brute force over the tokens that hold any of the characters."""
    offsets = [(-1, -1), (0, 2), (3, 5), (6, 7), (-1, -1)]
    for start, end in itertools.combinations(range(8), 2):
        holding = [
            i
            for i, (left, right) in enumerate(offsets)
            if left >= 0 and set(range(start, end)) & set(range(left, right))
        ]
        covered = holding and offsets[holding[0]][0] <= start and offsets[holding[-1]][1] >= end
        expected = (holding[0], holding[-1]) if covered else (0, 0)
        assert answer_spans.token_span(offsets, start, end) == expected, (start, end)


@pytest.fixture(scope="module")
def long_questions():
    words = random.Random(0).choices(["one", "two", "three", "four", "five", "six"], k=60)
    context = " ".join([*words[:40], "seven eight", *words[40:]])
    answers = {"text": ["seven eight"], "answer_start": [context.index("seven")]}
    return Dataset.from_list([{"question": "say seven ?", "context": context, "answers": answers}])


def test_windows_cover_the_text_and_share_the_stride(tokenizer, long_questions):
    windows = answer_spans.encode(long_questions, tokenizer, max_length=32, doc_stride=8)
    inside = [[tuple(ends) for ends in window["offsets"] if ends[0] >= 0] for window in windows]
    assert len(windows) > 2
    assert sorted({ends for each in inside for ends in each}) == [
        tuple(ends)
        for ends in tokenizer(long_questions[0]["context"], add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
    ]
    assert all(first[-8:] == second[:8] for first, second in itertools.pairwise(inside))
    context = long_questions[0]["context"]
    for window in windows:
        start, end = window["start_positions"], window["end_positions"]
        if start:
            assert context[window["offsets"][start][0] : window["offsets"][end][1]] == "seven eight"
        else:
            assert end == 0
    assert any(window["start_positions"] for window in windows)


def test_padding_takes_no_part_in_the_loss_of_a_span():
    """A reader whose scores are highest where there is padding: the loss of a row alone, and beside a longer one."""

    class Reader(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            scores = torch.where(attention_mask == 0, 50.0, 0.1 * torch.arange(input_ids.shape[1]))
            return {"start_logits": scores, "end_logits": -scores}

    def loss(length: int) -> float:
        mask = (torch.arange(length) < 5).long()[None]
        inputs = {"input_ids": mask, "attention_mask": mask, "start_positions": torch.tensor([1])}
        return answer_spans.SpanTrainer.compute_loss(None, Reader(), inputs | {"end_positions": torch.tensor([3])})

    scores = [0.1 * position for position in range(5)]
    start = math.log(sum(map(math.exp, scores))) - scores[1]
    end = math.log(sum(math.exp(-score) for score in scores)) + scores[3]
    assert loss(5) == pytest.approx((start + end) / 2, rel=1e-5)
    assert loss(9) == pytest.approx((start + end) / 2, rel=1e-5)


def test_the_best_span_against_brute_force(tokenizer, long_questions):
    windows = answer_spans.encode(long_questions, tokenizer, max_length=32, doc_stride=8)
    rng = np.random.default_rng(0)
    starts, ends = (rng.normal(size=(len(windows), 32)) for _ in range(2))
    best = max(
        (
            (starts[w, i] + ends[w, j], window["offsets"][i][0], window["offsets"][j][1])
            for w, window in enumerate(windows)
            for i in range(len(window["offsets"]))
            for j in range(i, min(i + 5, len(window["offsets"])))
            if window["offsets"][i][0] >= 0 and window["offsets"][j][0] >= 0
        ),
    )
    [answer] = answer_spans.best_answers(long_questions, windows, starts, ends, n_best=32, max_answer_length=5)
    assert answer == long_questions[0]["context"][best[1] : best[2]]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["two"], "answer_start": [0]}, "train row 1: the context does not have 'two' at character 0"),
        ({"text": [], "answer_start": []}, "needs at least one text"),
        ({"text": ["one"], "answer_start": []}, "needs at least one text, and a start for each"),
        ({"texts": ["one"]}, "must have 'text' and 'answer_start'"),
    ],
)
def test_answers_that_are_not_where_they_should_be_are_refused(answers, message):
    with pytest.raises(UserError, match=message):
        answer_spans.check_answers(splits([{"question": "?", "context": "one two", "answers": answers}]))


def test_a_question_without_room_for_its_context_is_refused(tokenizer, long_questions):
    with pytest.raises(UserError, match="leaves 3 tokens of context beside a question of 3"):
        answer_spans.encode(long_questions, tokenizer, max_length=9, doc_stride=4)


def test_the_baseline_answers_with_the_nearest_sentence():
    data = Dataset.from_list(
        [{"question": "What is raised if it fails?", "context": "It works. ValueError is raised if it fails."}]
    )
    assert answer_spans.nearest_sentences(data) == ["ValueError is raised if it fails."]


# ------------------------------------------------------------------------------------------------- sequence to sequence
@pytest.mark.parametrize(
    ("ids", "length", "expected"),
    [([1, 2], 5, [1, 2, 9]), ([1, 2, 9], 5, [1, 2, 9]), ([1, 2, 3], 3, [1, 2, 9]), ([], 3, [9])],
)
def test_every_target_ends(ids, length, expected):
    assert text_pairs.ended(ids, 9, length) == expected


def test_labels_are_targets_by_their_names():
    features = Features({"source": Value("string"), "target": ClassLabel(names=["bad", "good"])})
    data = Dataset.from_list([{"source": "a", "target": 1}], features=features)
    assert text_pairs.named(data)["target"] == ["good"]


def test_what_is_counted_of_texts():
    found = text_pairs.measure(["a b c d"], ["a b c d"], ["rouge", "sacrebleu", "chrf", "squad"])
    assert found == pytest.approx(
        {"rouge1": 1, "rouge2": 1, "rougeL": 1, "sacrebleu": 100, "chrf": 100, "exact_match": 100}
    )
    with pytest.raises(UserError, match="no metric of texts 'rogue'; did you mean 'rouge'"):
        text_pairs.check_metrics(["rogue"])


def test_a_table_of_samples_has_one_line_a_row():
    pairs = Dataset.from_list([{"source": "a|b\nc", "target": "d"}, {"source": "e", "target": "f"}])
    assert text_pairs.samples_table(pairs, ["x", "y"], 1).splitlines()[2:] == ["| a\\|b c | d | x |"]


# ---------------------------------------------------------------------------------------------- masked words, few shots
def test_masks_depend_on_the_seed_and_the_rows_alone(tokenizer):
    data = Dataset.from_list([{"text": "say one two three four five six seven eight nine ten " * 4}] * 8)
    rows = masked_text.masked_rows(data, tokenizer, 24)
    assert {len(ids) for ids in rows["input_ids"]} <= set(range(3, 25))
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in rows["input_ids"])
    batch = [rows[index] for index in range(8)]
    first = masked_text.RepeatableMasks(tokenizer, 0)(batch)
    torch.rand(3)  # what is drawn in between changes nothing
    state = torch.get_rng_state()
    again = masked_text.RepeatableMasks(tokenizer, 0)(batch)
    assert (torch.get_rng_state() == state).all()
    assert all((first[key] == again[key]).all() for key in first)
    other = masked_text.RepeatableMasks(tokenizer, 1)(batch)
    assert (first["labels"] != other["labels"]).any()
    assert (first["labels"] != -100).any()


def test_masked_loss_is_that_of_the_hidden_words():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 7), torch.full((3, 5), -100)
    labels[0, 1], labels[2, 4] = 3, 6
    expected = -(logits[0, 1].log_softmax(-1)[3] + logits[2, 4].log_softmax(-1)[6]) / 2
    torch.testing.assert_close(masked_text.masked_loss({"logits": logits}, labels), expected)
    torch.testing.assert_close(masked_text.masked_loss({"prediction_logits": logits}, labels, 4), expected / 2)


def test_few_shots_are_as_many_of_each_label_and_follow_the_seed():
    data = splits(texts(*"aabbbbccc"), texts("a"))
    few = few_shots.few_shots(data, 2, seed=0)
    assert sorted(few["train"]["label"]) == list("aabbcc")
    assert few["test"]["text"] == data["test"]["text"]
    assert few_shots.few_shots(data, 2, seed=0)["train"]["text"] == few["train"]["text"]
    assert any(few_shots.few_shots(data, 2, seed=s)["train"]["text"] != few["train"]["text"] for s in range(1, 5))
    with pytest.raises(UserError, match="the label 'a' has 2 rows in the training split, not 3"):
        few_shots.few_shots(data, 3, seed=0)
