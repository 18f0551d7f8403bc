"""The tasks that Python's documentation poses: the same rows for the same seed, splits apart, and answers that are there."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import recipes
from recipes.embedded import code_in_prose, docstrings, second_language
from recipes.embedded.code_in_prose import MARKED, tagged

ROOT = Path(recipes.__file__).parents[1]
LABELLED = [docstrings.topics, docstrings.packages, docstrings.kinds, docstrings.results]
KEY = {
    **dict.fromkeys(LABELLED, "text"),
    docstrings.summaries: "target",
    docstrings.questions: "context",
    code_in_prose.tags: "words",
    second_language.topics: "text",
    second_language.translations: "source",
}
SMALLEST = {  # rows of the training split that there are at least, so that something can be learned
    docstrings.topics: 3000,
    docstrings.packages: 1200,
    docstrings.kinds: 3000,
    docstrings.results: 3000,
    docstrings.summaries: 1000,
    docstrings.questions: 1000,
    code_in_prose.tags: 800,
    second_language.topics: 3000,
    second_language.translations: 8000,
}


@pytest.fixture(scope="module")
def made():
    return {make: make() for make in KEY}


def name(make) -> str:
    return f"{make.__module__.rpartition('.')[2]}.{make.__name__}"


@pytest.mark.parametrize("make", KEY, ids=name)
def test_there_is_enough_and_no_row_of_test_stands_in_training(make, made):
    splits, key = made[make], KEY[make]
    assert len(splits["train"]) >= SMALLEST[make]
    assert len(splits["test"]) > 0.04 * len(splits["train"])
    keys = {split: [json.dumps(row[key]) for row in rows] for split, rows in splits.items()}
    assert not set(keys["train"]) & set(keys["test"])
    if make is not docstrings.questions:  # of which a context has several
        assert all(len(set(each)) == len(each) for each in keys.values())


@pytest.mark.parametrize("make", KEY, ids=name)
def test_the_seed_orders_and_no_more(make, made):
    other = make(1)
    for split, rows in made[make].items():
        assert other[split] != rows
        assert sorted(other[split], key=str) == sorted(rows, key=str)


def test_the_same_rows_in_another_process(made):
    code = """if True:
        import hashlib, json
        from recipes.embedded import code_in_prose, docstrings, second_language
        for make in (docstrings.topics, docstrings.questions, code_in_prose.tags, second_language.translations):
            print(hashlib.sha256(json.dumps(make()).encode()).hexdigest())
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    makers = (docstrings.topics, docstrings.questions, code_in_prose.tags, second_language.translations)
    assert ran.stdout.split() == [hashlib.sha256(json.dumps(made[make]).encode()).hexdigest() for make in makers]


def test_a_class_is_in_one_split_with_all_its_methods():
    owners = {}
    for docstring in docstrings.docstrings():
        owners.setdefault(docstring.owner, set()).add(docstring.split)
    assert all(len(splits) == 1 for splits in owners.values())
    share = sum(splits == {"test"} for splits in owners.values()) / len(owners)
    assert 0.1 < share < 0.2


# --------------------------------------------------------------------------------------------- labels and their baselines
@pytest.mark.parametrize("make", LABELLED, ids=name)
def test_words_say_more_than_the_most_frequent_label(make, made):
    """What a model has to beat is between the two: naive Bayes is well above the majority and well below 1."""
    from datasets import Dataset, DatasetDict

    from recipes.finetuning.classification_data import baselines

    splits = DatasetDict({split: Dataset.from_list(rows) for split, rows in made[make].items()})
    found = baselines(splits)
    assert found["accuracy"] + 0.05 < found["accuracy_naive_bayes"] < 0.9
    assert found["accuracy"] < 0.75


@pytest.mark.parametrize("make", LABELLED, ids=name)
def test_every_label_is_in_both_splits(make, made):
    labels = {split: Counter(row["label"] for row in rows) for split, rows in made[make].items()}
    assert labels["train"].keys() == labels["test"].keys()
    assert min(labels["train"].values()) >= 50


def test_topics_are_those_that_are_named(made):
    labels = {row["label"] for rows in made[docstrings.topics].values() for row in rows}
    assert labels == set(docstrings.TOPICS)
    modules = [module for modules in docstrings.TOPICS.values() for module in modules]
    assert len(set(modules)) == len(modules)


def test_what_a_function_returns_is_read_from_its_code(made):
    found = {docstring.text: docstring for docstring in docstrings.docstrings() if docstring.source == "textwrap.py"}
    rows = {row["text"]: row["label"] for rows in made[docstrings.results].values() for row in rows}
    wrap = next(text for text, docstring in found.items() if docstring.name == "wrap")
    assert rows[" ".join(wrap.split())] == "value"


# ---------------------------------------------------------------------------------------------- summaries and questions
def test_a_summary_is_a_first_line_and_its_source_the_rest(made):
    texts = {" ".join(docstring.text.split()) for docstring in docstrings.docstrings()}
    for row in made[docstrings.summaries]["test"]:
        assert f"{row['target']} {row['source']}" in texts
        assert 15 <= len(row["target"]) <= 100
        assert len(row["source"]) >= 80


def test_an_answer_stands_in_its_context_once_and_fits_its_question(made):
    asked = Counter()
    for rows in made[docstrings.questions].values():
        for row in rows:
            [text], [start] = row["answers"]["text"], row["answers"]["answer_start"]
            assert row["context"][start:].startswith(text)
            assert row["context"].count(text) == 1
            before = row["context"][:start].lower()
            asked[row["question"]] += 1
            if row["question"] == "What is the condition?":
                assert before.endswith("if ")
            if row["question"] == "What is returned?":
                assert before.endswith(("return ", "returns "))
    assert set(asked) == {question for _, question in docstrings.QUESTIONS}
    assert max(asked.values()) < 0.7 * sum(asked.values())


def test_the_question_matters(made):
    """Many docstrings have answers to several: who does not read the question cannot be right on all."""
    several = Counter(row["context"] for row in made[docstrings.questions]["train"])
    assert sum(number > 1 for number in several.values()) > 150


def test_the_nearest_sentence_is_never_the_whole_answer(made):
    from datasets import Dataset

    from recipes.core.metrics import load
    from recipes.finetuning.answer_spans import nearest_sentences

    test = Dataset.from_list(made[docstrings.questions]["test"])
    accepted = [answers["text"] for answers in test["answers"]]
    found = load("squad").compute(predictions=nearest_sentences(test), references=accepted)
    assert found["exact_match"] < 10
    assert 10 < found["f1"] < 60


# ----------------------------------------------------------------------------------------------------------------- tags
@pytest.mark.parametrize(
    ("sentence", "mark", "expected"),
    [
        ('The "for" loop.', "topics", [("The", "O"), ("for", "B-KEYWORD"), ("loop", "O"), (".", "O")]),
        (
            'Call "f(x)".',
            "topics",
            [("Call", "O"), ("f", "B-CALL"), ("(", "I-CALL"), ("x", "I-CALL"), (")", "I-CALL"), (".", "O")],
        ),
        (
            "Raise ``KeyError`` or `x.y`",
            "docstrings",
            [
                ("Raise", "O"),
                ("KeyError", "B-EXCEPTION"),
                ("or", "O"),
                ("x", "B-NAME"),
                (".", "I-NAME"),
                ("y", "I-NAME"),
            ],
        ),
        (
            '"x + 1" is "None"',
            "topics",
            [("x", "B-EXPRESSION"), ("+", "I-EXPRESSION"), ("1", "I-EXPRESSION"), ("is", "O"), ("None", "B-CONSTANT")],
        ),
    ],
)
def test_marks_become_tags(sentence, mark, expected):
    assert list(zip(*tagged(sentence, MARKED[mark]))) == expected


def test_no_mark_is_left_where_the_manual_has_them(made):
    rows = [row for rows in made[code_in_prose.tags].values() for row in rows]
    assert all(len(row["words"]) == len(row["tags"]) for row in rows)
    kinds = {tag[2:] for row in rows for tag in row["tags"] if tag != "O"}
    assert kinds == set(code_in_prose.KINDS)
    for row in rows:
        for before, tag in zip(["O", *row["tags"]], row["tags"]):
            assert tag[:2] != "I-" or before[2:] == tag[2:], "an I- tag goes on with its span"


# ------------------------------------------------------------------------------------------------------ second language
@pytest.mark.parametrize(
    ("english", "other"),
    [
        ("the value", "vji wemai"),
        ("Return the value of x, 12.", "Sivasp vji wemai ug y, 12."),
        ("Call os.path.join(a) or MyClass", "Demm os.path.join(a) us MyClass"),
        ("", ""),
    ],
)
def test_words_are_other_words_and_names_stay(english, other):
    assert second_language.translate(english) == other


def test_a_translation_can_be_undone_to_the_letter(made):
    for row in made[second_language.translations]["train"]:
        assert second_language.translate_back(row["target"]) == row["source"]


def test_no_two_words_become_one():
    letters = second_language.VOWELS + second_language.CONSONANTS
    images = [second_language.FORWARD[letter] for letter in letters]
    assert sorted(images) == sorted(letters)
    assert all(letter != image for letter, image in zip(letters, images))
    assert {second_language.FORWARD[vowel] for vowel in "aeiou"} == set("aeiou")


def test_the_languages_share_few_words_and_the_same_rows(made):
    english, other = made[docstrings.topics]["test"], made[second_language.topics]["test"]
    assert [row["label"] for row in english] == [row["label"] for row in other]
    words = [set(re.findall(r"\b[a-z]{4,}\b", " ".join(row["text"] for row in rows))) for rows in (english, other)]
    assert len(words[0] & words[1]) < 0.35 * len(words[0])
