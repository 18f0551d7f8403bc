"""Tasks that the docstrings of Python's standard library pose and answer: topics and other labels, summaries, questions.

Which split a docstring is in follows from the top-level class or function that it belongs to, so that no class is on both
sides; a test text that also stands in training is dropped. The seed only orders the rows.
"""

import ast
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from recipes.embedded.text import fraction, modules

TEST_SHARE = 0.15
TOPICS = {  # what a module is about; modules that Python has dropped or may drop are left out
    "asynchronous": ["asyncio", "selectors", "contextvars"],
    "dates and numbers": [
        *("_pydecimal", "calendar", "colorsys", "datetime", "_pydatetime", "fractions", "numbers", "random"),
        "statistics",
    ],
    "files": [
        *("_pyio", "bz2", "fileinput", "filecmp", "genericpath", "glob", "gzip", "lzma", "ntpath", "os", "pathlib"),
        *("posixpath", "shutil", "stat", "tarfile", "tempfile", "zipfile"),
    ],
    "graphics": ["tkinter", "turtle", "turtledemo"],
    "imports": ["importlib", "modulefinder", "pkgutil", "runpy", "zipimport", "zipapp", "venv", "ensurepip"],
    "language": [
        *("_collections_abc", "ast", "codeop", "collections", "copy", "dataclasses", "dis", "enum", "functools"),
        *("inspect", "opcode", "symtable", "tokenize", "types", "typing", "abc", "contextlib", "weakref"),
    ],
    "logging": ["logging", "warnings", "traceback", "tracemalloc", "linecache"],
    "mail": ["email", "imaplib", "mailbox", "poplib", "smtplib", "mimetypes", "base64", "quopri"],
    "processes": ["_threading_local", "concurrent", "multiprocessing", "queue", "sched", "subprocess", "threading"],
    "shell": [
        "argparse",
        "cmd",
        "code",
        "configparser",
        "getopt",
        "getpass",
        "optparse",
        "pdb",
        "bdb",
        "shlex",
        "pydoc",
    ],
    "testing": ["doctest", "unittest", "timeit", "cProfile", "profile", "pstats", "trace"],
    "web": [
        *("ftplib", "html", "http", "ipaddress", "socket", "socketserver", "ssl", "urllib", "webbrowser", "wsgiref"),
        "xmlrpc",
    ],
    "xml": ["xml", "plistlib", "json", "csv", "pickle", "pickletools", "shelve", "sqlite3", "dbm"],
}
PACKAGES = {  # a word for each
    "asyncio": "event",
    "email": "message",
    "http": "request",
    "importlib": "import",
    "logging": "log",
    "multiprocessing": "process",
    "tkinter": "window",
    "unittest": "test",
    "xml": "element",
}
TOPIC_OF = {module: topic for topic, modules_ in TOPICS.items() for module in modules_}


@dataclass(frozen=True)
class Docstring:
    """The docstring of one definition.

    Attributes:
        source: `package/module.py`.
        name: the definition's own name.
        owner: its source and its top-level definition, which decide the split.
        of_class: whether it is of a class and not of a function.
        returns: whether a value is returned in the definition.
    """

    source: str
    name: str
    owner: str
    text: str
    of_class: bool
    returns: bool

    @property
    def topic(self) -> str | None:
        return TOPIC_OF.get(self.source.partition("/")[0].removesuffix(".py"))

    @property
    def split(self) -> str:
        return "test" if fraction(self.owner, "docstrings") < TEST_SHARE else "train"

    @property
    def paragraphs(self) -> list[str]:
        """Its paragraphs, each on one line."""
        return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", self.text)]


@cache
def docstrings() -> tuple[Docstring, ...]:
    """The docstring of every class and function of the standard library; read once in a process."""
    return tuple(found for source, _, tree in modules() for found in _of_module(source, tree))


def _of_module(source: str, tree: ast.Module) -> Iterator[Docstring]:
    for top in tree.body:
        if not isinstance(top, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(top):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = (ast.get_docstring(node) or "").encode(errors="ignore").decode().strip()
                if text:
                    values = (child.value for child in ast.walk(node) if isinstance(child, ast.Return))
                    returns = any(value is not None for value in values)
                    is_class = isinstance(node, ast.ClassDef)
                    yield Docstring(source, node.name, f"{source}:{top.name}", text, is_class, returns)


# ------------------------------------------------------------------------------------------------------------ the tasks
def topics(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows `text`, `label`: a docstring of at least 40 characters, and which of TOPICS its module is about.

    A text that stands in modules of two topics is left out.
    """
    return _labelled(lambda docstring: docstring.topic, seed, "topics")


def packages(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows `text`, `label`: as topics, but the label is one of PACKAGES."""
    return _labelled(lambda docstring: PACKAGES.get(docstring.source.partition("/")[0]), seed, "packages")


def kinds(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows `text`, `label`: a docstring, and whether it is of a class, of a function or of a method."""

    def kind(docstring: Docstring) -> str:
        if docstring.of_class:
            return "class"
        return "function" if docstring.owner.endswith(f":{docstring.name}") else "method"

    return _labelled(kind, seed, "kinds")


def results(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows `text`, `label`: the docstring of a function, and whether it returns a value."""

    def result(docstring: Docstring) -> str | None:
        return None if docstring.of_class else "value" if docstring.returns else "none"

    return _labelled(result, seed, "results")


def tasks(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows `task`, `prompt`, `completion`: topics, packages and kinds together, told apart by the task alone."""
    splits: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for task, labelled in (("topic", topics), ("package", packages), ("kind", kinds)):
        for split, rows in labelled(seed).items():
            splits[split] += [{"task": task, "prompt": row["text"], "completion": row["label"]} for row in rows]
    for split, rows in splits.items():
        random.Random(f"{seed}-{split}-tasks").shuffle(rows)
    return splits


def _labelled(label: Callable[[Docstring], str | None], seed: int, name: str) -> dict[str, list[dict[str, str]]]:
    """Docstrings of at least 40 characters that have a label, without those that have two."""
    found: dict[str, list[Docstring]] = {}
    for docstring in docstrings():
        if label(docstring) and len(docstring.text) >= 40:
            found.setdefault(" ".join(docstring.text.split()), []).append(docstring)
    rows = [
        (each[0].split, {"text": text, "label": label(each[0])})
        for text, each in found.items()
        if len({label(one) for one in each}) == 1
    ]
    return _splits(rows, seed, name, "text")


def summaries(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows `source`, `target`: a docstring without its first line, and that line, which sums it up (PEP 257)."""
    rows = []
    for docstring in docstrings():
        line, *rest = docstring.paragraphs
        body = " ".join(rest)
        summary = 15 <= len(line) <= 100 and "\n" not in docstring.text.partition("\n\n")[0] and line[-1] != ":"
        if summary and len(body) >= 80:
            rows.append((docstring.split, {"source": body, "target": line}))
    return _splits(rows, seed, "summaries", "target")


QUESTIONS = (  # a sentence's form, of which `answer` answers the question beside it
    (re.compile(r"\bReturns? (?P<answer>(?!None\b)[^.;:]{6,100})(?=[.;:])"), "What is returned?"),
    (re.compile(r"\bIf (?P<answer>[^,.;:]{6,80}), "), "What is the condition?"),
    (
        re.compile(r"\b[Rr]aises? (?:an? |the )?(?P<answer>[A-Z]\w+(?:Error|Exception|Exit|Warning))\b"),
        "What is raised?",
    ),
    (
        re.compile(r"\b[Rr]aised? (?:an? |the )?(?:[A-Z]\w+ )?(?P<answer>(?:if|when) [^.;,]{6,80})(?=[.;,])"),
        "When is it raised?",
    ),
    (re.compile(r"\b(?:is|are|be) used (?P<answer>(?:to|for|by) [^.;,]{6,80})(?=[.;,])"), "What is it used for?"),
    (re.compile(r"\b(?:defaults to|default is|default value is) (?P<answer>[\w.'\"]+\w)"), "What is the default?"),
)


def questions(seed: int = 0) -> dict[str, list[dict]]:
    """Return rows as SQuAD has them, `question`, `context`, `answers` (`text`, `answer_start`): QUESTIONS to docstrings.

    A docstring, on one line, is asked what it has one answer to, of which no other place in it has the words.
    """
    rows = []
    for docstring in docstrings():
        context = " ".join(docstring.text.split())
        for pattern, question in QUESTIONS:
            found = [match["answer"].strip() for match in pattern.finditer(context)]
            if len(found) == 1 and context.count(found[0]) == 1 and len(context) > 2 * len(found[0]):
                answers = {"text": found, "answer_start": [context.index(found[0])]}
                rows.append((docstring.split, {"question": question, "context": context, "answers": answers}))
    return _splits(rows, seed, "questions", "context", "question")


def _splits(rows: list[tuple[str, dict]], seed: int, name: str, *keys: str) -> dict[str, list[dict]]:
    """Sort rows into splits, none that is alike in all `keys` twice, and order them by the seed.

    Training comes first: what it has under the first key is not in test.
    """
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    in_training = {row[keys[0]] for split, row in rows if split == "train"}
    for split in splits:
        seen = set()
        for own, row in rows:
            key = tuple(row[each] for each in keys)
            if own == split and key not in seen and not (split == "test" and row[keys[0]] in in_training):
                seen.add(key)
                splits[split].append(row)
        random.Random(f"{seed}-{split}-{name}").shuffle(splits[split])
    return splits
