"""Rows of UniLM: a run of sentences as one segment or two, under an objective that is drawn anew in each epoch.

Paper: Dong et al. 2019, UniLM, arXiv 1905.03197, sections 2.1 to 2.3.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recipes.core import UserError
from recipes.pretraining.drawn_rows import RangeRows
from recipes.pretraining.masking import IGNORED, conceal
from recipes.pretraining.sentences import Corpus
from recipes.pretraining.unified_masks import (
    BIDIRECTIONAL,
    IS_PAIR,
    PROPORTIONS,
    TYPES,
    allowed_attention,
    as_attention_mask,
    choose_ngrams,
)


def sentence_runs(corpus: Corpus, max_tokens: int) -> np.ndarray:
    """Ranges of `corpus.tokens`, [rows, 2]: as many whole sentences of one document as fit, in turn.

    A sentence that does not fit by itself is cut. A document's rest of fewer than four tokens is left out: neither of its
    segments would have anything to tell the other.
    """
    offsets, rows = corpus.sentences, []
    for first, last in zip(corpus.documents[:-1], corpus.documents[1:]):
        begin, stop = int(offsets[first]), int(offsets[last])
        while stop - begin >= 4:
            end = int(offsets[np.searchsorted(offsets, begin + max_tokens, side="right") - 1])
            end = min(end, stop) if end > begin else min(begin + max_tokens, stop)
            if end - begin >= 4:
                rows.append((begin, end))
            begin = end
    return np.asarray(rows, dtype=np.int64).reshape(-1, 2)


class UnifiedRows(RangeRows):
    """Items for `UnifiedCollator`: a text in one segment or two, its objective, and what its mask depends on.

    Objective, the place where a pair is cut (after a sentence where it has several) and, for half of the bidirectional
    rows, a random second segment are drawn from the seed, the split, the epoch and the row.

    Args:
        max_length: tokens of a row with its special tokens.
        objective: of all rows; None draws it in the paper's proportions.
        next_sentence_prediction: whether half of the bidirectional rows end in another text.

    Raises:
        UserError: no document is long enough.
    """

    def __init__(
        self,
        corpus: Corpus,
        max_length: int,
        split: int = 0,
        seed: int = 0,
        objective: int | None = None,
        next_sentence_prediction: bool = True,
    ):
        super().__init__(sentence_runs(corpus, max_length - 3), split)
        self.corpus, self.seed, self.objective = corpus, seed, objective
        self.next_sentence_prediction = next_sentence_prediction
        if len(self) < 2:
            raise UserError("the documents of a split have not two runs of four tokens; take more or longer texts")

    def __getitem__(self, row: int) -> dict[str, Any]:
        draw = self.draw(row)
        numbers = np.random.default_rng((self.seed, *draw, 1))
        drawn = int(numbers.choice(4, p=PROPORTIONS))
        objective = drawn if self.objective is None else self.objective
        begin, end = self.ranges[row]
        tokens = self.corpus.tokens[begin:end].astype(np.int64)
        item: dict[str, Any] = {"first": tokens, "objective": objective, "draw": draw, "next_sentence_label": IGNORED}
        if not IS_PAIR[objective]:
            return item
        cut = self._cut(int(begin), int(end), numbers)
        item["first"], item["second"] = tokens[:cut], tokens[cut:]
        if objective == BIDIRECTIONAL and self.next_sentence_prediction:
            item["next_sentence_label"] = int(numbers.random() < 0.5)
            if item["next_sentence_label"]:
                other = int(numbers.integers(len(self) - 1))
                other_begin, other_end = self.ranges[other + (other >= row)]
                other_cut = self._cut(int(other_begin), int(other_end), numbers)
                second = self.corpus.tokens[other_begin + other_cut : other_end].astype(np.int64)
                item["second"] = second[: len(tokens) - cut]  # a random segment is not known by its length alone
        return item

    def _cut(self, begin: int, end: int, numbers: np.random.Generator) -> int:
        """Tokens of the first segment: up to the end of a random sentence, or a random number where there is one only."""
        offsets = self.corpus.sentences
        inside = offsets[np.searchsorted(offsets, begin, "right") : np.searchsorted(offsets, end, "left")] - begin
        return int(numbers.choice(inside)) if len(inside) else int(numbers.integers(1, end - begin))


class UnifiedCollator:
    """Rows → one padded batch: `[CLS] text [SEP]` or `[CLS] first [SEP] second [SEP]` with its mask, types and labels.

    15 % of the tokens are hidden, 80 % of them behind [MASK], 10 % behind a random token. In rows that are read from left
    to right, or whose second segment is, the last [SEP] may be hidden too: so the model learns where a text ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, attn_implementation: str, seed: int, pairs: bool = True):
        self.attn_implementation, self.seed, self.pairs = attn_implementation, seed, pairs
        self.begin, self.end = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.pad, self.mask = tokenizer.pad_token_id, tokenizer.mask_token_id
        self.ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)

    def assemble(self, rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, [rows, longest]; tokens up to the end of the first segment and in all, [rows]; objectives, [rows]."""
        parts = [[row["first"], row["second"]] if "second" in row else [row["first"]] for row in rows]
        first = np.asarray([len(part[0]) + 2 for part in parts])
        total = np.asarray([1 + sum(len(segment) + 1 for segment in part) for part in parts])
        tokens = np.full((len(rows), total.max()), self.pad, dtype=np.int64)
        for place, part in enumerate(parts):
            joined = [np.append(segment, self.end) for segment in part]
            tokens[place, : total[place]] = np.concatenate([[self.begin], *joined])
        return tokens, first, total, np.asarray([row["objective"] for row in rows])

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        tokens, first, total, objective = self.assemble(rows)
        length, places = tokens.shape[1], np.arange(tokens.shape[1])
        numbers = np.zeros((len(rows), 4, length))
        for place, row in enumerate(rows):
            drawn = np.random.default_rng((self.seed, *row["draw"], 2)).random((4, total[place]))
            numbers[place, :, : total[place]] = drawn
        ordinary = (places > 0) & (places < total[:, None] - 1) & (places != first[:, None] - 1)
        read_on = np.isin(objective, (1, 3))[:, None] & (places == total[:, None] - 1)
        chosen = choose_ngrams(ordinary | read_on, numbers[:, :2])
        substitutes = self.ordinary[(numbers[:, 3] * len(self.ordinary)).astype(np.int64)]
        second = (places >= first[:, None]).astype(np.int64)
        types = np.where(places < total[:, None], TYPES[objective[:, None], second], 0)
        batch = {
            "input_ids": conceal(tokens, chosen, numbers[:, 2], substitutes, self.mask),
            "token_type_ids": types,
            "labels": np.where(chosen, tokens, IGNORED),
        }
        if self.pairs:
            batch["next_sentence_label"] = np.asarray([row["next_sentence_label"] for row in rows])
        allowed = allowed_attention(*(torch.from_numpy(each) for each in (objective, first, total)), length)
        mask = as_attention_mask(allowed, self.attn_implementation)
        return {name: torch.from_numpy(values) for name, values in batch.items()} | {"attention_mask": mask}
