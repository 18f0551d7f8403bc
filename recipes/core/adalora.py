"""AdaLoRA's rank allocation inside any Trainer, which neither PEFT nor transformers calls by itself.

Paper: Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv 2303.10512,
       algorithm 1 and eq. 12 (the budget's schedule).
"""

import functools
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from recipes.core.errors import UserError
from recipes.core.peft_block import STEPS_UNKNOWN


class AllocateRanks(TrainerCallback):
    """Between the optimiser's step and the next one's gradients: update the importances, cut to the budget of the step."""

    def __init__(self, model: PeftModel):
        self.model = model

    def on_optimizer_step(self, args, state, control, **kwargs):
        # The paper counts steps from 1. PEFT ends the allocation at exactly total_step - tfinal, which a count from 0 would
        # never reach where tfinal is 0.
        self.model.base_model.update_and_allocate(state.global_step + 1)


def allocate_ranks(trainer: Trainer) -> None:
    """Make a trainer of an AdaLoRA model allocate ranks over its own number of steps; of any other model, do nothing.

    The orthogonality penalty (eq. 4) is PEFT's where the model computes its loss; where the trainer computes it from the
    logits, PEFT leaves it out without a word, and it is added here. PEFT also adds it to held-out losses, of which it is
    no part: there it is taken off.

    Raises:
        UserError: the schedule does not fit the run's steps, or the strategy hides the gradients it is made of.
    """
    if not (isinstance(trainer.model, PeftModel) and trainer.model.active_peft_config.peft_type == "ADALORA"):
        return
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise UserError(
            "peft: adalora reads whole gradients after each step, which DeepSpeed and FSDP do not keep; use ddp"
        )
    config = trainer.model.active_peft_config
    steps = steps_of(trainer)
    if config.total_step not in (STEPS_UNKNOWN, steps):
        raise UserError(f"peft: total_step is {config.total_step} and the run takes {steps} steps; drop total_step")
    if config.tinit >= steps - config.tfinal:
        raise UserError(
            f"peft: tinit {config.tinit} and tfinal {config.tfinal} leave none of the {steps} steps to take ranks away in"
        )
    trainer.model.base_model.rankallocator.set_total_step(steps)
    trainer.add_callback(AllocateRanks(trainer.model))
    _correct_penalty(trainer, config.orth_reg_weight)


def steps_of(trainer: Trainer) -> int:
    """How many optimiser steps a trainer will take."""
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    with torch.random.fork_rng(devices=[]):
        return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def _correct_penalty(trainer: Trainer, weight: float) -> None:
    model, with_loss = trainer.model, []  # one entry a forward pass in which PEFT added the penalty

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if getattr(output, "loss", None) is not None:
            with_loss.append(True)
            if not module.training:
                output["loss"] = output.loss - weight * orthogonality(model)

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


def ranks(model: nn.Module) -> dict[str, int]:
    """The rank that each adapted matrix has left: its singular values that are not zero."""
    return {
        name.partition(".lora_E")[0]: int((parameter != 0).sum())
        for name, parameter in model.named_parameters()
        if ".lora_E." in name
    }
