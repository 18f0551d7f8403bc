"""Losses for Trainer's `compute_loss_func` where a model's own would weigh a token by the micro-batch it is in."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from recipes.core.errors import UserError

IGNORED = -100  # the label of a place where nothing is to be said


def mean_over_tokens(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy (nats) of labels that stand at the places of their logits, over the tokens of a whole step.

    transformers' encoder-decoders and taggers average over a micro-batch, which weighs its tokens by how few they are.

    Args:
        outputs: its logits are [rows, length, V]; virtual tokens before the text lengthen them.
        labels: [rows, length]; IGNORED where nothing is to be said.
        num_items_in_batch: labelled tokens of all micro-batches and processes of the step; None for this batch's.
        label_smoothing: share of a label's probability that is spread over the vocabulary (Szegedy et al. 2016, Rethinking
            the Inception Architecture for Computer Vision, arXiv 1512.00567, section 7).
    """
    logits = outputs["logits"][:, -labels.shape[1] :].float().flatten(0, 1)
    labels = labels.flatten().to(logits.device)
    total = smoothed(logits, labels, label_smoothing if torch.is_grad_enabled() else 0.0)
    return total / (labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def smoothed(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy (nats) of labels [N], IGNORED ones left out, with logits [N, V], summed; see `mean_over_tokens`."""
    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)


def refuse_smoothing(training: TrainingArguments, instead: str = "leave it out") -> None:
    """Raise a UserError where `label_smoothing_factor` is set and the loss knows nothing of it."""
    if training.label_smoothing_factor:
        raise UserError(f"label_smoothing_factor has no effect on this loss; {instead}")
