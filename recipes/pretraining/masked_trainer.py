"""A Trainer for masked language models: the loss of BERT's two tasks, and what is measured of them on held-out text.

Paper: Devlin et al. 2019, BERT, arXiv 1810.04805, appendix A.2: the loss is the sum of the mean masked LM likelihood and
       the mean next sentence prediction likelihood.
"""

import inspect
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments

from recipes.core import UserError
from recipes.core.losses import smoothed
from recipes.pretraining.length_groups import LengthGroupedTrainer
from recipes.pretraining.masking import IGNORED


def check_model(model: PreTrainedModel, max_length: int, pairs: bool) -> None:
    """Raise a UserError if rows are longer than the model's positions, or it has no head or no types for pairs."""
    embeddings = getattr(model.base_model, "embeddings", None)
    positions = getattr(embeddings, "position_embeddings", None)
    if positions is not None:
        # RoBERTa counts its positions from the one after that of padding.
        room = positions.num_embeddings - (0 if positions.padding_idx is None else positions.padding_idx + 1)
        if max_length > room:
            raise UserError(f"max_length: rows of {max_length} tokens are longer than the model's {room} positions")
    if pairs and "next_sentence_label" not in inspect.signature(model.forward).parameters:
        raise UserError(
            f"next_sentence_prediction: {model.config.model_type} has no head for it; set it to false, or take a BERT"
        )
    if pairs and getattr(model.config, "type_vocab_size", 2) < 2:
        raise UserError("next_sentence_prediction: the model tells no segments apart; set type_vocab_size to 2")


class MaskedTrainer(LengthGroupedTrainer):
    """Computes the vocabulary's logits at the masked positions alone, and weights the loss by them.

    transformers' models make logits for all positions, of which six in seven have no label, and average over a
    micro-batch, which weights masked tokens by how many others happened to be masked beside them.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, **kwargs: Any):
        args.remove_unused_columns = False  # the collator needs what the model does not
        super().__init__(model=model, args=args, compute_metrics=masked_metrics, **kwargs)
        if self.args.n_gpu > 1:
            raise UserError("one process cannot split these batches over several GPUs; launch with --launch ddp")
        self.loss_is_scaled_for_ga = True
        self.supervised: torch.Tensor | None = None
        model.base_model.register_forward_hook(self._keep_supervised)

    def _keep_supervised(self, encoder: torch.nn.Module, inputs: Any, output: Any) -> Any:
        """The last hidden states at the supervised positions, [1, n, width]; the head sees nothing else."""
        if self.supervised is not None:
            output.last_hidden_state = output.last_hidden_state[self.supervised][None]
        return output

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Trainer's, which counts the labelled tokens of a step; here also the rows that tell whether a segment follows."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = sum(
            (batch["next_sentence_label"] != IGNORED).sum() for batch in batches if "next_sentence_label" in batch
        )
        if self.args.average_tokens_across_devices:
            pairs = self.accelerator.gather(torch.as_tensor(pairs, device=device)).sum()
        self.pairs_in_step = int(pairs)
        return batches, count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The sum of both losses; with outputs, per position and row: nats and whether the best guess is right."""
        labels, next_labels = inputs.pop("labels"), inputs.pop("next_sentence_label", None)
        self.supervised = labels != IGNORED
        try:
            outputs = model(**inputs)
        finally:
            supervised, self.supervised = self.supervised, None
        logits = (outputs["logits"] if next_labels is None else outputs["prediction_logits"])[0].float()
        nats = cross_entropy(logits, labels[supervised], reduction="none")

        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        total = smoothed(logits, labels[supervised], smoothing) if smoothing else nats.sum()
        loss = total * scale / num_items_in_batch if num_items_in_batch is not None else total / len(nats)
        measured = {
            "nats": torch.zeros_like(labels, dtype=nats.dtype).masked_scatter(supervised, nats),
            "right": torch.zeros_like(labels).masked_scatter(
                supervised, (logits.argmax(-1) == labels[supervised]).long()
            ),
        }
        if next_labels is not None:
            next_logits = outputs["seq_relationship_logits"].float()
            next_nats = cross_entropy(next_logits, next_labels, ignore_index=IGNORED, reduction="none")
            pairs = self.pairs_in_step / scale if model.training else int(next_labels.ne(IGNORED).sum())
            loss = loss + next_nats.sum() / (pairs or 1)
            measured |= {"next_nats": next_nats, "next_right": (next_logits.argmax(-1) == next_labels).long()}
        return (loss, {"loss": loss, **measured}) if return_outputs else loss


def masked_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Means over all held-out masked tokens and pairs, whatever batches they came in."""
    nats, right, *pairs = evaluated.predictions
    labels = evaluated.label_ids[0] if pairs else evaluated.label_ids
    supervised = labels != IGNORED
    metrics = {
        "masked_loss": float(nats[supervised].mean(dtype=np.float64)),
        "masked_accuracy": float(right[supervised].mean()),
    }
    metrics["loss"] = metrics["masked_loss"]
    told = (
        evaluated.label_ids[1] != IGNORED if pairs else np.zeros(0, dtype=bool)
    )  # of UniLM's rows only some are pairs
    if told.any():
        metrics["loss"] += float(pairs[0][told].mean(dtype=np.float64))
        metrics["next_sentence_accuracy"] = float(pairs[1][told].mean())
    return metrics
