"""BART's five noises, each a function of a document's tokens and a random generator.

Paper: Lewis et al. 2019, BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation,
       and Comprehension, arXiv 1910.13461, section 2.2 and figure 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HIDDEN = -1  # the place of a mask, which no token has
NOISES = ("token_masking", "token_deletion", "text_infilling", "sentence_permutation", "document_rotation")


def token_masking(tokens: np.ndarray, share: float, mask_id: int, numbers: np.random.Generator) -> np.ndarray:
    """Random tokens, a share of them, each replaced by the mask: A C . D E . → A _ . _ E . [n] → [n]"""
    noised = tokens.copy()
    noised[_some(len(tokens), share, numbers)] = mask_id
    return noised


def token_deletion(tokens: np.ndarray, share: float, numbers: np.random.Generator) -> np.ndarray:
    """Random tokens, a share of them, taken away: A B C . D E . → A . C . E . [n] → [n - deleted]"""
    return np.delete(tokens, _some(len(tokens), share, numbers))


def _some(count: int, share: float, numbers: np.random.Generator) -> np.ndarray:
    """A share of `count` places, rounded to a whole number, every set of them equally likely."""
    return numbers.permutation(count)[: round(count * share)]


def text_infilling(
    tokens: np.ndarray, share: float, mean_length: float, mask_id: int, numbers: np.random.Generator
) -> np.ndarray:
    """Spans that hold a share of the tokens, each replaced by one mask: A B C . D E . → A _ . D _ E . [n] → [kept + spans]

    Lengths are drawn from a Poisson distribution until they add up to the share; the last one is cut to meet it. A span
    of no tokens is a mask put in. Spans stand anywhere between the tokens that are kept, every arrangement equally likely.
    """
    lengths = numbers.permutation(span_lengths(round(len(tokens) * share), mean_length, numbers))
    kept = len(tokens) - lengths.sum()
    is_mask = np.zeros(kept + len(lengths), dtype=bool)  # of the result: masks among the kept tokens
    is_mask[numbers.permutation(len(is_mask))[: len(lengths)]] = True
    width = np.ones(len(is_mask), dtype=np.int64)  # tokens of the document that each place stands for
    width[is_mask] = lengths
    begins = np.cumsum(width) - width
    noised = np.full(len(is_mask), mask_id, dtype=tokens.dtype)
    noised[~is_mask] = tokens[begins[~is_mask]]
    return noised


def span_lengths(total: int, mean_length: float, numbers: np.random.Generator) -> np.ndarray:
    """Poisson lengths, zero among them, that add up to `total`: the last one is what was left. [spans]"""
    if not total:
        return np.zeros(0, dtype=np.int64)
    lengths = np.zeros(0, dtype=np.int64)
    while lengths.sum() < total:
        lengths = np.append(lengths, numbers.poisson(mean_length, 16 + int(2 * total / mean_length)))
    spans = int(np.searchsorted(np.cumsum(lengths), total)) + 1
    lengths = lengths[:spans]
    lengths[-1] -= lengths.sum() - total
    return lengths


def sentence_permutation(tokens: np.ndarray, sentences: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
    """The sentences in random order: A B C . D E . → D E . A B C . [n] → [n]

    Args:
        sentences: offsets of the sentences in `tokens`, [number + 1], the last one n.
    """
    order = numbers.permutation(len(sentences) - 1)
    lengths = np.diff(sentences)[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Token i of the result is as far into its sentence as the one it was.
    source = np.repeat(sentences[:-1][order] - offsets[:-1], lengths) + np.arange(len(tokens))
    return tokens[source]


def document_rotation(tokens: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
    """The document begun at a token chosen uniformly, its head behind its end: A B C . D E . → C . D E . A B [n] → [n]"""
    return np.roll(tokens, -int(numbers.integers(max(1, len(tokens)))))  # another noise may have left nothing


@dataclass(frozen=True)
class Noise:
    """Noises in the order in which they are applied, to the places of a document's tokens.

    Attributes:
        kinds: of NOISES. The sentences are those of the document, so only the first noise may permute them.
        share: of the tokens that are masked, deleted or in spans.
        mean_length: of the spans, λ.
    """

    kinds: Sequence[str]
    share: float
    mean_length: float

    def __call__(self, length: int, sentences: np.ndarray, numbers: np.random.Generator) -> np.ndarray:
        """The corrupted document: for each of its tokens its place in the original, or HIDDEN for a mask. [m]"""
        places = np.arange(length)
        for kind in self.kinds:
            if kind == "token_masking":
                places = token_masking(places, self.share, HIDDEN, numbers)
            elif kind == "token_deletion":
                places = token_deletion(places, self.share, numbers)
            elif kind == "text_infilling":
                places = text_infilling(places, self.share, self.mean_length, HIDDEN, numbers)
            elif kind == "sentence_permutation":
                places = sentence_permutation(places, sentences, numbers)
            else:
                places = document_rotation(places, numbers)
        return places
