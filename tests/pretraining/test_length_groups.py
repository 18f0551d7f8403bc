"""Batches of rows of similar length: every row once, the steps in random order, the same order for the same epoch."""

import numpy as np
import pytest

from recipes.pretraining.length_groups import LengthGroupedSampler

SIZE = 8


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 100, 1003)


def test_every_row_once_and_what_is_no_full_step_at_the_end(lengths):
    order = list(LengthGroupedSampler(lengths, SIZE, seed=0))
    assert sorted(order) == list(range(1003))


def test_rows_of_a_step_are_alike(lengths):
    order = np.asarray(list(LengthGroupedSampler(lengths, SIZE, seed=0)))[:1000].reshape(-1, SIZE)
    spread = np.ptp(lengths[order], axis=1)
    assert spread.mean() < 5
    means = lengths[order].mean(1)
    # Random order of the steps: the correlation of neighbours is that of noise, 1/sqrt(125).
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 4 / 125**0.5


def test_the_order_depends_on_seed_and_epoch_alone(lengths):
    sampler = LengthGroupedSampler(lengths, SIZE, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = LengthGroupedSampler(lengths, SIZE, seed=0)
    again.set_epoch(1)
    assert list(again) == second
    assert list(LengthGroupedSampler(lengths, SIZE, seed=1)) != first


@pytest.mark.parametrize("rows", [1, 7, 8, 9])
def test_few_rows(rows):
    assert sorted(LengthGroupedSampler(np.arange(rows), SIZE, seed=0)) == list(range(rows))
