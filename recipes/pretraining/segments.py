"""Rows of a masked language model: BERT's pairs of segments, or RoBERTa's full sentences without pairs.

Paper: Devlin et al. 2019, BERT, arXiv 1810.04805, section 3.1 (task 2) and appendix A.2;
       Liu et al. 2019, RoBERTa, arXiv 1907.11692, section 4.2 (FULL-SENTENCES).
"""

import itertools
from array import array
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from recipes.core import UserError
from recipes.pretraining.drawn_rows import RangeRows
from recipes.pretraining.sentences import Corpus


def sentence_pairs(
    corpus: Corpus, max_tokens: int, short_share: float, numbers: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Segments A and B of whole sentences: B is what follows A or, for half of the pairs, from another document.

    As in BERT's release a run of sentences is cut at random into A and B, what a random B displaced is used later, and
    the longer segment loses tokens at either end until the pair fits. Unlike there a single sentence at the end of a
    document is left out: it could only be paired with a random one, so more than half of the pairs would be random.

    Args:
        max_tokens: tokens of both segments together.
        short_share: of the documents, whose pairs are of a random shorter length.

    Returns:
        Ranges of `corpus.tokens`, [pairs, 2, 2] (segment; begin and end), and 1 where B is random, [pairs].

    Raises:
        UserError: a single document, or none with two sentences.
    """
    if len(corpus) < 2:
        raise UserError("next_sentence_prediction: needs at least two documents, one to draw random sentences from")
    offsets, documents = corpus.sentences, corpus.documents

    def reach(first: int, last: int, tokens: int) -> int:
        """The end of the shortest run of sentences from `first` that holds so many tokens, at most `last`."""
        return min(int(np.searchsorted(offsets, offsets[first] + tokens)), last)

    pairs, labels = array("q"), array("b")
    for document in range(len(corpus)):
        first, last = documents[document], documents[document + 1]
        target = max_tokens if numbers.random() >= short_share else numbers.integers(2, max_tokens + 1)
        while last - first >= 2:
            end = max(reach(first, last, target), first + 2)
            cut = numbers.integers(first + 1, end)
            a, is_random = (offsets[first], offsets[cut]), numbers.random() < 0.5
            if is_random:
                other = numbers.integers(len(corpus) - 1)
                other += other >= document
                begin = numbers.integers(documents[other], documents[other + 1])
                stop = reach(begin, documents[other + 1], max(1, target - (a[1] - a[0])))
                b, first = (offsets[begin], offsets[stop]), cut
            else:
                b, first = (offsets[cut], offsets[end]), end
            pairs.extend(_cut_to_fit(a, b, target, numbers))
            labels.append(is_random)
    if not pairs:
        raise UserError("next_sentence_prediction: no document has two sentences; set it to false")
    return np.asarray(pairs).reshape(-1, 2, 2), np.asarray(labels, dtype=np.int64)


def _cut_to_fit(a: tuple[int, int], b: tuple[int, int], tokens: int, numbers: np.random.Generator) -> list[int]:
    """Begin and end of A and of B after the longer one lost tokens, at its front or back by a fair coin, until they fit."""
    lengths = a[1] - a[0], b[1] - b[0]
    half = tokens // 2
    kept_b = max(half, tokens - lengths[0])  # equally long ones end as equally long, A with the odd token
    kept_a = max(tokens - half, tokens - lengths[1])
    cut = []
    for (begin, end), kept in ((a, kept_a), (b, kept_b)):
        dropped = max(0, end - begin - kept)
        front = numbers.binomial(dropped, 0.5)
        cut += [begin + front, end - (dropped - front)]
    return cut


def full_sentences(corpus: Corpus, max_tokens: int, across: bool = True) -> np.ndarray:
    """Rows of as many consecutive sentences as fit; a sentence that is longer than a row is cut into rows.

    Args:
        across: whether a row may go on in the next document.

    Returns:
        Ranges of `corpus.tokens`, [rows, 1, 2].
    """
    rows, offsets = [], corpus.sentences
    bounds = corpus.documents[[0, -1]] if across else corpus.documents
    for first, last in itertools.pairwise(bounds.tolist()):
        while first < last:
            end = int(np.searchsorted(offsets, offsets[first] + max_tokens, side="right")) - 1
            end = max(min(end, last), first + 1)
            stop = offsets[end]
            rows += [(begin, min(begin + max_tokens, stop)) for begin in range(offsets[first], stop, max_tokens)]
            first = end
    return np.asarray(rows)[:, None]


class SegmentDataset(RangeRows):
    """Items for `MaskingCollator`: `[CLS] A [SEP] B [SEP]` or `[CLS] sentences [SEP]`, and what its mask depends on.

    Args:
        max_length: tokens of a row with its special tokens.
        pairs: whether rows are pairs; else full sentences.
        short_share: see `sentence_pairs`.
        duplicates: how often the documents are made into rows, each time into other pairs and with other masks.
        dynamic, split: see `DrawnRows`.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        pairs: bool,
        short_share: float = 0.1,
        duplicates: int = 1,
        dynamic: bool = False,
        split: int = 0,
        seed: int = 0,
    ):
        if pairs:
            made = [
                sentence_pairs(corpus, max_length - 3, short_share, np.random.default_rng((seed, split, number)))
                for number in range(duplicates)
            ]
            ranges, self.labels = (np.concatenate(parts) for parts in zip(*made))
        else:
            ranges, self.labels = np.tile(full_sentences(corpus, max_length - 2), (duplicates, 1, 1)), None
        super().__init__(ranges, split, dynamic)
        self.corpus = corpus
        self.begin, self.end = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.special = np.asarray(tokenizer.all_special_ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        tokens, starts, kinds = [[self.begin]], [[True]], [[0]]
        for kind, (begin, end) in enumerate(self.ranges[row]):
            if end > begin and self.corpus.tokens[end - 1] == self.end:
                end -= 1  # a separator after the last document of a row, where the row's own end will stand
            length = end - begin
            tokens += [self.corpus.tokens[begin:end], [self.end]]
            part = np.ones(length, bool) if self.corpus.word_starts is None else self.corpus.word_starts[begin:end]
            starts += [[True][:length], part[1:], [True]]  # a word whose front was cut off is one of its own
            kinds += [[kind] * (length + 1)]
        ids = np.concatenate(tokens).astype(np.int64)
        item = {
            "input_ids": ids,
            "words": np.where(np.isin(ids, self.special), -1, np.cumsum(np.concatenate(starts)) - 1),
            "draw": self.draw(row),
        }
        if self.labels is not None:
            item |= {"token_type_ids": np.concatenate(kinds), "next_sentence_label": int(self.labels[row])}
        return item
