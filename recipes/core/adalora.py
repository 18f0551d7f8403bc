"""AdaLoRA in any of the trainers: its schedule over the run's own steps, and its penalty in every loss.

Paper: Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv 2303.10512,
       algorithm 1 and eq. 4.
"""

import functools
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from recipes.core.errors import UserError
from recipes.core.peft_block import STEPS_UNKNOWN


def allocate_ranks(trainer: Trainer) -> None:
    """Make a trainer of an AdaLoRA model allocate ranks over its own number of steps; of any other model, do nothing.

    Raises:
        UserError: the schedule does not fit the run's steps, or the strategy hides the gradients it is made of.
    """
    if not (isinstance(trainer.model, PeftModel) and trainer.model.active_peft_config.peft_type == "ADALORA"):
        return
    from recipes.adapters.adalora import AllocateRanks

    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError(
            "peft: adalora reads whole gradients after each step, which DeepSpeed and FSDP do not keep; use ddp"
        )
    config, steps = trainer.model.active_peft_config, steps_of(trainer)
    if config.total_step == STEPS_UNKNOWN:
        config.total_step = steps
    if config.total_step != steps:
        raise UserError(f"peft: total_step is {config.total_step} and the run takes {steps} steps; drop total_step")
    if config.tinit >= steps - config.tfinal:
        raise UserError(
            f"peft: tinit {config.tinit} and tfinal {config.tfinal} leave none of the {steps} steps to take ranks away in"
        )
    trainer.add_callback(AllocateRanks())
    add_missing_penalty(trainer, config.orth_reg_weight)


def steps_of(trainer: Trainer) -> int:
    """How many optimiser steps a trainer will take."""
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    with torch.random.fork_rng(devices=[]):
        return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def add_missing_penalty(trainer: Trainer, weight: float) -> None:
    """Add the orthogonality penalty to a training loss that the trainer works out from logits.

    PEFT adds it to the loss that the model itself returns, and where there is none leaves it out without a word.
    """
    model, with_loss = trainer.model, []  # one entry a forward pass in which PEFT added the penalty

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if getattr(output, "loss", None) is not None:
            with_loss.append(True)

    model.base_model.register_forward_hook(look)
    compute_loss = trainer.compute_loss

    @functools.wraps(compute_loss)
    def compute_penalised_loss(*args: Any, **kwargs: Any) -> Any:
        with_loss.clear()
        result = compute_loss(*args, **kwargs)
        if with_loss or not model.training:
            return result
        penalty = weight * orthogonality(model)
        return (result[0] + penalty, *result[1:]) if isinstance(result, tuple) else result + penalty

    trainer.compute_loss = compute_penalised_loss


def orthogonality(model: nn.Module) -> Tensor:
    """Mean over all P and Q of the Frobenius norm of PᵀP - I and QQᵀ - I, as PEFT has it (the paper squares it), scalar."""
    norms = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name):
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            norms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    return torch.stack(norms).mean()
