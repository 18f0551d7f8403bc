"""GLM's blank infilling: what is cut out of a text, the row that is made of it, who looks at whom, and the positions.

Paper: Du et al. 2022, GLM: General Language Model Pretraining with Autoregressive Blank Infilling, arXiv 2103.10360,
       sections 2.1 and 2.2, figure 2.
"""

from dataclasses import dataclass

import numpy as np
import torch

from recipes.core.losses import IGNORED

VARIANTS = ("blanks", "sentences", "document")
BLANKS, SENTENCES, DOCUMENT = range(3)
MARKS = ("[MASK]", "[sMASK]", "[gMASK]")  # what stands for a span, by variant
START, END = "<|startofpiece|>", "<|endofpiece|>"
SHARE = 0.15  # of the tokens are cut out, at least
MEAN = 3.0  # of the Poisson distribution of lengths


@dataclass(frozen=True)
class Spans:
    """What is cut out of each row: tokens, [rows, length], and those of them that begin a span, [rows, length], bool."""

    cut: np.ndarray
    begins: np.ndarray


def poisson_lengths(numbers: np.ndarray, mean: float = MEAN) -> np.ndarray:
    """Lengths of spans: Poisson's, without the empty ones. `numbers` are uniform, of any shape."""
    longest = 20 + int(6 * mean)
    counts = np.arange(1, longest)
    weights = np.exp(counts * np.log(mean) - np.cumsum(np.log(counts)))
    cumulative = np.cumsum(weights / weights.sum())
    return np.searchsorted(cumulative, numbers.clip(max=cumulative[-2])) + 1


def cut_blanks(lengths: np.ndarray, numbers: np.ndarray, share: float = SHARE, mean: float = MEAN) -> Spans:
    """Short spans, drawn until they hold `share` of a row's tokens, at places of which each choice is equally likely.

    At least one token is kept between two spans.

    Args:
        lengths: tokens of each row, [rows].
        numbers: uniform random numbers, [rows, 2, longest row].
    """
    rows, longest = numbers.shape[0], numbers.shape[2]
    places = np.arange(longest)
    drawn = poisson_lengths(numbers[:, 0], mean)
    before = np.cumsum(drawn, axis=1) - drawn
    # The last span may go beyond the share; one token is kept for each span, and no row is cut out as a whole.
    wanted = np.maximum(1, np.ceil(lengths * share)).astype(np.int64)[:, None]
    most = np.maximum(1, lengths // 2)[:, None]
    taken = (before < wanted) & (places < lengths[:, None])
    drawn = np.minimum(drawn, most - before).clip(min=0) * taken
    spans = (drawn > 0).sum(1, keepdims=True)
    kept = lengths[:, None] - drawn.sum(1, keepdims=True)
    # Each span stands before one of the kept tokens or at the end: so many of these slots, one span each.
    slot_numbers = np.where(places <= kept, numbers[:, 1], 2.0)
    slots = np.argsort(np.argsort(slot_numbers, axis=1), axis=1) < spans
    ends = np.concatenate([np.zeros((rows, 1), dtype=np.int64), np.cumsum(drawn, axis=1)], axis=1)
    spans_until = np.cumsum(slots, axis=1)  # spans that stand before the kept token of each place
    moved = places + np.take_along_axis(ends, spans_until, axis=1)
    is_kept = places < kept
    cut = places < lengths[:, None]
    row_index = np.broadcast_to(np.arange(rows)[:, None], cut.shape)
    cut[row_index[is_kept], moved[is_kept]] = False
    begins = cut & ~np.pad(cut, ((0, 0), (1, 0)))[:, :-1]
    return Spans(cut, begins)


def cut_sentences(sentences: np.ndarray, numbers: np.ndarray, share: float = SHARE) -> Spans:
    """Whole sentences in random order, until they hold `share` of a row's tokens; each is a span of its own.

    Args:
        sentences: for each token the number of its sentence in its row, from 0; -1 for padding. [rows, length]
        numbers: uniform random numbers, [rows, length]; sentence s is placed by the one in column s.
    """
    real = sentences >= 0
    lengths = np.zeros(sentences.shape, dtype=np.int64)
    np.add.at(lengths, (np.nonzero(real)[0], sentences[real]), 1)
    order = np.argsort(np.where(lengths > 0, numbers, 2.0), axis=1)
    sizes = np.take_along_axis(lengths, order, axis=1)
    wanted = np.ceil(real.sum(1, keepdims=True) * share)
    taken = np.zeros(sentences.shape, dtype=bool)
    np.put_along_axis(taken, order, (np.cumsum(sizes, axis=1) - sizes < wanted) & (sizes > 0), axis=1)
    cut = real & np.take_along_axis(taken, np.where(real, sentences, 0), axis=1)
    begins = cut & (np.diff(sentences, axis=1, prepend=-2) != 0)
    return Spans(cut, begins)


def cut_document(lengths: np.ndarray, numbers: np.ndarray, longest: int) -> Spans:
    """One span of 50 % to 100 % of the tokens, each length equally likely: at the end, or half of the times anywhere.

    The paper does not say where the span lies; half and half is what its release does.

    Args:
        numbers: uniform random numbers, [rows, 3].
        longest: columns of the result.
    """
    least = np.maximum(1, (lengths + 1) // 2)
    size = least + np.floor(numbers[:, 0] * (lengths - least + 1)).astype(np.int64)
    anywhere = np.floor(numbers[:, 2] * (lengths - size + 1)).astype(np.int64)
    begin = np.where(numbers[:, 1] < 0.5, lengths - size, anywhere)[:, None]
    places = np.arange(longest)
    cut = (places >= begin) & (places < begin + size[:, None])
    return Spans(cut, np.broadcast_to(places, cut.shape) == begin)


@dataclass(frozen=True)
class Infilling:
    """Rows of part A and part B, padded on the right.

    Attributes:
        tokens: part A, in which a mark stands for each span, then each span after a START, [rows, longest].
        labels: the next token of a span, END after its last, [rows, longest]; IGNORED elsewhere.
        positions: place in part A, from 1; in part B that of the span's mark, [rows, longest].
        inside: 0 in part A; in part B the place in the span, START's being 1, [rows, longest].
        first: tokens of part A, [rows].
        total: tokens of both parts, [rows].
    """

    tokens: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    inside: np.ndarray
    first: np.ndarray
    total: np.ndarray


def infilling(
    tokens: np.ndarray,
    lengths: np.ndarray,
    spans: Spans,
    order: np.ndarray,
    marks: np.ndarray,
    start: int,
    end: int,
    pad: int,
) -> Infilling:
    """Part A and part B of each row (section 2.1.1, figure 2).

    Args:
        tokens: [rows, length].
        lengths: tokens of each row, [rows].
        spans: what is cut out.
        order: numbers by whose size the spans of a row are put into their order in part B; span s has the one in column
            s. [rows, length]
        marks: what stands for a span, [rows].
    """
    rows, length = tokens.shape
    real = np.arange(length) < lengths[:, None]
    number = np.cumsum(spans.begins, axis=1) - 1  # of the span that a cut token is in
    in_a = real & (~spans.cut | spans.begins)
    place_a = np.cumsum(in_a, axis=1)  # from 1; a span's tokens all have the place of its mark
    first = in_a.sum(1)

    row, place = np.nonzero(spans.cut)
    span = number[row, place]
    sizes = np.zeros((rows, length), dtype=np.int64)
    np.add.at(sizes, (row, span), 1)
    count = spans.begins.sum(1, keepdims=True)
    turn = np.argsort(np.where(np.arange(length) < count, order, np.inf), axis=1, kind="stable")
    sizes_in_turn = np.take_along_axis(sizes, turn, axis=1)
    room = np.where(sizes_in_turn > 0, sizes_in_turn + 1, 0)  # START before, or END after
    offsets = np.zeros((rows, length), dtype=np.int64)
    np.put_along_axis(offsets, turn, np.cumsum(room, axis=1) - room, axis=1)

    total = first + room.sum(1)
    shape = (rows, int(total.max()))
    made = {name: np.zeros(shape, dtype=np.int64) for name in ("positions", "inside")}
    ids, labels = np.full(shape, pad, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)

    a_row, a_place = np.nonzero(in_a)
    to = place_a[a_row, a_place] - 1
    ids[a_row, to] = np.where(spans.begins[a_row, a_place], marks[a_row], tokens[a_row, a_place])
    made["positions"][a_row, to] = to + 1

    begin = np.nonzero(spans.begins)[1]  # row by row, so span after span
    begin_of = np.zeros((rows, length), dtype=np.int64)
    b_row, b_place = np.nonzero(spans.begins)
    begin_of[b_row, number[b_row, b_place]] = begin
    inside = place - begin_of[row, span]
    to = first[row] + offsets[row, span] + inside
    ids[row, to + 1], labels[row, to] = tokens[row, place], tokens[row, place]
    starts = first[b_row] + offsets[b_row, number[b_row, b_place]]
    ids[b_row, starts] = start
    labels[b_row, starts + sizes[b_row, number[b_row, b_place]]] = end
    for at_row, at, where, value in (
        (row, to + 1, place, inside + 2),
        (b_row, starts, b_place, np.ones(len(starts), dtype=np.int64)),
    ):
        made["positions"][at_row, at] = place_a[at_row, where]
        made["inside"][at_row, at] = value
    return Infilling(ids, labels, made["positions"], made["inside"], first, total)


def allowed_attention(first: torch.Tensor, total: torch.Tensor, length: int) -> torch.Tensor:
    """Who looks at whom: part A at all of itself, part B at part A and at what stands before it.

    Args:
        first, total: tokens of part A and of both parts, [rows].

    Returns:
        [rows, 1, length (who looks), length (at whom)], bool. Padding is looked at by itself alone.
    """
    places = torch.arange(length, device=first.device)
    query, key = places.view(1, -1, 1), places.view(1, 1, -1)
    first, total = first.view(-1, 1, 1), total.view(-1, 1, 1)
    looks = (key < first) | ((query >= first) & (key <= query))
    return ((looks & (key < total) & (query < total)) | (query == key)).unsqueeze(1)
