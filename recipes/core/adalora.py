"""AdaLoRA in any of the trainers: its schedule over the run's own steps, and its penalty in every loss.

Paper: Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv 2303.10512,
       algorithm 1 and eq. 4.
"""

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from recipes.core.adapter_penalty import add_missing_penalty
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
    add_missing_penalty(trainer, lambda: config.orth_reg_weight * orthogonality(trainer.model))


def steps_of(trainer: Trainer) -> int:
    """How many optimiser steps a trainer will take."""
    if trainer.args.max_steps > 0:
        return trainer.args.max_steps
    with torch.random.fork_rng(devices=[]):
        return trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]


def orthogonality(model: nn.Module) -> Tensor:
    """Mean over all P and Q of the Frobenius norm of PᵀP - I and QQᵀ - I, as PEFT has it (the paper squares it), scalar."""
    norms = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_A" in name or "lora_B" in name):
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            norms.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    return torch.stack(norms).mean()
