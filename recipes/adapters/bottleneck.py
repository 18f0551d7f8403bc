"""Bottleneck adapters: Houlsby's two a layer, Pfeiffer's one, and the stack of two that MAD-X transfers tasks with.

Papers: Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv 1902.00751, section 2 and figure 2.
        Pfeiffer et al. 2020, AdapterFusion: Non-Destructive Task Composition for Transfer Learning, arXiv 2005.00247.
        Pfeiffer et al. 2020, MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer, arXiv 2005.00052,
        section 3 (equations 1 to 3).
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from peft import PeftModel
from peft.config import PeftConfig
from peft.utils import ModulesToSaveWrapper, PeftType
from torch import nn
from transformers.activations import ACT2FN

from recipes.adapters.invertible import EmbeddingLayer, NiceCoupling, OutputLayer
from recipes.adapters.layers import AdapterLayer, AdapterModel, own_modules, parameter_like
from recipes.adapters.places import Place, find_embeddings, find_places
from recipes.core.errors import UserError, did_you_mean

# What the papers' own code takes; the first paper names no function.
NON_LINEARITY = {"houlsby": "gelu", "pfeiffer": "relu"}


@dataclass
class BottleneckConfig(PeftConfig):
    """Adapters of the form U·f(D·h), added to what a sub-layer puts out.

    Learning rates: Houlsby et al. search 3e-5, 3e-4, 3e-3; Pfeiffer et al. take 1e-4, for language adapters too.

    The defaults are Houlsby et al.'s. Two things differ from the authors' code: a sub-layer's dropout follows the adapter
    (there it comes before), and on models that normalise before a sub-layer the Pfeiffer adapter reads what the
    sub-layer puts out (the papers' models normalise after the sum).
    """

    placement: Literal["houlsby", "pfeiffer"] = field(
        default="houlsby",
        metadata={"help": "houlsby: after attention and after the feed-forward block; pfeiffer: the latter alone."},
    )
    reduction_factor: float = field(
        default=16, metadata={"help": "Hidden size divided by the bottleneck's: 16 is 64 units in BERT-large."}
    )
    non_linearity: str | None = field(
        default=None, metadata={"help": "A function of transformers, such as relu; default: gelu (houlsby), relu."}
    )
    init_weights: Literal["near_identity", "identity"] = field(
        default="near_identity",
        metadata={
            "help": "near_identity: all weights from a normal distribution cut off at two standard deviations, as in "
            "Houlsby et al.; identity: the projection up at zero, so that step 0 is exactly the base model."
        },
    )
    init_std: float = field(default=0.01, metadata={"help": "The standard deviation; Houlsby et al.: 1e-2."})
    scaling: float = field(default=1.0, metadata={"help": "Factor of what the adapter adds."})
    train_layer_norms: bool | None = field(
        default=None,
        metadata={"help": "Train a copy of each layer norm too; default: true with houlsby, as in the paper."},
    )
    invertible: bool = field(
        default=False,
        metadata={"help": "Add MAD-X's invertible adapter at the embeddings (of a language adapter)."},
    )
    invertible_reduction_factor: float = field(
        default=2, metadata={"help": "Half the hidden size divided by the hidden size of its functions F and G."}
    )
    stacked_on: str | None = field(
        default=None, metadata={"help": "The adapter, loaded before, whose output this one reads; see stack()."}
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Put the adapters after these linear layers instead: names, or a regular expression."},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained whole and saved with the adapter, such as a new head."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BOTTLENECK
        self.non_linearity = self.non_linearity or NON_LINEARITY[self.placement]
        if self.train_layer_norms is None:
            self.train_layer_norms = self.placement == "houlsby"
        if self.non_linearity not in ACT2FN:
            raise UserError(
                f"non_linearity: no function '{self.non_linearity}'{did_you_mean(self.non_linearity, ACT2FN)}"
            )
        if self.reduction_factor <= 0 or self.invertible_reduction_factor <= 0:
            raise UserError("reduction_factor and invertible_reduction_factor must be above 0")
        if self.init_std < 0:
            raise UserError(f"init_std must be at least 0, not {self.init_std}")
        if self.train_layer_norms and self.placement == "pfeiffer":
            raise UserError(
                "train_layer_norms belongs to placement: houlsby; Pfeiffer et al. leave the model as it is"
            )


class Bottleneck(nn.Module):
    """s·U·f(D·h) for h of shape (…, features): what an adapter adds, without the residual connection."""

    def __init__(self, features: int, config: BottleneckConfig):
        super().__init__()
        hidden = max(1, int(features / config.reduction_factor))
        self.down, self.up = nn.Linear(features, hidden), nn.Linear(hidden, features)
        self.non_linearity = ACT2FN[config.non_linearity]
        self.scaling = config.scaling
        std = config.init_std
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std) if std else nn.init.zeros_(
                linear.weight
            )
            nn.init.zeros_(linear.bias)
        if config.init_weights == "identity":
            nn.init.zeros_(self.up.weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = self.non_linearity(self.down(hidden.to(self.down.weight.dtype)))
        return (self.scaling * self.up(inner)).to(hidden.dtype)


class BottleneckLayer(AdapterLayer):
    """The last linear layer of a sub-layer, or the layer norm after the sum, with the adapters that stand there.

    With h for what the first adapter reads and r for what the sub-layer puts out, one adapter makes U·f(D·h) + r, and
    one stacked on it reads that instead of h and adds to the same r (MAD-X, equations 1 to 3). Around a linear layer
    h = r; around a layer norm, whose input is r plus the sub-layer's input, h is what the layer norm puts out, and the
    layer norm is applied once more to the new sum.
    """

    adapter_layer_names = ("bottleneck_blocks",)

    def __init__(self, base_layer: nn.Module, entrance: nn.Module | None = None):
        super().__init__(base_layer)
        self._entered: torch.Tensor | None = None
        self._hook = entrance.register_forward_pre_hook(self._remember) if entrance is not None else None

    def _remember(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        """Keep the sub-layer's input, which is needed where adapters are stacked."""
        self._entered = args[0] if len(self.active_blocks) > 1 else None

    def forward(self, inputs: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        outputs = self.base_layer(inputs, *args, **kwargs)
        blocks = self.active_blocks
        if not blocks:
            return outputs
        change = blocks[0](outputs)
        if len(blocks) > 1:
            residual = outputs if self._hook is None else inputs - self._entered
            self._entered = None
            for block in blocks[1:]:
                change = block(change + residual)
        return outputs + change if self._hook is None else self.base_layer(inputs + change)

    def unload_and_optionally_merge_module(self, merge, safe_merge, adapter_names) -> nn.Module:
        if self._hook is not None:
            self._hook.remove()
        return super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)


class BottleneckModel(AdapterModel):
    """Tuner of bottleneck and invertible adapters."""

    prefix = "bottleneck_"
    why_not_merged = "its non-linearity stands after a layer of the base, and no weight of that layer can express it"

    def find(self, config: BottleneckConfig, model: nn.Module) -> list[str]:
        if config.train_layer_norms:
            norms = [name for name, module in own_modules(model, whole=True) if is_norm(module)]
            if any(isinstance(model.get_submodule(name), BottleneckLayer) for name in norms):
                raise UserError("bottleneck: another adapter stands at the layer norms that this one would train")
            ends = {name.rpartition(".")[2] for name in norms}
            config.modules_to_save = sorted({*(config.modules_to_save or ()), *ends})
        places = find_places(model, config.placement, config.target_modules)
        self._places: dict[str, Place] = {place.name: place for place in places}
        self._embeddings, self._scores = find_embeddings(model) if config.invertible else (None, None)
        return [*self._places, *filter(None, (self._embeddings, self._scores))]

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key) -> None:
        layer = target
        if current_key == self._scores:
            if not isinstance(target, OutputLayer):
                layer = OutputLayer(target, shared=self.model.get_submodule(self._embeddings).blocks)
        elif current_key == self._embeddings:
            if not isinstance(target, EmbeddingLayer):
                layer = EmbeddingLayer(target)
            size = self.model.get_input_embeddings().weight.shape[1]
            hidden = max(1, int(size / 2 / peft_config.invertible_reduction_factor))
            like = parameter_like(layer.base_layer, self.model)
            layer.add_block(adapter_name, NiceCoupling(size, hidden, peft_config.init_std), like)
        else:
            if not isinstance(target, BottleneckLayer):
                layer = self._layer(target, self._places[current_key])
            like = parameter_like(layer.base_layer, self.model)
            layer.add_block(adapter_name, self._block(peft_config, adapter_name, current_key, layer), like)
        if layer is not target:
            setattr(parent, target_name, layer)

    def _layer(self, target: nn.Module, place: Place) -> BottleneckLayer:
        entrance = self.model.get_submodule(place.entrance) if place.entrance else None
        return BottleneckLayer(target, entrance)

    def _block(self, config: BottleneckConfig, adapter_name: str, key: str, layer: BottleneckLayer) -> nn.Module:
        return Bottleneck(width(layer.base_layer), config)

    def unload(self) -> nn.Module:
        """The base model, with its own layer norms; PEFT would leave the trained ones, as it leaves a trained head."""
        for module in self.model.modules():
            if isinstance(module, ModulesToSaveWrapper) and is_norm(module.original_module):
                module.set_adapter([])
        return super().unload()

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapters, applied in this order, below each the one it is stacked on; these are not trained.

        Raises:
            UserError: an adapter is stacked on one that is not loaded.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        chain = [each for name in names for each in self._stack_under(name)]
        super().set_adapter(adapter_name, inference_mode)
        if chain != names:
            for module in self.model.modules():
                if isinstance(module, AdapterLayer):
                    module._active_adapter = chain

    def _stack_under(self, name: str) -> list[str]:
        chain = [name]
        while below := getattr(self.peft_config[chain[0]], "stacked_on", None):
            if below not in self.peft_config:
                raise UserError(
                    f"adapter '{chain[0]}' is stacked on '{below}', which is not loaded; load that one first"
                )
            if below in chain:
                raise UserError(f"adapter '{below}' is stacked on itself")
            chain.insert(0, below)
        return chain


def is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def width(module: nn.Module) -> int:
    """The features that a linear layer or a layer norm puts out."""
    return getattr(module, "out_features", None) or getattr(module, "nf", None) or module.weight.shape[-1]


def stack(model: PeftModel, *names: str) -> None:
    """Apply these adapters one on top of another and train the last.

    MAD-X: `stack(model, "english", "task")` to train the task adapter, `stack(model, "german", "task")` to use it in
    another language. The order is kept in the configs, so that it outlasts saving, resuming and `set_adapter("task")`.

    All adapters of one PeftModel are of one method and task type. A language adapter has no head: build the model with
    a config without task type, and name the head in the task adapter's `modules_to_save`.

    Raises:
        UserError: the model has no such adapter.
    """
    for name in names:
        if name not in model.peft_config:
            raise UserError(f"no adapter '{name}' is loaded{did_you_mean(name, model.peft_config)}")
    model.peft_config[names[0]].stacked_on = None
    for below, above in pairwise(names):
        model.peft_config[above].stacked_on = below
    model.set_adapter(names[-1])
