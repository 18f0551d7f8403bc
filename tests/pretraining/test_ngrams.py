"""The n-gram baselines against counts made by hand, one position at a time."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from recipes.pretraining import ngrams
from recipes.pretraining.corpus import TokenFile
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
    return {name: mixed(parts, models) for models, name in enumerate(("unigram", "bigram", "trigram"), 1)}


def mixed(parts: list[tuple], models: int) -> float:
    weights = [1 / models] * models
    for _ in range(10):
        shares = [0.0] * models
        for part in parts[: len(parts) // 2]:
            total = sum(weight * p for weight, p in zip(weights, part))
            for index in range(models):
                shares[index] += weights[index] * part[index] / total
        weights = [share / sum(shares) for share in shares]
    return -sum(math.log(sum(w * p for w, p in zip(weights, part))) for part in parts) / len(parts)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("vocab_size", "size"), [(3, 50), (7, 400), (50, 300), (2048, 500)])
def test_losses_are_those_of_brute_force(seed, vocab_size, size, monkeypatch):
    monkeypatch.setattr(ngrams, "BLOCK", 64)  # the counts of several blocks are summed
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(vocab_size, 0.3))
    train, test = (rng.choice(vocab_size, n, p=weights).astype(np.int32) for n in (size, size // 2))
    found = ngram_losses(train, test, vocab_size)
    expected = by_hand(train.tolist(), test.tolist(), vocab_size)
    assert found == pytest.approx(expected, rel=1e-9)


def test_a_file_and_only_the_first_tokens_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ngrams, "BLOCK", 64)
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 9, 500).astype(np.uint16), rng.integers(0, 9, 100).astype(np.uint16)
    train.tofile(tmp_path / "train.bin")
    file = TokenFile(tmp_path / "train.bin", "uint16", len(train))
    assert ngram_losses(file, test, 9) == ngram_losses(train, test, 9)
    for most in (63, 64, 65, 200):
        expected = by_hand(train[:most].tolist(), test.tolist(), 9)
        assert ngram_losses(file, test, 9, most) == pytest.approx(expected, rel=1e-9)


def test_the_loss_of_some_places():
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 5, 300), rng.integers(0, 5, 80)
    places = rng.random(80) < 0.3
    one, rest = (ngram_losses(train, test, 5, places=each) for each in (places, ~places))
    share = places[2:].mean()
    for name, loss in ngram_losses(train, test, 5).items():
        assert share * one[name] + (1 - share) * rest[name] == pytest.approx(loss)


def test_a_large_vocabulary_does_not_overflow():
    train = np.array([31_999, 31_998, 31_997, 31_996] * 20, dtype=np.int32)
    assert ngram_losses(train, train[:20], 32_000) == pytest.approx(
        by_hand(train.tolist(), train[:20].tolist(), 32_000)
    )


def test_what_repeats_is_cheap_for_three_tokens_and_not_for_one():
    text = np.array([0, 0, 1, 0, 1, 1] * 100, dtype=np.int32)  # two tokens decide the next, one does not
    losses = ngram_losses(text, text, 2)
    assert losses["unigram"] == pytest.approx(math.log(2), rel=1e-3)
    assert losses["trigram"] < losses["bigram"] < losses["unigram"]
