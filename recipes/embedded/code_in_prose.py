"""Names of things in English: the spans that the authors of Python's manual and docstrings marked as code, by kind.

The marks are taken away and become the tags. It is real annotation: made by people, for a reader, word by word.
"""

import builtins
import keyword
import random
import re
from collections.abc import Iterator

from recipes.embedded import docstrings, text

MARKED = {"topics": re.compile(r'"([^"]+)"'), "docstrings": re.compile(r"``([^`]+)``|`([^`]+)`")}
WORD = re.compile(r"\w+|[^\w\s]")
MAX_WORDS = 60
IDENTIFIER = r"[A-Za-z_]\w*"
KINDS = ("CALL", "CONSTANT", "EXCEPTION", "EXPRESSION", "KEYWORD", "NAME")
EXCEPTIONS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}


def kind(span: str) -> str:
    """What a piece of code is: one of KINDS."""
    if span in ("None", "True", "False", "NotImplemented", "Ellipsis") or re.fullmatch(r"[-\d.]+|'.*'", span):
        return "CONSTANT"
    if keyword.iskeyword(span) or keyword.issoftkeyword(span):
        return "KEYWORD"
    if span.rpartition(".")[2] in EXCEPTIONS:
        return "EXCEPTION"
    if re.fullmatch(rf"{IDENTIFIER}(\.{IDENTIFIER})*\(.*\)", span):
        return "CALL"
    return "NAME" if re.fullmatch(rf"{IDENTIFIER}(\.{IDENTIFIER})*", span) else "EXPRESSION"


def tagged(sentence: str, marked: re.Pattern) -> tuple[list[str], list[str]]:
    """The words of a sentence without its marks, and the tag of each: O, or B- and I- with the kind of its span."""
    words, tags, end = [], [], 0
    for match in marked.finditer(sentence):
        before, span = WORD.findall(sentence[end : match.start()]), next(filter(None, match.groups()))
        inside = WORD.findall(span)
        words += [*before, *inside]
        tags += [*["O"] * len(before), *[f"{'I' if index else 'B'}-{kind(span)}" for index in range(len(inside))]]
        end = match.end()
    rest = WORD.findall(sentence[end:])
    return words + rest, tags + ["O"] * len(rest)


def tags(seed: int = 0) -> dict[str, list[dict]]:
    """Return the rows `words` and `tags`: sentences with at least one span of code in them, of up to MAX_WORDS words.

    A sentence's split follows from its text alone; none stands twice.
    """
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    seen = set()
    for sentence, marked in _sentences():
        words, its_tags = tagged(sentence, marked)
        key = " ".join(words)
        if key in seen or not 5 <= len(words) <= MAX_WORDS or set(its_tags) == {"O"}:
            continue
        seen.add(key)
        split = "test" if text.fraction(key, "tags") < docstrings.TEST_SHARE else "train"
        splits[split].append({"words": words, "tags": its_tags})
    for split, rows in splits.items():
        random.Random(f"{seed}-{split}-tags").shuffle(rows)
    return splits


def _sentences() -> Iterator[tuple[str, re.Pattern]]:
    """Yield sentences that have marks, and how these look."""
    sources = [(document, MARKED["topics"]) for _, document in text.topics()]
    sources += [(docstring.text, MARKED["docstrings"]) for docstring in docstrings.docstrings()]
    for document, marked in sources:
        for paragraph in re.split(r"\n\s*\n", document):
            if re.search(r"::=|>>>|\*\*\*|===|---", paragraph):  # grammar, sessions and headings are no prose
                continue
            for sentence in re.split(r"(?<=[.:;])\s+(?=[A-Z])", " ".join(paragraph.split())):
                if marked.search(sentence):
                    yield sentence, marked
