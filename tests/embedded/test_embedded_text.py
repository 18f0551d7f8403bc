"""The corpus of text: what is read, what is skipped, and that no test document is part of the training text."""

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import recipes
from recipes.embedded import text
from recipes.embedded.text import MIN_CHARACTERS, TEST_SHARE, documents


@pytest.fixture(scope="module")
def corpus():
    return documents()


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of our own, and no topics."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    return tmp_path


def rows(splits):
    return [row for split in splits.values() for row in split]


def test_there_is_enough_of_both(corpus):
    english = [row["text"] for row in rows(corpus) if not row["text"].lstrip().startswith(("def ", "async ", "@"))]
    code = [row["text"] for row in rows(corpus) if row["text"].lstrip().startswith("def ")]
    assert sum(map(len, english)) > 1_000_000
    assert sum(map(len, code)) > 1_000_000
    sources = {row["source"] for row in rows(corpus)}
    assert "json/decoder.py" in sources
    assert len([source for source in sources if source.startswith("topics/")]) > 50


def test_english_and_code_are_the_two_halves(corpus):
    english, code = text.english(), text.code()
    for split in corpus:
        assert sorted([*english[split], *code[split]], key=str) == sorted(corpus[split], key=str)
    for row in rows(code):
        (function,) = ast.parse(row["text"]).body
        assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        assert ast.get_docstring(function) is None
    assert min(sum(len(row["text"]) for row in rows(half)) for half in (english, code)) > 1_000_000


def test_documents_are_distinct_and_long_enough(corpus):
    texts = [row["text"] for row in rows(corpus)]
    assert len(set(texts)) == len(texts)
    assert min(map(len, texts)) >= MIN_CHARACTERS


def test_no_test_document_stands_in_the_training_text(corpus):
    training_text = "\n\n".join(row["text"] for row in corpus["train"])
    assert [row["source"] for row in corpus["test"] if row["text"] in training_text] == []
    assert 0.6 * TEST_SHARE < len(corpus["test"]) / len(rows(corpus)) < 1.2 * TEST_SHARE


def test_the_seed_orders_and_no_more(corpus):
    other = documents(seed=1)
    for split in corpus:
        assert other[split] != corpus[split]
        assert sorted(other[split], key=str) == sorted(corpus[split], key=str)


def test_no_module_is_imported():
    code = """if True:
        import sys
        from recipes.embedded.text import documents
        assert documents()
        print(*{"this", "turtle", "tkinter"} & set(sys.modules))
    """
    root = Path(recipes.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_is_read_and_what_is_skipped(library, monkeypatch):
    monkeypatch.setattr(text, "CODE_SHARE", 1)
    function = "def f(x):\n    {}return [x + number for number in range(10_000)]"
    docstring = "Add a number to each of the numbers below ten thousand."
    (library / "a.py").write_text(function.format(f'"""{docstring}"""\n    ') + "\n")
    (library / "b.py").write_text('"""Too short."""\n')
    (library / "c.py").write_text("def f(:\n")
    (library / "d.py").write_bytes(b'"""' + b"\xff" * 50 + b'"""\n')
    (library / "test").mkdir()
    (library / "test" / "e.py").write_text(f'"""{docstring} This is a test of it."""\n')
    assert {(row["source"], row["text"]) for row in rows(documents())} == {
        ("a.py", docstring),
        ("a.py", function.format("")),
    }


def test_a_library_without_sources_is_an_error(library):
    with pytest.raises(FileNotFoundError, match="no sources"):
        documents()
