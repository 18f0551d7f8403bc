"""GLM's blank infilling: the paper's figure 2, the same by a loop over tokens, and the distributions of what is cut out."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from recipes.pretraining.blanks import (
    IGNORED,
    Spans,
    allowed_attention,
    cut_blanks,
    cut_document,
    cut_sentences,
    infilling,
    poisson_lengths,
)

PAD, MARK, START, END = 0, 1, 2, 3


def test_the_example_of_the_papers_figure_2():
    """x1 … x6, of which x3 and x5 x6 are cut out and come in the order x5 x6, x3."""
    x1, x2, x3, x4, x5, x6 = tokens = range(11, 17)
    cut = np.asarray([[False, False, True, False, True, True]])
    begins = np.asarray([[False, False, True, False, True, False]])
    order = np.asarray([[1.0, 0.0, 0, 0, 0, 0]])
    made = infilling(
        np.asarray([tokens]), np.asarray([6]), Spans(cut, begins), order, np.asarray([MARK]), START, END, PAD
    )
    assert made.tokens.tolist() == [[x1, x2, MARK, x4, MARK, START, x5, x6, START, x3]]
    assert made.labels.tolist() == [[*[IGNORED] * 5, x5, x6, END, x3, END]]
    assert made.positions.tolist() == [[1, 2, 3, 4, 5, 5, 5, 5, 3, 3]]
    assert made.inside.tolist() == [[0, 0, 0, 0, 0, 1, 2, 3, 1, 2]]
    assert (made.first.tolist(), made.total.tolist()) == ([5], [10])
    allowed = allowed_attention(torch.from_numpy(made.first), torch.from_numpy(made.total), 10)[0, 0]
    picture = ["1111100000"] * 5 + ["1" * count + "0" * (10 - count) for count in range(6, 11)]
    assert ["".join("01"[look] for look in row) for row in allowed.tolist()] == picture


def by_hand(tokens: list[int], spans: list[tuple[int, int]], order: list[float], mark: int) -> dict[str, list[int]]:
    ids, positions, at = [], [], {}
    for place, token in enumerate(tokens):
        inside = [span for span in spans if span[0] <= place < span[1]]
        if not inside:
            ids.append(token)
        elif inside[0][0] == place:
            at[inside[0]] = len(ids) + 1
            ids.append(mark)
        else:
            continue
        positions.append(len(ids))
    first, inside_, labels = len(ids), [0] * len(ids), [IGNORED] * len(ids)
    for number in sorted(range(len(spans)), key=lambda number: order[number]):
        span = tokens[slice(*spans[number])]
        ids += [START, *span]
        labels += [*span, END]
        positions += [at[spans[number]]] * (len(span) + 1)
        inside_ += range(1, len(span) + 2)
    return {
        "tokens": ids,
        "labels": labels,
        "positions": positions,
        "inside": inside_,
        "first": first,
        "total": len(ids),
    }


def spans_of(cut: np.ndarray, begins: np.ndarray) -> list[tuple[int, int]]:
    found, begin = [], None
    for place in range(len(cut) + 1):
        ends = place == len(cut) or not cut[place] or begins[place]
        if begin is not None and ends:
            found.append((begin, place))
            begin = None
        if place < len(cut) and begins[place]:
            begin = place
    return found


@pytest.mark.parametrize("variant", ["blanks", "sentences", "document"])
def test_rows_are_those_of_a_loop_over_tokens(variant):
    rng = np.random.default_rng(0)
    rows, length = 60, 50
    lengths = rng.integers(1, length + 1, rows)
    lengths[:3] = (1, 2, length)
    tokens = rng.integers(10, 99, (rows, length))
    if variant == "blanks":
        spans = cut_blanks(lengths, rng.random((rows, 2, length)))
    elif variant == "sentences":
        numbers = np.cumsum(rng.random((rows, length)) < 0.2, axis=1)
        numbers -= numbers[:, :1]
        spans = cut_sentences(np.where(np.arange(length) < lengths[:, None], numbers, -1), rng.random((rows, length)))
    else:
        spans = cut_document(lengths, rng.random((rows, 3)), length)
    order, marks = rng.random((rows, length)), rng.integers(4, 7, rows)
    made = infilling(tokens, lengths, spans, order, marks, START, END, PAD)
    fillers = {"tokens": PAD, "labels": IGNORED, "positions": 0, "inside": 0}
    seen = 0
    for row in range(rows):
        found = spans_of(spans.cut[row], spans.begins[row])
        assert found, "something is cut out of every row"
        seen = max(seen, len(found))
        expected = by_hand(tokens[row, : lengths[row]].tolist(), found, order[row].tolist(), marks[row])
        assert (made.first[row], made.total[row]) == (expected["first"], expected["total"])
        for name, filler in fillers.items():
            padding = [filler] * (made.tokens.shape[1] - expected["total"])
            assert getattr(made, name)[row].tolist() == expected[name] + padding, name
    assert seen == 1 if variant == "document" else seen > 2


def test_the_mask_is_that_of_its_definition():
    cases = [(first, total) for first, total in itertools.product(range(1, 7), range(1, 9)) if first <= total]
    first, total = (torch.tensor(column) for column in zip(*cases))
    allowed = allowed_attention(first, total, 9)
    for row, (part_a, both) in enumerate(cases):
        for query, key in itertools.product(range(9), repeat=2):
            looks = key < part_a or (query >= part_a and key < query)
            expected = query == key or (looks and key < both and query < both)
            assert allowed[row, 0, query, key].item() == expected


# --------------------------------------------------------------------------------------------------- what is cut out
def test_lengths_are_poissons_without_the_empty_ones():
    lengths = poisson_lengths(np.random.default_rng(0).random(200_000))
    weights = [3.0**k / float(np.prod(np.arange(1.0, k + 1))) for k in range(1, 12)]
    scale = np.exp(3.0) - 1
    for length, weight in enumerate(weights, 1):
        share = weight / scale
        assert abs((lengths == length).mean() - share) < 4.5 * (share * (1 - share) / 200_000) ** 0.5
    assert lengths.min() == 1
    assert lengths.mean() == pytest.approx(3 / (1 - np.exp(-3.0)), abs=0.02)


def test_spans_are_drawn_until_they_hold_fifteen_percent():
    rng = np.random.default_rng(1)
    rows, length = 3000, 200
    spans = cut_blanks(np.full(rows, length), rng.random((rows, 2, length)))
    sizes = [[end - begin for begin, end in spans_of(*pair)] for pair in zip(spans.cut, spans.begins)]
    cut = spans.cut.sum(1)
    assert (cut >= 30).all()
    assert all(sum(each) - max(each) < 30 for each in sizes), "without its last span a row would have too few"
    assert cut.mean() < 33
    flat = [size for each in sizes for size in each]
    # A row stops with the span that reaches the share, and long ones reach it more often: a little above the mean.
    assert 3.157 - 0.05 < np.mean(flat) < 3.157 * 1.1
    assert abs(spans.cut[:, 20:-20].mean(0) - cut.mean() / length).max() < 0.035, "anywhere alike"
    assert spans.cut[:, 0].any() and spans.cut[:, -1].any(), "at both ends too"


def test_every_place_is_equally_likely():
    """Rows of six tokens with one span of one token: at each of six places."""
    rows = 30_000
    rng = np.random.default_rng(2)
    numbers = rng.random((rows, 2, 6))
    numbers[:, 0] = 0.0  # spans of one token
    found = Counter(np.nonzero(cut_blanks(np.full(rows, 6), numbers).cut)[1].tolist())
    assert sorted(found) == list(range(6))
    assert max(abs(count - rows / 6) for count in found.values()) < 4.5 * (rows * 5 / 36) ** 0.5


def test_no_row_is_cut_out_as_a_whole_and_spans_do_not_touch():
    rng = np.random.default_rng(3)
    lengths = rng.integers(2, 40, 5000)
    spans = cut_blanks(lengths, rng.random((5000, 2, 40)))
    assert (spans.cut.sum(1) < lengths).all()
    assert not (spans.cut & (np.arange(40) >= lengths[:, None])).any()
    assert (spans.begins == (spans.cut & ~np.pad(spans.cut, ((0, 0), (1, 0)))[:, :-1])).all()


def test_sentences_are_cut_out_whole_until_they_hold_fifteen_percent():
    rng = np.random.default_rng(4)
    sentences = np.cumsum(rng.random((500, 80)) < 0.12, axis=1)
    sentences -= sentences[:, :1]
    spans = cut_sentences(sentences, rng.random((500, 80)))
    for row in range(500):
        numbers, sizes = np.unique(sentences[row], return_counts=True)
        taken = set(sentences[row][spans.cut[row]].tolist())
        chosen = [size for number, size in zip(numbers.tolist(), sizes) if number in taken]
        assert spans.cut[row].sum() == sum(chosen) >= 12
        assert sum(chosen) - min(chosen) < 12 or sum(sorted(chosen)[:-1]) < 12
        assert spans.begins[row].sum() == len(taken)


def test_half_to_all_of_a_document_at_its_end_or_anywhere():
    rng = np.random.default_rng(5)
    for length in (1, 2, 9, 10):
        spans = cut_document(np.full(8000, length), rng.random((8000, 3)), 12)
        sizes = spans.cut.sum(1)
        possible = range(max(1, (length + 1) // 2), length + 1)
        assert set(sizes.tolist()) == set(possible)
        share = 1 / len(possible)
        for size in possible:
            assert abs((sizes == size).mean() - share) <= 4.5 * (share * (1 - share) / 8000) ** 0.5
            ends = spans.cut[sizes == size, length - 1]
            at_end = 0.5 + 0.5 / (length - size + 1)
            assert abs(ends.mean() - at_end) <= 4.5 * (at_end * (1 - at_end) / len(ends)) ** 0.5
        assert not spans.cut[:, length:].any()
        assert (spans.begins.sum(1) == 1).all()
        assert all(len(spans_of(*pair)) == 1 for pair in zip(spans.cut[:200], spans.begins[:200]))
