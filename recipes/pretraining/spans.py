"""T5's span corruption: what is cut out of a text, what stands in its place, and what is to be written.

Paper: Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, arXiv
       1910.10683, figure 2 and section 3.3.4 (spans of mean length 3, 15 % of the tokens).
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recipes.core import UserError
from recipes.core.losses import IGNORED
from recipes.pretraining.token_rows import draw


def noise_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    """Tokens that are cut out of `length`, and the spans they form: both rounded, each at least 1, as T5 does."""
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), noise, length - noise)
    return noise, spans


def raw_length(input_length: int, density: float, mean_span: float) -> int:
    """The longest text whose corrupted form, a sentinel for each span and EOS at the end, is `input_length` tokens.

    Raises:
        UserError: no text is so short.
    """

    def corrupted(length: int) -> int:
        noise, spans = noise_counts(length, density, mean_span)
        return length - noise + spans + 1

    length = 2
    while corrupted(length + 1) <= input_length:
        length += 1
    if corrupted(length) > input_length:
        raise UserError(f"input_length: {input_length} tokens hold no text with a sentinel and an end")
    return length


def segment_lengths(total: int, parts: int, numbers: np.ndarray) -> np.ndarray:
    """`total` cut into `parts` of at least one token, every way equally likely.

    Args:
        numbers: uniform random numbers, [rows, at least total - 1].

    Returns:
        [rows, parts].
    """
    places = np.argsort(numbers[:, : total - 1], axis=1)[:, : parts - 1] + 1
    bounds = np.sort(places, axis=1)
    zero, end = np.zeros((len(numbers), 1), dtype=np.int64), np.full((len(numbers), 1), total)
    return np.diff(np.concatenate([zero, bounds, end], axis=1), axis=1)


def noise_mask(length: int, density: float, mean_span: float, numbers: np.ndarray) -> np.ndarray:
    """Which tokens are cut out: kept and cut spans in turn, a kept one first, of random lengths.

    Args:
        numbers: uniform random numbers, [rows, 2, length].

    Returns:
        [rows, length], bool; each row has as many tokens and spans cut out as `noise_counts` says.
    """
    noise, spans = noise_counts(length, density, mean_span)
    kept = segment_lengths(length - noise, spans, numbers[:, 0])
    cut = segment_lengths(noise, spans, numbers[:, 1])
    lengths = np.stack([kept, cut], axis=2).reshape(len(numbers), 2 * spans)
    begins = np.zeros((len(numbers), length), dtype=np.int64)
    np.put_along_axis(begins, np.cumsum(lengths, axis=1)[:, :-1], 1, axis=1)
    return np.cumsum(begins, axis=1) % 2 == 1


def corrupt(
    tokens: np.ndarray, noise: np.ndarray, sentinels: np.ndarray, eos_token_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, in which a sentinel stands for each span that is cut out, and targets, which say what stood there.

    The targets are, span by span, its sentinel and its tokens, then the next sentinel, which ends them. Both are closed
    by EOS. Every row has as many tokens and as many spans cut out.

    Args:
        tokens: [rows, length].
        noise: which tokens are cut out, [rows, length], bool.
        sentinels: the ids of the sentinels in their order.

    Returns:
        inputs, [rows, kept + spans + 1], and targets, [rows, cut + spans + 2].
    """
    rows = len(tokens)
    first = noise & ~np.pad(noise, ((0, 0), (1, 0)))[:, :-1]  # of each span
    number = np.cumsum(first, axis=1)  # of the span that a token is in or after, from 1
    end = np.full((rows, 1), eos_token_id)
    inputs = np.where(first, sentinels[number - 1], tokens)[~noise | first].reshape(rows, -1)
    # Two targets for each token: the sentinel that may come before it, and itself.
    pairs = np.stack([sentinels[number - 1], tokens], axis=2)
    targets = pairs[np.stack([first, noise], axis=2)].reshape(rows, -1)
    last = sentinels[number[:, -1:]]
    return np.concatenate([inputs, end], axis=1), np.concatenate([targets, last, end], axis=1)


def find_sentinels(tokenizer: PreTrainedTokenizerBase, needed: int) -> np.ndarray:
    """Ids of `<extra_id_0>`, `<extra_id_1>`, … as T5's tokenizers have them.

    Raises:
        UserError: there are fewer than `needed`.
    """
    vocabulary, ids = tokenizer.get_vocab(), []
    while (name := f"<extra_id_{len(ids)}>") in vocabulary:
        ids.append(vocabulary[name])
    if len(ids) < needed:
        raise UserError(
            f"the tokenizer has {len(ids)} sentinels (<extra_id_0>, …) and a row has up to {needed}: shorten "
            "input_length, lengthen mean_noise_span_length, or take a tokenizer with more"
        )
    return np.asarray(ids)


class SpanCorruption:
    """Collator of `TokenRows`: T5's inputs and targets, all rows alike in length, so that nothing is padding.

    Args:
        length: tokens of a row before it is corrupted.
        density: share of the tokens that is cut out.
        mean_span: mean length of a span.
        seed: with a row's `draw` decides what is cut out of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int, density: float, mean_span: float, seed: int):
        self.length, self.density, self.mean_span, self.seed = length, density, mean_span, seed
        self.sentinels = find_sentinels(tokenizer, noise_counts(length, density, mean_span)[1] + 1)
        self.eos, self.start = tokenizer.eos_token_id, tokenizer.pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens = np.stack([row["input_ids"] for row in rows])
        noise = noise_mask(self.length, self.density, self.mean_span, draw(rows, self.seed, 2, self.length))
        inputs, targets = (torch.from_numpy(ids) for ids in corrupt(tokens, noise, self.sentinels, self.eos))
        return {"input_ids": inputs, "decoder_input_ids": shift_right(targets, self.start), "labels": targets}


def shift_right(targets: torch.Tensor, start_token_id: int) -> torch.Tensor:
    """What the decoder is given: each target one place later, after a start token; padding where there is no target."""
    shifted = targets.roll(1, dims=1)
    shifted[:, 0] = start_token_id
    return shifted.masked_fill(shifted == IGNORED, start_token_id)
