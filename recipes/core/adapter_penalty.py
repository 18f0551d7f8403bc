"""What an adapter pays for its own weights, in the loss of any trainer: once an optimizer step, whatever makes the loss."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import Trainer


def add_fusion_penalty(trainer: Trainer) -> None:
    """AdapterFusion's regularizer of its value matrices; of any other model, do nothing."""
    from recipes.adapters import AdapterFusionModel

    tuner = getattr(trainer.model, "base_model", None)
    if isinstance(tuner, AdapterFusionModel):
        add_missing_penalty(trainer, tuner.penalty)


def add_missing_penalty(trainer: Trainer, penalty: Callable[[], Tensor]) -> None:
    """Make the training loss have a penalty once that the adapter adds to the loss which the model itself returns.

    Where the trainer works out the loss from logits there is none to add it to; where the loss is a part of the step's, to
    be summed over micro-batches and averaged over processes, the whole penalty stands in each part.
    """
    model, with_loss = trainer.model, []  # one entry a forward pass in which the model returned a loss

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if getattr(output, "loss", None) is not None:
            with_loss.append(True)

    model.get_base_model().register_forward_hook(look)  # a PeftModel without a task type passes by its tuner
    compute_loss = trainer.compute_loss

    @functools.wraps(compute_loss)
    def compute_penalised_loss(
        model_: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        with_loss.clear()
        result = compute_loss(model_, inputs, *args, num_items_in_batch=num_items_in_batch, **kwargs)
        if not model.training:
            return result
        is_part = _is_part_of_step(trainer, num_items_in_batch)
        share = 1 / trainer.current_gradient_accumulation_steps if is_part else 1
        # Trainer has then multiplied by the processes
        averaged = is_part and trainer.args.average_tokens_across_devices
        there = (trainer.accelerator.num_processes if averaged else 1) if with_loss else 0
        if share == there:
            return result
        missing = (share - there) * penalty()
        return (result[0] + missing, *result[1:]) if isinstance(result, tuple) else result + missing

    trainer.compute_loss = compute_penalised_loss


def _is_part_of_step(trainer: Trainer, num_items_in_batch: Any) -> bool:
    """Whether a loss is divided by the whole step's tokens already, as Trainer itself decides it."""
    if trainer.loss_is_scaled_for_ga is not None:
        return trainer.loss_is_scaled_for_ga
    return (
        trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    ) or trainer.compute_loss_func is not None
