"""Corrupted documents and their originals: the rows, batches and loss of a sequence-to-sequence denoiser.

Paper: Lewis et al. 2019, BART, arXiv 1910.13461, section 2: the reconstruction loss is the cross-entropy between the
       decoder's output and the original document.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainingArguments

from recipes.core.losses import smoothed
from recipes.pretraining.drawn_rows import RangeRows
from recipes.pretraining.length_groups import LengthGroupedTrainer
from recipes.pretraining.masking import IGNORED, pad
from recipes.pretraining.noise import HIDDEN
from recipes.pretraining.segments import full_sentences
from recipes.pretraining.sentences import Corpus


class DocumentDataset(RangeRows):
    """Documents, or parts of them that fit, as tokens without special ones, with the offsets of their sentences.

    Args:
        max_tokens: tokens of a row; a longer document becomes several rows of whole sentences.
        split, dynamic: see `DrawnRows`.
    """

    def __init__(self, corpus: Corpus, max_tokens: int, split: int = 0, dynamic: bool = True):
        super().__init__(full_sentences(corpus, max_tokens, across=False)[:, 0], split, dynamic)
        self.corpus = corpus

    def __getitem__(self, row: int) -> dict[str, Any]:
        begin, end = self.ranges[row]
        first, last = np.searchsorted(self.corpus.sentences, (begin, end), side="right")
        inside = self.corpus.sentences[first:last]
        return {
            "tokens": self.corpus.tokens[begin:end].astype(np.int64),
            "sentences": np.unique(np.concatenate([[begin], inside, [end]])) - begin,
            "draw": self.draw(row),
        }


class NoiseCollator:
    """Rows → one padded batch: the corrupted documents for the encoder, the whole ones for the decoder.

    What becomes of a row depends on the seed and on its `draw` alone, see MaskingCollator. `hidden` says which labels are
    tokens that the encoder does not see; the loss is that of all.

    Args:
        noise: from the length of a document, the offsets of its sentences and a generator to the corrupted document, as
            places in the original one or HIDDEN for a mask.
        start_id: what the decoder's input begins with.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        noise: Callable[[int, np.ndarray, np.random.Generator], np.ndarray],
        max_length: int,
        seed: int,
        start_id: int,
    ):
        self.noise, self.max_length, self.seed, self.start_id = noise, max_length, seed, start_id
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.mask_id, self.pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        encoder, labels, hidden = [], [], []
        for row in rows:
            tokens = row["tokens"]
            places = self.noise(len(tokens), row["sentences"], np.random.default_rng((self.seed, *row["draw"])))
            places = places[: self.max_length - 2]
            encoder.append(self._framed(np.where(places == HIDDEN, self.mask_id, tokens[places])))
            labels.append(self._framed(tokens))
            unseen = np.ones(len(tokens) + 2, dtype=np.int64)
            unseen[[0, -1]] = 0
            unseen[places[places != HIDDEN] + 1] = 0
            hidden.append(unseen)
        batch = {
            "input_ids": pad(encoder, self.pad_id),
            "attention_mask": pad([np.ones_like(row) for row in encoder], 0),
            "decoder_input_ids": pad([np.append(self.start_id, row[:-1]) for row in labels], self.pad_id),
            "labels": pad(labels, IGNORED),
            "hidden": pad(hidden, 0),
        }
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def _framed(self, tokens: np.ndarray) -> np.ndarray:
        return np.concatenate([[self.begin], tokens, [self.end]])


class ReconstructionTrainer(LengthGroupedTrainer):
    """Weights the loss by tokens, over all micro-batches of a step, and measures it token by token.

    BART averages over a micro-batch and leaves out `num_items_in_batch`, while Trainer takes it to have been used.
    """

    def __init__(self, *, args: TrainingArguments, **kwargs: Any):
        args.remove_unused_columns = False  # the collator needs what the model does not
        super().__init__(args=args, compute_metrics=reconstruction_metrics, **kwargs)
        self.loss_is_scaled_for_ga = True
        self.label_names = ["labels"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The cross-entropy of the decoder's tokens; with outputs, for each: nats, whether the best guess is right."""
        labels, hidden = inputs.pop("labels"), inputs.pop("hidden", None)
        logits = model(**inputs).logits.float()
        nats = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch / scale
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        loss = (smoothed(logits.flatten(0, 1), labels.flatten(), smoothing) if smoothing else nats.sum()) / count
        if not return_outputs:
            return loss
        measured = {"loss": loss, "nats": nats.view_as(labels), "right": (logits.argmax(-1) == labels).long()}
        return loss, measured | ({} if hidden is None else {"hidden": hidden})


def reconstruction_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Means over all held-out tokens, and over those that the encoder did not see, whatever batches they came in."""
    nats, right, *hidden = evaluated.predictions
    supervised = evaluated.label_ids != IGNORED
    metrics = {
        "loss": float(nats[supervised].mean(dtype=np.float64)),
        "accuracy": float(right[supervised].mean()),
    }
    unseen = supervised & (hidden[0] == 1) if hidden else np.zeros_like(supervised)
    if unseen.any():
        metrics["hidden_loss"] = float(nats[unseen].mean(dtype=np.float64))
        metrics["hidden_accuracy"] = float(right[unseen].mean())
    return metrics
