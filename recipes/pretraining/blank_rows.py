"""Rows of GLM: runs of sentences of which spans, sentences or most is cut out, drawn anew in each epoch.

Paper: Du et al. 2022, GLM, arXiv 2103.10360, section 2.1.
"""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.core import UserError
from recipes.pretraining.blanks import (
    BLANKS,
    DOCUMENT,
    END,
    MARKS,
    SENTENCES,
    START,
    Infilling,
    Spans,
    allowed_attention,
    cut_blanks,
    cut_document,
    cut_sentences,
    infilling,
)
from recipes.pretraining.drawn_rows import RangeRows
from recipes.pretraining.sentences import Corpus
from recipes.pretraining.unified_masks import as_attention_mask
from recipes.pretraining.unified_rows import sentence_runs


class InfillingRows(RangeRows):
    """Items for `InfillingCollator`: a run of sentences, what is to be cut out of it, and what that depends on.

    Args:
        max_length: tokens of a row before anything is cut out of it.
        shares: of the variants: short blanks, whole sentences, most of the document.
    """

    def __init__(self, corpus: Corpus, max_length: int, shares: list[float], split: int = 0, seed: int = 0):
        super().__init__(sentence_runs(corpus, max_length), split)
        self.corpus, self.seed = corpus, seed
        self.bounds = np.cumsum(shares[:-1]) / sum(shares)
        if not len(self):
            raise UserError("the documents of a split have not one run of four tokens; take more or longer texts")

    def __getitem__(self, row: int) -> dict[str, Any]:
        begin, end = self.ranges[row]
        draw = self.draw(row)
        number = np.random.default_rng((self.seed, *draw, 1)).random()
        sentences = np.searchsorted(self.corpus.sentences, np.arange(begin, end), side="right")
        return {
            "input_ids": self.corpus.tokens[begin:end].astype(np.int64),
            "sentences": sentences - sentences[0],
            "variant": int(np.searchsorted(self.bounds, number, side="right")),
            "draw": draw,
        }


class InfillingCollator:
    """Rows → one padded batch of part A and part B with its mask, both positions and labels.

    The second positions are given as `token_type_ids`: to an encoder they are one more learned embedding that is added,
    which is what the paper's are.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int):
        self.attn_implementation, self.seed = model.config._attn_implementation, seed
        self.pad = tokenizer.pad_token_id
        self.start, self.end, *marks = special_tokens(tokenizer)
        self.marks = np.asarray(marks)
        # RoBERTa's positions begin after that of padding.
        self.before = model.base_model.embeddings.position_embeddings.padding_idx or 0

    def cut(self, rows: list[dict[str, Any]]) -> Infilling:
        lengths = np.asarray([len(row["input_ids"]) for row in rows])
        shape = (len(rows), int(lengths.max()))
        tokens, sentences = np.zeros(shape, dtype=np.int64), np.full(shape, -1)
        numbers, ends = np.zeros((shape[0], 4, shape[1])), np.zeros((shape[0], 3))
        for place, row in enumerate(rows):
            drawn = np.random.default_rng((self.seed, *row["draw"], 2))
            ends[place] = drawn.random(3)
            numbers[place, :, : lengths[place]] = drawn.random((4, lengths[place]))
            tokens[place, : lengths[place]] = row["input_ids"]
            sentences[place, : lengths[place]] = row["sentences"]
        variant = np.asarray([row["variant"] for row in rows])
        each = {
            BLANKS: cut_blanks(lengths, numbers[:, :2]),
            SENTENCES: cut_sentences(sentences, numbers[:, 2]),
            DOCUMENT: cut_document(lengths, ends, shape[1]),
        }
        chosen = [
            np.select([variant[:, None] == kind for kind in each], [getattr(spans, name) for spans in each.values()])
            for name in ("cut", "begins")
        ]
        spans = Spans(*chosen)
        return infilling(tokens, lengths, spans, numbers[:, 3], self.marks[variant], self.start, self.end, self.pad)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.batch(self.cut(rows))

    def batch(self, made: Infilling) -> dict[str, torch.Tensor]:
        first, total = torch.from_numpy(made.first), torch.from_numpy(made.total)
        allowed = allowed_attention(first, total, made.tokens.shape[1])
        return {
            "input_ids": torch.from_numpy(made.tokens),
            "position_ids": torch.from_numpy(made.positions + self.before),
            "token_type_ids": torch.from_numpy(made.inside),
            "attention_mask": as_attention_mask(allowed, self.attn_implementation),
            "labels": torch.from_numpy(made.labels),
        }


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of START, END and the three marks.

    Raises:
        UserError: the tokenizer lacks one.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (START, END, *MARKS) if token not in vocabulary]
    if missing:
        raise UserError(
            f"the tokenizer has no {', '.join(missing)}; add them with tokenizer_kwargs: "
            f"{{extra_special_tokens: [{', '.join(missing)}]}}"
        )
    return [vocabulary[token] for token in (START, END, *MARKS)]


def check_model(model: PreTrainedModel, max_length: int) -> None:
    """Raise a UserError if the model has no positions of both kinds for the longest row, or no such embeddings."""
    embeddings = getattr(model.base_model, "embeddings", None)
    positions, types = (getattr(embeddings, f"{name}_embeddings", None) for name in ("position", "token_type"))
    if positions is None or types is None:
        raise UserError(
            f"model_config: a model of type '{model.config.model_type}' has no learned positions and token types to "
            "hold both positions; take one like bert or roberta-prelayernorm"
        )
    needed = {
        "max_position_embeddings": (positions.num_embeddings, max_length + 1 + (positions.padding_idx or 0)),
        "type_vocab_size": (types.num_embeddings, max_length + 2),
    }
    for key, (there, wanted) in needed.items():
        if there < wanted:
            raise UserError(f"model_config: '{key}' is {there}; rows of max_length {max_length} need {wanted}")
