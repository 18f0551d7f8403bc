"""The masked language model's task: which tokens are to be guessed, and what stands in their places.

Paper: Devlin et al. 2019, BERT: Pre-training of Deep Bidirectional Transformers, arXiv 1810.04805, section 3.1 and
       appendix A.1; masks that change from epoch to epoch: Liu et al. 2019, RoBERTa, arXiv 1907.11692, section 4.1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recipes.core.losses import IGNORED

MASKED, RANDOM = 0.8, 0.1  # the rest of the chosen tokens, 10 %, stays as it is


def choose(words: np.ndarray, numbers: np.ndarray, share: float) -> np.ndarray:
    """Which tokens are to be guessed: whole words in random order, as long as they fit into a share of the tokens.

    A word that would exceed the share is passed over and a shorter one taken, as in BERT's release of whole-word masks.
    Where each token is a word of its own, the share is met exactly.

    Args:
        words: for each token the number of its word in its row, from 0; -1 where nothing may be masked. [rows, length]
        numbers: uniform random numbers, of which word w is placed by the one in column w. [rows, length]
        share: of the tokens that may be masked, rounded to a whole number, at least one a row.

    Returns:
        [rows, length], bool.
    """
    allowed = words >= 0
    rows = np.nonzero(allowed)[0]
    lengths = np.zeros(words.shape, dtype=np.int64)
    np.add.at(lengths, (rows, words[allowed]), 1)
    order = np.argsort(np.where(lengths > 0, numbers, np.inf), axis=1)
    lengths = np.take_along_axis(lengths, order, axis=1)

    left = np.maximum(1, np.rint(allowed.sum(1) * share)).astype(np.int64)[:, None]
    waiting, taken = lengths > 0, np.zeros(words.shape, dtype=bool)
    # One round takes words up to the first that does not fit, and that one never will; a few rounds take all.
    while True:
        waiting &= lengths <= left
        fits = waiting & (np.cumsum(lengths * waiting, axis=1) <= left)
        if not fits.any():
            break
        taken |= fits
        waiting &= ~fits
        left = left - (lengths * fits).sum(1, keepdims=True)
    by_word = np.zeros_like(taken)
    np.put_along_axis(by_word, order, taken, axis=1)
    return allowed & np.take_along_axis(by_word, np.where(allowed, words, 0), axis=1)


def conceal(
    tokens: np.ndarray, chosen: np.ndarray, numbers: np.ndarray, substitutes: np.ndarray, mask_id: int
) -> np.ndarray:
    """The tokens with the chosen ones replaced: 80 % by the mask, 10 % by a random token, 10 % by themselves.

    Args:
        tokens, chosen, numbers, substitutes: [rows, length]; numbers are uniform, substitutes the random tokens.
    """
    masked = np.where(chosen & (numbers < MASKED), mask_id, tokens)
    return np.where(chosen & (numbers >= MASKED) & (numbers < MASKED + RANDOM), substitutes, masked)


class MaskingCollator:
    """Rows of any length → one padded batch of `input_ids`, `attention_mask`, `labels` and what else a row holds.

    A row's mask depends on the seed and on the row's `draw` alone: not on the batch it is in, the process or worker that
    makes it, nor on what was drawn before, so a resumed run sees the masks of an undisturbed one.

    A row holds `input_ids` and `words` (see `choose`), each [length], `draw`, a tuple of whole numbers, and may hold
    `token_type_ids`, [length], and `next_sentence_label`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float, seed: int):
        self.share, self.seed = share, seed
        self.mask_id, self.pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens, words = pad([row["input_ids"] for row in rows], self.pad_id), pad([row["words"] for row in rows], -1)
        numbers = np.zeros((3, *tokens.shape))
        for place, row in enumerate(rows):
            length = len(row["input_ids"])
            numbers[:, place, :length] = np.random.default_rng((self.seed, *row["draw"])).random((3, length))

        chosen = choose(words, numbers[0], self.share)
        substitutes = self.ordinary[(numbers[2] * len(self.ordinary)).astype(np.int64)]
        batch = {
            "input_ids": conceal(tokens, chosen, numbers[1], substitutes, self.mask_id),
            "attention_mask": pad([np.ones(len(row["words"])) for row in rows], 0),
            "labels": np.where(chosen, tokens, IGNORED),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = pad([row["token_type_ids"] for row in rows], 0)
            batch["next_sentence_label"] = np.asarray([row["next_sentence_label"] for row in rows])
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}


def pad(rows: Sequence[Sequence[int] | np.ndarray], filler: int) -> np.ndarray:
    """Rows of any length as one array, filled up on the right, [rows, longest], int64."""
    padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded
