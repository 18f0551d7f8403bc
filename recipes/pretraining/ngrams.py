"""Baselines that a language model has to beat: unigram and interpolated trigram counts on the same tokens."""

import numpy as np


def ngram_losses(train: np.ndarray, test: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Mean negative log-likelihood (nats a token) of `test` under counts of `train`.

    The trigram is interpolated with bigram and unigram (Jelinek & Mercer 1980); the weights come from ten EM steps on
    the first half of `test`, which favours the baseline.

    Args:
        train, test: token ids, [n].
        vocab_size: number of ids.
    """
    unigram = (np.bincount(train, minlength=vocab_size) + 1.0) / (len(train) + vocab_size)
    bigram = _conditional(train, test, 2, vocab_size)
    trigram = _conditional(train, test, 3, vocab_size)
    ones = unigram[test[2:]]
    parts = np.stack([ones, bigram[1:], trigram])
    weights = np.full(3, 1 / 3)
    tuning = parts[:, : parts.shape[1] // 2]
    for _ in range(10):
        share = weights[:, None] * tuning
        weights = (share / share.sum(0)).mean(1)
    return {"unigram": float(-np.log(ones).mean()), "trigram": float(-np.log(weights @ parts).mean())}


def _conditional(train: np.ndarray, test: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """count(context, token) / count(context) for each position of `test` that has a whole context; 0 if unseen."""

    def keys(tokens: np.ndarray, width: int) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), width)
        return windows @ (vocab_size ** np.arange(width - 1, -1, -1, dtype=np.int64))

    def counts(width: int, wanted: np.ndarray) -> np.ndarray:
        values, number = np.unique(keys(train, width), return_counts=True)
        found = np.searchsorted(values, wanted).clip(max=len(values) - 1)
        return np.where(values[found] == wanted, number[found], 0)

    whole = counts(order, keys(test, order))
    context = counts(order - 1, keys(test[:-1], order - 1))
    return np.divide(whole, context, out=np.zeros(len(whole)), where=context > 0)
