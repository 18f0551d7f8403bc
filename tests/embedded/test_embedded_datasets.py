"""What load() promises: the splits, their sizes, the same rows for the same seed, and nothing of test in train."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recipes
from recipes.embedded import load, names
from recipes.embedded.docstrings import kinds, packages, tasks, topics
from recipes.embedded.instructions import SIZES, instructions, preferences, prompts
from recipes.embedded.task import KIND_OF
from recipes.embedded.text import documents

ROOT = Path(recipes.__file__).parents[1]
MAKERS = [documents, instructions, preferences, prompts]
COLUMNS = {
    "text": ["text", "source"],
    "english": ["text", "source"],
    "code": ["text", "source"],
    "instructions": ["prompt", "completion", "task"],
    "preferences": ["prompt", "chosen", "rejected", "flipped"],
    "prompts": ["prompt", "task"],
    "topics": ["text", "label"],
    "packages": ["text", "label"],
    "kinds": ["text", "label"],
    "results": ["text", "label"],
    "docstrings": ["task", "prompt", "completion"],
    "summaries": ["source", "target"],
    "questions": ["question", "context", "answers"],
    "tags": ["words", "tags"],
    "translations": ["source", "target"],
    "translations-into-english": ["source", "target"],
    "second-language": ["text", "source"],
    "second-language-topics": ["text", "label"],
}


def digest(splits):
    return hashlib.sha256(json.dumps(splits).encode()).hexdigest()


def python(code, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_names_describes_what_load_can_make():
    assert list(names()) == list(COLUMNS)
    assert all(description and "\n" not in description for description in names().values())


def test_unknown_name_lists_the_known_ones():
    known = "text, english, code, instructions, preferences, prompts, topics"
    with pytest.raises(ValueError, match=rf"'txt'.*{known}"):
        load("txt")


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_and_sizes(name):
    splits = load(name)
    assert list(splits) == ["train", "test"]
    assert all(split.column_names == COLUMNS[name] for split in splits.values())
    if name in SIZES:
        assert {split: len(rows) for split, rows in splits.items()} == SIZES[name]


def test_importing_is_light():
    code = "import sys, recipes.embedded; print(*{'torch', 'datasets', 'transformers'} & set(sys.modules))"
    assert python(code) == []


def test_same_seed_same_rows_in_another_process():
    code = """if True:
        import hashlib, json
        from recipes.embedded.instructions import instructions, preferences, prompts
        from recipes.embedded.text import documents
        for make in (documents, instructions, preferences, prompts):
            print(hashlib.sha256(json.dumps(make(3)).encode()).hexdigest())
    """
    assert python(code, PYTHONHASHSEED="7") == [digest(make(3)) for make in MAKERS]


@pytest.mark.parametrize("make", MAKERS[1:])
def test_another_seed_draws_other_rows(make):
    asked = [{row["prompt"][0]["content"] for row in make(seed)["train"]} for seed in (0, 1)]
    assert len(asked[0] & asked[1]) < len(asked[0]) / 2


@pytest.mark.parametrize("make", MAKERS[1:])
def test_no_prompt_of_the_test_split_twice(make):
    rows = make()["test"]
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)


def test_no_content_of_test_in_train():
    """The words and numbers of a test prompt are those of no train prompt, of any dataset, kind or seed."""
    seen = {"train": set(), "test": set()}
    for make in (instructions, preferences, prompts):
        for seed in (0, 1):
            for split, rows in make(seed).items():
                seen[split] |= {_content(row["prompt"][0]["content"]) for row in rows}
    assert len(seen["test"]) > 900
    assert seen["train"].isdisjoint(seen["test"])


def test_the_mixture_holds_the_rows_of_its_tasks_and_no_others():
    mixed = tasks()
    for split, rows in mixed.items():
        for task, labelled in (("topic", topics), ("package", packages), ("kind", kinds)):
            own = {(row["prompt"], row["completion"]) for row in rows if row["task"] == task}
            assert own == {(row["text"], row["label"]) for row in labelled()[split]}
    asked = {}
    for row in mixed["train"]:
        asked.setdefault(row["prompt"], set()).add(row["task"])
    assert sum(len(of) > 1 for of in asked.values()) > 1000, "the text does not tell which task it is"


def _content(prompt):
    items = re.findall(r"[a-z]+|\d+", prompt)
    return frozenset(item if item in KIND_OF else item.removesuffix("s") for item in items if _is_content(item))


def _is_content(item):
    return item.isdigit() or item in KIND_OF or item.removesuffix("s") in KIND_OF
