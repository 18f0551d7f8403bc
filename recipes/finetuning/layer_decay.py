"""Layer-wise learning rates: the lower a layer, the more general what it knows, and the slower it is changed.

Paper: Sun et al. 2019, How to Fine-Tune BERT for Text Classification?, arXiv 1905.05583, section 5.3.3: the rate of layer
       k - 1 is ξ times that of layer k.
"""

import re

import torch
from torch import nn
from transformers import Trainer

from recipes.core.errors import UserError

LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.")
EMBEDDINGS = re.compile(r"(?:^|\.)(?:embeddings|embed_tokens|embed_positions|wte|wpe|shared)\b")


def depth(name: str, layers: int) -> int:
    """How far below the top a parameter stands: 0 for head and pooler, 1 for the last layer, `layers` + 1 for embeddings."""
    if layer := LAYER.search(name):
        return layers - int(layer[1])
    return layers + 1 if EMBEDDINGS.search(name) else 0


def layer_groups(trainer: Trainer, decay: float) -> list[dict]:
    """Parameter groups for an optimiser, each with `params`, `weight_decay` and `lr` = learning_rate · decay ** depth.

    The head has the rate of the last layer, as in the paper, whose top layer has the base rate.

    Raises:
        UserError: the model has no numbered layers.
    """
    model, args = trainer.model, trainer.args
    numbers = [int(found[1]) for name, _ in model.named_parameters() if (found := LAYER.search(name))]
    if not numbers:
        raise UserError(f"layer_decay: {type(model).__name__} has no numbered layers")
    layers, decayed = max(numbers) + 1, set(trainer.get_decay_parameter_names(model))
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((max(depth(name, layers), 1) - 1, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": args.weight_decay if with_decay else 0.0,
            "lr": args.learning_rate * decay**below,
        }
        for (below, with_decay), parameters in groups.items()
    ]


def use_layer_decay(trainer: Trainer, decay: float) -> None:
    """Give a trainer that has no optimizer yet one with layer-wise rates; its schedule scales them all alike."""

    def create_optimizer(model: nn.Module | None = None) -> torch.optim.Optimizer:
        if trainer.optimizer is None:
            cls, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
            trainer.optimizer = cls(layer_groups(trainer, decay), **options)
        return trainer.optimizer

    trainer.create_optimizer = create_optimizer


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The different learning rates of an optimizer's groups, the highest first."""
    return sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
