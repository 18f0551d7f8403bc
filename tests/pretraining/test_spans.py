"""T5's span corruption: the paper's figure, its proportions, and a loop over tokens that does the same."""

import itertools
from collections import Counter

import numpy as np
import pytest

from recipes.core import UserError
from recipes.pretraining.spans import corrupt, noise_counts, noise_mask, raw_length, segment_lengths, shift_right

DENSITY, MEAN = 0.15, 3.0


def test_the_example_of_the_papers_figure_2():
    text = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    inputs = ["Thank", "you", "<X>", "me", "to", "your", "party", "<Y>", "week", ".", "</s>"]
    targets = ["<X>", "for", "inviting", "<Y>", "last", "<Z>", "</s>"]
    words = [*text, "<X>", "<Y>", "<Z>", "</s>"]
    number = {word: index for index, word in enumerate(words)}
    noise = np.asarray([[word in ("for", "inviting", "last") for word in text]])
    sentinels = np.asarray([number[name] for name in ("<X>", "<Y>", "<Z>")])
    found = corrupt(np.asarray([[number[word] for word in text]]), noise, sentinels, number["</s>"])
    assert [[words[token] for token in ids[0]] for ids in found] == [inputs, targets]


def by_hand(tokens: list[int], noise: list[bool], sentinels: list[int], eos: int) -> tuple[list[int], list[int]]:
    inputs, targets, spans = [], [], 0
    for place, token in enumerate(tokens):
        if not noise[place]:
            inputs.append(token)
            continue
        if place == 0 or not noise[place - 1]:
            inputs.append(sentinels[spans])
            targets.append(sentinels[spans])
            spans += 1
        targets.append(token)
    return [*inputs, eos], [*targets, sentinels[spans], eos]


@pytest.mark.parametrize("length", [12, 57, 120])
def test_inputs_and_targets_are_those_of_a_loop_over_tokens(length):
    rng = np.random.default_rng(length)
    tokens = rng.integers(200, 300, (40, length))
    noise = noise_mask(length, DENSITY, MEAN, rng.random((40, 2, length)))
    sentinels = np.arange(100, 0, -1)
    inputs, targets = corrupt(tokens, noise, sentinels, 1)
    for row in range(40):
        expected = by_hand(tokens[row].tolist(), noise[row].tolist(), sentinels.tolist(), 1)
        assert (inputs[row].tolist(), targets[row].tolist()) == expected


def test_nothing_is_lost():
    """The targets put back into the inputs are the text."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(200, 300, (20, 64))
    noise = noise_mask(64, 0.3, 2.0, rng.random((20, 2, 64)))
    inputs, targets = corrupt(tokens, noise, np.arange(100), 199)
    for row in range(20):
        spans, put_back = {}, []
        for token in targets[row]:
            if token < 100:
                spans[token] = current = []
            else:
                current.append(token)
        for token in inputs[row]:
            put_back += spans[token] if token < 100 else [token]
        assert put_back == [*tokens[row], 199]


def test_the_lengths_are_those_of_t5s_release():
    """568 tokens become inputs of 512: Raffel et al. 2020, section 3.1.4, with the lengths that their code computes."""
    assert raw_length(512, DENSITY, MEAN) == 568
    assert noise_counts(568, DENSITY, MEAN) == (85, 28)


@pytest.mark.parametrize(
    ("input_length", "density", "mean"), itertools.product([8, 64, 100, 512], [0.1, 0.15, 0.5], [2, 3, 10])
)
def test_inputs_fill_the_length_or_the_next_longer_text_would_not_fit(input_length, density, mean):
    def corrupted(length: int) -> int:
        noise, spans = noise_counts(length, density, mean)
        return length - noise + spans + 1

    length = raw_length(input_length, density, mean)
    assert corrupted(length) <= input_length < corrupted(length + 1)
    if (density, mean) == (DENSITY, MEAN):
        assert corrupted(length) == input_length


def test_too_short_an_input_is_refused():
    with pytest.raises(UserError, match="input_length"):
        raw_length(2, DENSITY, MEAN)


def test_every_cut_is_equally_likely():
    rng, rows = np.random.default_rng(0), 60_000
    found = Counter(map(tuple, segment_lengths(6, 3, rng.random((rows, 9)))))
    every = [cut for cut in itertools.product(range(1, 5), repeat=3) if sum(cut) == 6]
    assert set(found) == set(every)
    expected = rows / len(every)
    chi_squared = sum((found[cut] - expected) ** 2 / expected for cut in every)
    assert chi_squared < 27.9, "nine degrees of freedom, one in a thousand"


def test_fifteen_percent_in_spans_of_mean_three():
    rng, rows, length = np.random.default_rng(1), 4000, 568
    noise = noise_mask(length, DENSITY, MEAN, rng.random((rows, 2, length)))
    assert (noise.sum(1) == 85).all()
    begins = noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]
    assert (begins.sum(1) == 28).all()
    assert noise.mean() == pytest.approx(0.15, abs=0.001)
    assert noise.sum() / begins.sum() == pytest.approx(3.0, abs=0.05)
    assert not noise[:, 0].any(), "a kept span comes first"
    # But for the ends a place is cut out as often as any other: four standard deviations.
    middle = noise[:, 20:-20].mean(0)
    assert np.abs(middle - 0.15).max() < 4.5 * (0.15 * 0.85 / rows) ** 0.5
    # Spans of one token: C(noise - 2, spans - 2) of C(noise - 1, spans - 1) cuts begin with one.
    lengths = np.diff(np.flatnonzero(np.diff(np.pad(noise, ((0, 0), (1, 1))).astype(int).ravel())))[::2]
    assert (lengths == 1).mean() == pytest.approx(27 / 84, abs=0.005)


def test_the_decoder_is_given_what_it_has_to_write_one_place_later():
    import torch

    targets = torch.tensor([[7, 8, 1], [9, 1, -100]])
    assert shift_right(targets, 0).tolist() == [[0, 7, 8], [0, 9, 1]]


@pytest.fixture
def collator(tiny):
    from transformers import AutoTokenizer

    from recipes.pretraining.spans import SpanCorruption

    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    with pytest.raises(UserError, match="has 0 sentinels"):
        SpanCorruption(tokenizer, 57, DENSITY, MEAN, seed=0)
    tokenizer.add_special_tokens({"extra_special_tokens": [f"<extra_id_{number}>" for number in range(4)]})
    return SpanCorruption(tokenizer, 57, DENSITY, MEAN, seed=0)


def test_a_rows_noise_depends_on_the_seed_the_epoch_and_the_row_alone(collator):
    import torch

    from recipes.pretraining.corpus import Tokens
    from recipes.pretraining.token_rows import TokenRows

    rows = TokenRows(Tokens(np.arange(57 * 6) % 250 + 10, 0), 57)
    batch = collator([rows[4], rows[1], rows[5]])
    again = collator([rows[1]])
    for name in batch:
        assert torch.equal(batch[name][1], again[name][0])
    rows.epoch.fill_(1)
    assert not torch.equal(collator([rows[1]])["input_ids"], again["input_ids"])
    other = TokenRows(Tokens(rows.ids, 0), 57, split=1)
    assert not torch.equal(collator([other[1]])["input_ids"], again["input_ids"])
    collator.seed = 1
    rows.epoch.fill_(0)
    assert not torch.equal(collator([rows[1]])["input_ids"], again["input_ids"])


def test_a_corpus_shorter_than_a_row_is_refused():
    from recipes.pretraining.corpus import Tokens
    from recipes.pretraining.token_rows import TokenRows

    with pytest.raises(UserError, match="do not fill one row of 57"):
        TokenRows(Tokens(np.arange(56), 0), 57)
