"""Byte-pair encoding in the open: which pair is merged, how often it stood there, and how a new word is cut.

Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units, arXiv 1508.07909, algorithm 1. Made to
be read, not to be fast; the tests hold it against the `tokenizers` library.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

END = "</w>"  # a symbol of its own at the end of each word, so that "est" at the end differs from "est" within
Symbols = tuple[str, ...]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Merge:
    """One step of learning: the most frequent pair of neighbours, and how often it stood in the text."""

    pair: Pair
    frequency: int


def count_words(text: str) -> Counter[str]:
    """How often each word stands in the text; words are what white space separates."""
    return Counter(text.split())


def split_word(word: str) -> Symbols:
    """The characters of a word and the sign of its end."""
    return (*word, END)


def pair_frequencies(segmented: Mapping[str, Sequence[str]], words: Mapping[str, int]) -> Counter[Pair]:
    """How often each pair of neighbours stands in the text.

    Args:
        segmented: the symbols that each word consists of at present.
        words: how often each word stands in the text.
    """
    frequencies: Counter[Pair] = Counter()
    for word, symbols in segmented.items():
        for pair in pairwise(symbols):
            frequencies[pair] += words[word]
    return frequencies


def merge_pair(symbols: Sequence[str], pair: Pair, union: str | None = None) -> Symbols:
    """The symbols with every occurrence of the pair, from the left, replaced by its union."""
    union = "".join(pair) if union is None else union
    merged, index = [], 0
    while index < len(symbols):
        if tuple(symbols[index : index + 2]) == pair:
            merged.append(union)
            index += 2
        else:
            merged.append(symbols[index])
            index += 1
    return tuple(merged)


def learn_merges(words: Mapping[str, int], number: int, min_frequency: int = 1) -> list[Merge]:
    """The first `number` merges; fewer when no pair is left that stands at least `min_frequency` times.

    Of pairs that are equally frequent the first in the text is merged, as in the paper's own program.

    Args:
        words: how often each word stands in the text, in the order of the text.
    """
    segmented = {word: split_word(word) for word in words}
    merges: list[Merge] = []
    while len(merges) < number:
        frequencies = pair_frequencies(segmented, words)
        best = max(frequencies, key=frequencies.__getitem__, default=None)
        if best is None or frequencies[best] < min_frequency:
            break
        segmented = {word: merge_pair(symbols, best) for word, symbols in segmented.items()}
        merges.append(Merge(best, frequencies[best]))
    return merges


def segment(word: str, merges: Sequence[Merge]) -> list[Symbols]:
    """How a word is cut: its characters, then what it is after each merge that changes it, in the order of learning."""
    steps = [split_word(word)]
    for merge in merges:
        after = merge_pair(steps[-1], merge.pair)
        if after != steps[-1]:
            steps.append(after)
    return steps
