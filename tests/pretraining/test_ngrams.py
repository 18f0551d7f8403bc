"""The n-gram baselines against counts made by hand, one position at a time."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from recipes.pretraining.ngrams import ngram_losses


def by_hand(train: list[int], test: list[int], vocab_size: int) -> dict[str, float]:
    """The same definitions with loops and dictionaries."""
    one = Counter(train)
    two, three = Counter(itertools.pairwise(train)), Counter(zip(train, train[1:], train[2:]))

    parts = []
    for a, b, c in zip(test, test[1:], test[2:]):
        unigram = (one[c] + 1) / (len(train) + vocab_size)
        bigram = two[b, c] / one[b] if one[b] else 0.0
        trigram = three[a, b, c] / two[a, b] if two[a, b] else 0.0
        parts.append((unigram, bigram, trigram))

    weights = [1 / 3] * 3
    for _ in range(10):
        shares = [0.0] * 3
        for part in parts[: len(parts) // 2]:
            total = sum(weight * p for weight, p in zip(weights, part))
            for index in range(3):
                shares[index] += weights[index] * part[index] / total
        weights = [share / sum(shares) for share in shares]
    return {
        "unigram": -sum(math.log(part[0]) for part in parts) / len(parts),
        "trigram": -sum(math.log(sum(w * p for w, p in zip(weights, part))) for part in parts) / len(parts),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("vocab_size", "size"), [(3, 50), (7, 400), (50, 300), (2048, 500)])
def test_losses_are_those_of_brute_force(seed, vocab_size, size):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(vocab_size, 0.3))
    train, test = (rng.choice(vocab_size, n, p=weights).astype(np.int32) for n in (size, size // 2))
    found = ngram_losses(train, test, vocab_size)
    expected = by_hand(train.tolist(), test.tolist(), vocab_size)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_large_vocabulary_does_not_overflow():
    train = np.array([31_999, 31_998, 31_997, 31_996] * 20, dtype=np.int32)
    assert ngram_losses(train, train[:20], 32_000) == pytest.approx(
        by_hand(train.tolist(), train[:20].tolist(), 32_000)
    )


def test_what_repeats_is_cheap_for_three_tokens_and_not_for_one():
    text = np.array([0, 0, 1, 0, 1, 1] * 100, dtype=np.int32)  # two tokens decide the next, one does not
    losses = ngram_losses(text, text, 2)
    assert losses["unigram"] == pytest.approx(math.log(2), rel=1e-3)
    assert losses["trigram"] < losses["unigram"]
