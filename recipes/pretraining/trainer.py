"""The Trainer of pretraining: a held-out loss that is the mean over tokens, whatever batches and processes they are in."""

from typing import Any

import torch
from transformers import Trainer


class PretrainingTrainer(Trainer):
    """`evaluate()` weighs each batch by its labelled tokens, where Trainer's mean takes its rows; no label is smoothed."""

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None) -> tuple[Any, Any, Any]:
        labelled = self._get_num_items_in_batch(
            [inputs], self.args.device
        )  # of all processes, where these are averaged
        if labelled is None:  # the loss is the mean of this process's tokens
            share = inputs["labels"].ne(-100).sum()
        else:
            share = labelled / (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)
        smoother, self.label_smoother = self.label_smoother, None
        loss, *rest = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        self.label_smoother = smoother
        rows = len(inputs["labels"])
        sums = torch.stack([loss * share, inputs["labels"].ne(-100).sum().to(loss)]).double()
        self._held_out += self.accelerator.gather_for_metrics((sums / rows).expand(rows, 2)).sum(0)
        return loss, *rest

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        self._held_out = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, tokens = self._held_out.tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / tokens
        return output
