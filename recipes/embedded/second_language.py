"""A second language for cross-lingual transfer and translation: English with other words.

Every English word has another form, made letter by letter: a vowel becomes another vowel, a consonant another consonant.
Word order, numbers, punctuation and the names of code stay, as loan words and names do between languages that are near
each other. So a translation can be checked to the letter, and what a text is about can be known without a label in it.
Fake languages of this kind are how K et al. 2020, Cross-Lingual Ability of Multilingual BERT, arXiv 1912.07840, take
apart what transfer needs.
"""

import re

from recipes.embedded import docstrings, text

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
SHIFTED = VOWELS[1:] + VOWELS[0] + CONSONANTS[1:] + CONSONANTS[0]
FORWARD = {letter: SHIFTED[number] for number, letter in enumerate(VOWELS + CONSONANTS)}
TABLE = str.maketrans(FORWARD | {letter.upper(): other.upper() for letter, other in FORWARD.items()})
BACK = str.maketrans({to: chr(letter) for letter, to in ((key, value) for key, value in TABLE.items())})
# Letters alone, with at most the first a capital: not part of a name, a path, a number or a piece of code.
WORD = re.compile(r"(?<![\w.<{(\[/\\'\"`*-])[A-Za-z]?[a-z]+(?![\w(\[={/\\'\"`*]|\.\w)")


def translate(english: str) -> str:
    """English in the second language: `the value` → `vji wemai`."""
    return WORD.sub(lambda word: word[0].translate(TABLE), english)


def translate_back(other: str) -> str:
    """The English that `translate` made it from."""
    return WORD.sub(lambda word: word[0].translate(BACK), other)


def documents(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return `embedded/text` in the second language: rows `text`, `source`."""
    splits = text.documents(seed)
    return {split: [row | {"text": translate(row["text"])} for row in rows] for split, rows in splits.items()}


def topics(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return `embedded/topics` in the second language: rows `text`, `label`."""
    splits = docstrings.topics(seed)
    return {split: [row | {"text": translate(row["text"])} for row in rows] for split, rows in splits.items()}


def translations(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows `source`, `target`: an English sentence of the corpus of 20 to 120 characters, and its translation.

    Sentences follow their documents into the splits; none stands twice.
    """
    splits: dict[str, list[dict[str, str]]] = {}
    seen: set[str] = set()
    for split, rows in text.documents(seed).items():
        splits[split] = []
        for row in rows:
            if row["text"].lstrip().startswith(("def ", "async ", "@")):
                continue
            for sentence in re.findall(r"[A-Z][^.:;>=]{18,118}\.", " ".join(row["text"].split())):
                if sentence not in seen:
                    seen.add(sentence)
                    splits[split].append({"source": sentence, "target": translate(sentence)})
    return splits


def into_english(seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Return the rows of `translations` the other way round: `source` in the second language, `target` in English."""
    pairs = translations(seed)
    return {
        split: [{"source": row["target"], "target": row["source"]} for row in rows] for split, rows in pairs.items()
    }
