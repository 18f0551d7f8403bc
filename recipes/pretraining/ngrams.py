"""Baselines that a language model has to beat: unigram, bigram and trigram counts on the same tokens."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils.data import Dataset

from recipes.core import UserError
from recipes.pretraining.corpus import TokenFile

BLOCK = 2**20  # tokens that are counted at once
MOST_TESTED = 2**22


def check_ngram_tokens(number: int) -> None:
    """Raise a UserError for a number of tokens that no baseline can count."""
    if number < 1:
        raise UserError(f"'ngram_tokens' must be at least 1, not {number}")


def ngram_losses(
    train: np.ndarray | TokenFile,
    test: np.ndarray | TokenFile,
    vocab_size: int,
    most: int | None = None,
    places: np.ndarray | None = None,
) -> dict[str, float]:
    """Mean negative log-likelihood (nats a token) of `test`, of its first four million tokens, under counts of `train`.

    The bigram is interpolated with the unigram, the trigram with both (Jelinek & Mercer 1980); the weights come from
    ten EM steps on the first half of `test`, which favours the baseline. Memory does not grow with `train`.

    Args:
        train, test: token ids, [n].
        vocab_size: number of ids.
        most: count only so many tokens of `train`, from the first on.
        places: the tokens of `test` whose loss is asked for, [n], bool; the two first never count.
    """
    test, length = test[:MOST_TESTED], min(len(train), most or len(train))
    counts = partial(_counts, train, length, vocab_size)
    unigram = (counts(test[2:], 1) + 1.0) / (length + vocab_size)
    bigram, trigram = (_conditional(counts, test, order, vocab_size) for order in (2, 3))
    parts = np.stack([unigram, bigram[1:], trigram])
    places = np.ones(len(unigram), bool) if places is None else places[: len(test)][2:]
    names = ("unigram", "bigram", "trigram")
    return {name: float(-np.log(_mixed(parts[:models])[places]).mean()) for models, name in enumerate(names, 1)}


def _mixed(parts: np.ndarray) -> np.ndarray:
    """The mixture, [n], of conditional probabilities, [models, n], with the best weights on the first half."""
    weights = np.full(len(parts), 1 / len(parts))
    tuning = parts[:, : parts.shape[1] // 2]
    for _ in range(10):
        share = weights[:, None] * tuning
        weights = (share / share.sum(0)).mean(1)
    return weights @ parts


def _conditional(counts: Callable[..., np.ndarray], test: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """count(context, token) / count(context) for each position of `test` that has a whole context; 0 if unseen."""
    whole = counts(_keys(test, order, vocab_size), order)
    context = counts(_keys(test[:-1], order - 1, vocab_size), order - 1)
    return np.divide(whole, context, out=np.zeros(len(whole)), where=context > 0)


def _keys(tokens: np.ndarray, width: int, vocab_size: int) -> np.ndarray:
    """One number for each run of `width` tokens, [n - width + 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), width)
    return windows @ (vocab_size ** np.arange(width - 1, -1, -1, dtype=np.int64))


def _counts(train: np.ndarray | TokenFile, length: int, vocab_size: int, wanted: np.ndarray, width: int) -> np.ndarray:
    """How often each of the wanted keys, [n], occurs in the first `length` tokens of `train`."""
    values, place = np.unique(wanted.astype(np.int64), return_inverse=True)
    found = np.zeros(len(values), dtype=np.int64)
    for start in range(0, length - width + 1, BLOCK):
        keys = _keys(train[start : min(start + BLOCK + width - 1, length)], width, vocab_size)
        near = np.searchsorted(values, keys).clip(max=len(values) - 1)
        found += np.bincount(near[values[near] == keys], minlength=len(values))
    return found[place]


def label_stream(rows: Dataset, collator: Callable[[list], dict[str, torch.Tensor]], most: int) -> np.ndarray:
    """What is to be written for each row, one after another, at most about `most` tokens: what n-grams of it count."""
    parts, count = [], 0
    for begin in range(0, len(rows), 64):
        labels = collator([rows[row] for row in range(begin, min(begin + 64, len(rows)))])["labels"]
        parts.append(labels[labels != -100].numpy())
        count += len(parts[-1])
        if count >= most:
            break
    return np.concatenate(parts)
