"""AdapterFusion: attention over what several frozen adapters make of the same hidden state.

Paper: Pfeiffer et al. 2020, AdapterFusion: Non-Destructive Task Composition for Transfer Learning, arXiv 2005.00247,
       section 3.2 and figure 2.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from peft.utils import PeftType, load_peft_weights
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from recipes.adapters.bottleneck import Bottleneck, BottleneckConfig, BottleneckLayer, BottleneckModel, width
from recipes.adapters.places import Place, find_places
from recipes.core.errors import UserError

SMALL = 1e-6  # the paper's norm of what stands beside the diagonal of the value matrix at the start


@dataclass
class AdapterFusionConfig(PeftConfig):
    """Learn to combine adapters that were trained before, each on its own task; they stay as they are.

    The paper's learning rate for it is 5e-5 (1e-4 for the adapters themselves). The regulariser is added to the loss that
    the model returns in training; a recipe adds it once an optimizer step (`core.adapter_penalty`).
    """

    adapters: dict[str, str] | None = field(
        default=None, metadata={"help": "The adapters to combine: a name of your own, and the folder or Hub name."}
    )
    regularization: float = field(
        default=0.01,
        metadata={
            "help": "Factor of the value matrices' squared distance from the identity, as in the authors' code."
        },
    )
    adapter_configs: dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "Filled in: the configs of the adapters, which are saved with the fusion."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Filled in from the adapters' configs."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained whole and saved with the fusion, such as a new head."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.ADAPTER_FUSION
        names = self.adapter_configs or self.adapters or {}
        if len(names) < 2:
            raise UserError("adapter_fusion: name at least two trained adapters in adapters: {name: folder, …}")
        for name in names:
            if "." in name:
                raise UserError(f"adapter_fusion: the name '{name}' must not hold a dot")
        if self.regularization < 0:
            raise UserError(f"regularization must be at least 0, not {self.regularization}")


class Fusion(nn.Module):
    """What N adapters add to a hidden state h, weighted by softmax(hQ · z_nK), each times V.

    z_n is what adapter n adds, of shape (…, features), as h is. In the paper z_n has the residual h in it, which
    changes no weight and, with V the identity, is the same as adding h after the sum; the authors' code does the latter.
    """

    def __init__(self, features: int, adapters: dict[str, Bottleneck]):
        super().__init__()
        self.adapters = nn.ModuleDict(adapters).requires_grad_(False)
        self.query, self.key, self.value = (nn.Linear(features, features, bias=False) for _ in range(3))
        nn.init.normal_(self.query.weight, std=0.02)
        nn.init.normal_(self.key.weight, std=0.02)
        nn.init.normal_(self.value.weight, std=SMALL)
        with torch.no_grad():
            self.value.weight.fill_diagonal_(1.0)

    def weights(self, hidden: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        """The share of each adapter at each position: (…, N) from (…, features) and (…, N, features)."""
        return torch.einsum("...d,...nd->...n", self.query(hidden), self.key(outputs)).softmax(dim=-1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([adapter(hidden) for adapter in self.adapters.values()], dim=-2)
        outputs = outputs.to(self.value.weight.dtype)
        weights = self.weights(hidden.to(self.value.weight.dtype), outputs)
        return torch.einsum("...n,...nd->...d", weights, self.value(outputs)).to(hidden.dtype)

    def distance(self) -> torch.Tensor:
        """The squared Frobenius norm of V − I."""
        identity = torch.eye(len(self.value.weight), device=self.value.weight.device, dtype=self.value.weight.dtype)
        return (self.value.weight - identity).square().sum()


class FusionLayer(BottleneckLayer):
    adapter_layer_names = ("adapter_fusion_blocks",)

    def _freeze_non_trainable_peft_weights(self, adapter_names=None) -> None:
        """Called by PEFT after everything that makes an adapter trainable: what is fused stays frozen."""
        for block in self.blocks.values():
            block.adapters.requires_grad_(False)


class AdapterFusionModel(BottleneckModel):
    """Tuner of fusions; it holds the adapters that they fuse, and saves them with each."""

    prefix = "adapter_fusion_"

    def __init__(self, model: nn.Module, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self._hook = self.model.register_forward_hook(self._regularize)

    def find(self, config: AdapterFusionConfig, model: nn.Module) -> list[str]:
        if is_deepspeed_zero3_enabled():
            raise UserError(
                "adapter_fusion: its regulariser needs whole matrices, which ZeRO-3 does not keep; use zero2"
            )
        self._tensors: dict[str, dict[str, torch.Tensor]] = {}
        if config.adapter_configs is None:
            config.adapter_configs = {name: read_config(name, source) for name, source in config.adapters.items()}
            self._tensors = {name: load_peft_weights(source, "cpu") for name, source in config.adapters.items()}
        first, *others = config.adapter_configs
        for other in others:
            for key in ("placement", "target_modules"):
                one, two = (config.adapter_configs[name][key] for name in (first, other))
                if one != two:
                    raise UserError(f"adapter_fusion: '{first}' has {key} {one} and '{other}' {two}; they must agree")
        config.target_modules = config.adapter_configs[first]["target_modules"]
        places = find_places(model, config.adapter_configs[first]["placement"], config.target_modules)
        self._places: dict[str, Place] = {place.name: place for place in places}
        self._embeddings = self._scores = None
        return list(self._places)

    def _layer(self, target: nn.Module, place: Place) -> FusionLayer:
        entrance = self.model.get_submodule(place.entrance) if place.entrance else None
        return FusionLayer(target, entrance)

    def _block(self, config: AdapterFusionConfig, adapter_name: str, key: str, layer: FusionLayer) -> Fusion:
        features = width(layer.base_layer)
        adapters = {
            name: Bottleneck(features, BottleneckConfig(**settings))
            for name, settings in config.adapter_configs.items()
        }
        for name, tensors in self._tensors.items():
            start = f"base_model.model.{key}.bottleneck_blocks."
            own = {each.removeprefix(start): tensor for each, tensor in tensors.items() if each.startswith(start)}
            try:
                adapters[name].load_state_dict(own)
            except RuntimeError:
                raise UserError(
                    f"adapter_fusion: '{name}' ({config.adapters[name]}) does not fit {type(self.model).__name__} at "
                    f"{key}; it was trained in another model"
                ) from None
        return Fusion(features, {name: adapters[name] for name in sorted(adapters)})  # the order of a saved config

    def _regularize(self, model: nn.Module, args: tuple, output: Any) -> Any:
        """Add the value matrices' regulariser to the loss, while training."""
        if self.training and torch.is_grad_enabled() and getattr(output, "loss", None) is not None:
            output.loss = output.loss + self.penalty()
        return output

    def penalty(self) -> torch.Tensor:
        """Sum over the layers of the squared distance of V from I, times `regularization`, scalar."""
        layers = (module for module in self.model.modules() if isinstance(module, FusionLayer))
        return sum(
            self.peft_config[name].regularization * layer.blocks[name].distance()
            for layer in layers
            for name in layer.active_adapters
            if name in layer.blocks
        )

    def _unload_and_optionally_merge(self, *args, **kwargs) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        self._hook.remove()
        return model


def read_config(name: str, source: str) -> dict[str, Any]:
    """The settings of a trained bottleneck adapter that make its blocks.

    Raises:
        UserError: there is no adapter, or one that cannot be fused.
    """
    try:
        config = PeftConfig.from_pretrained(source)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"adapter_fusion: '{name}': no adapter at {source}: {error}") from None
    if not isinstance(config, BottleneckConfig):
        raise UserError(
            f"adapter_fusion: '{name}' is a {config.peft_type.value.lower()} adapter; fuse bottleneck adapters"
        )
    if config.train_layer_norms or config.invertible:
        what = "layer norms" if config.train_layer_norms else "an invertible adapter"
        raise UserError(
            f"adapter_fusion: '{name}' has {what} of its own, which cannot be combined; train it with "
            f"{'train_layer_norms' if config.train_layer_norms else 'invertible'}: false"
        )
    kept = ("placement", "reduction_factor", "non_linearity", "scaling", "target_modules")
    settings = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    return {key: settings[key] for key in kept} | {"train_layer_norms": False}
