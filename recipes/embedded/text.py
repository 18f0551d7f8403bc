"""A corpus that every Python installation carries: its reference manual, its docstrings and its functions.

The texts are those of the running Python, so two versions of Python give two slightly different corpora. The sources
are read, never imported. A function's docstring is cut out of its source, since it is a document of its own.
"""

import ast
import hashlib
import random
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MIN_CHARACTERS = 40
TEST_SHARE = 0.05
CODE_SHARE = 0.5  # of the standard library's functions: somewhat more code than English

# Tests and bundled programs are repetitive, encodings are tables, and pydoc_data holds the topics that are read below.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "site-packages", "dist-packages"}


def documents(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows (`text`, `source`) of the splits `train` and `test`.

    Each text occurs once. Which split it is in follows from its hash alone; a test text that stands word for word
    inside a longer training text is dropped. The seed only orders the rows, so that the first n are a fair sample.

    Raises FileNotFoundError if this Python comes without the sources of its standard library.
    """
    source_of = {}
    for source, text in _all(_library()):
        text = text.encode(errors="ignore").decode().strip()  # a lone surrogate is no text
        if len(text) >= MIN_CHARACTERS:
            source_of.setdefault(text, source)

    splits = {"train": [], "test": []}
    for text, source in source_of.items():
        splits["test" if fraction(text) < TEST_SHARE else "train"].append({"text": text, "source": source})
    seen = "\n\n".join(row["text"] for row in splits["train"])
    splits["test"] = [row for row in splits["test"] if row["text"] not in seen]

    for split, rows in splits.items():
        random.Random(f"{seed}-{split}-text").shuffle(rows)
    return splits


def english(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The documents that are English: manual and docstrings, in which examples of code occur."""
    return {split: [row for row in rows if not _is_code(row["text"])] for split, rows in documents(seed).items()}


def code(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """The documents that are code: functions without their docstrings."""
    return {split: [row for row in rows if _is_code(row["text"])] for split, rows in documents(seed).items()}


def _is_code(text: str) -> bool:
    """Whether a document is a function; all of these begin with their `def`, and no docstring of the library does."""
    return text.startswith(("def ", "async def "))


def topics() -> Iterator[tuple[str, str]]:
    """Yield (source, text) of the reference manual's topics, those that help() shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    for name in sorted(topics):
        yield f"topics/{name}", topics[name]


@cache
def _all(root: Path) -> tuple[tuple[str, str], ...]:
    """(source, text) of the topics, and of the docstrings and functions of every module; read once in a process."""
    library = ((source, text) for source, code, tree in modules(root) for text in _texts(tree, code.split("\n")))
    return (*topics(), *library)


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def modules(root: Path | None = None) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield (path, code, syntax tree) of every module below a folder, the standard library's by default.

    Raises FileNotFoundError if this Python comes without the sources.
    """
    root = root or _library()
    paths = [path for path in sorted(root.rglob("*.py")) if SKIPPED.isdisjoint(path.relative_to(root).parts)]
    if not paths:
        raise FileNotFoundError(f"no sources of the standard library under {root}")
    for path in paths:
        try:
            with tokenize.open(path) as file:
                code = file.read()
            tree = ast.parse(code)
        except (SyntaxError, UnicodeDecodeError):  # a template, or not in the encoding it declares
            continue
        yield path.relative_to(root).as_posix(), code, tree


def _texts(node: ast.AST, lines: list[str]) -> Iterator[str]:
    """Yield the docstrings of a module or class and of what it defines, and the code of some of its functions."""
    if docstring := ast.get_docstring(node):
        yield docstring
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _texts(child, lines)
        return

    head, body = lines[node.lineno - 1 : node.end_lineno], []
    if docstring:
        if len(node.body) == 1:
            return
        head, body = lines[node.lineno - 1 : node.body[0].lineno - 1], lines[node.body[0].end_lineno : node.end_lineno]
    code = textwrap.dedent("\n".join(head + body))
    if fraction(code, "code") < CODE_SHARE:
        yield code


def fraction(text: str, salt: str = "split") -> float:
    """Return a number in [0, 1) that depends on nothing but the text, and is another one for another salt."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8], "big") / 2**64
