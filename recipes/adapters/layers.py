"""What the adapters here have in common: a layer around a module of the base model, and the tuner that puts it there."""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from recipes.core.errors import UserError
from recipes.core.weights import whole_weights


def own_modules(model: nn.Module, whole: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the base model by their names in it; what adapters put around or into them is left out.

    Args:
        whole: with those that an adapter trains whole (`modules_to_save`).
    """
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, BaseTunerLayer):
            inside += (f"{name}.",)
            yield name, module.get_base_layer()
        elif isinstance(module, AuxiliaryTrainingWrapper):
            inside += (f"{name}.",)
            if whole:
                yield name, module.original_module
        elif name:
            yield name, module


def trained_whole(config, name: str) -> bool:
    """Whether the module is one of the config's `modules_to_save`, or lies inside one."""
    return any(re.match(rf"(^|.*\.){module}($|\..*)", name) for module in config.modules_to_save or ())


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the base model with one block of parameters for each adapter that has one here.

    A subclass names in `adapter_layer_names` the ModuleDict that holds the blocks.

    Args:
        base_layer: the module.
        shared: the blocks of another layer, for a layer that has none of its own.
    """

    def __init__(self, base_layer: nn.Module, shared: nn.ModuleDict | None = None):
        super().__init__()
        self.base_layer = base_layer
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self._trained: list[nn.Parameter] = []
        self._shared = shared if shared is None else (shared,)  # in a tuple, so as not to be registered twice
        if shared is None:
            self.add_module(self.adapter_layer_names[0], nn.ModuleDict())

    def __getattr__(self, name: str):
        if name in type(self).adapter_layer_names and self.__dict__.get("_shared"):
            return self._shared[0]
        return super().__getattr__(name)

    @property
    def blocks(self) -> nn.ModuleDict:
        return getattr(self, self.adapter_layer_names[0])

    @property
    def active_blocks(self) -> list[nn.Module]:
        """The blocks that take part, in the order in which the adapters were set; none while adapters are disabled."""
        if self.disable_adapters:
            return []
        return [self.blocks[name] for name in self.active_adapters if name in self.blocks]

    def add_block(self, adapter_name: str, block: nn.Module, like: torch.Tensor) -> None:
        """Take a new adapter's block, with the device and, where that is a floating-point one, the type of `like`."""
        dtype = like.dtype if like.is_floating_point() else None
        on_meta = any(parameter.is_meta for parameter in block.parameters())  # PEFT's low_cpu_mem_usage
        self.blocks[adapter_name] = block if on_meta else block.to(like.device, dtype)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        super().set_adapter(adapter_names, inference_mode)
        self._trained = []

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters on or off. What was trained before is trained after; PEFT would train all that are active."""
        if enabled and self._disable_adapters:
            for parameter in self._trained:
                parameter.requires_grad_(True)
        elif not enabled and not self._disable_adapters:
            self._trained = [parameter for parameter in self.blocks.parameters() if parameter.requires_grad]
            for parameter in self._trained:
                parameter.requires_grad_(False)
        self._disable_adapters = not enabled

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise UserError("an adapter of this method cannot be merged into the base")

    def unmerge(self) -> None:
        """Nothing was merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        if merge:
            self.merge(safe_merge, adapter_names)
        return self.base_layer


class AdapterModel(BaseTuner):
    """Tuner of a method that finds the modules it adapts by itself.

    A subclass implements `find` and `_create_and_replace`, and says in `why_not_merged` why the base cannot take in its
    adapters, if it cannot.
    """

    tuner_layer_cls = BaseTunerLayer
    why_not_merged: str | None = None

    @abstractmethod
    def find(self, config, model: nn.Module) -> Sequence[str]:
        """The names of the modules that an adapter of this config is put around.

        Raises:
            UserError: the model has no such modules.
        """

    def inject_adapter(self, model: nn.Module, *args, **kwargs) -> None:
        with whole_weights(model):  # an adapter has the shape of what it adapts, and BitFit its values
            super().inject_adapter(model, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config, model_config: dict):
        return peft_config  # target_modules stays what the user said: the places are found anew in each model

    def _prepare_model(self, peft_config, model: nn.Module) -> None:
        self._found = set(self.find(peft_config, model))

    def _check_target_module_exists(self, peft_config, key: str) -> bool:
        return key in self._found

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT looks for the name in the last place but one; our blocks are modules of several tensors
        return re.sub(rf"(\.{cls.prefix}\w+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)

    def _check_merge_allowed(self) -> None:
        if self.why_not_merged is None:
            return super()._check_merge_allowed()
        raise UserError(f"{self.prefix.rstrip('_')}: cannot be merged into the base: {self.why_not_merged}")


def parameter_like(module: nn.Module, model: nn.Module) -> torch.Tensor:
    """A tensor with the device and type that an adapter at this module should have."""
    if hasattr(module, "compute_dtype"):  # a quantised linear layer of bitsandbytes
        return torch.empty(0, dtype=module.compute_dtype or torch.float32, device=module.weight.device)
    own = next(module.parameters(), None)
    return own if own is not None else model.get_input_embeddings().weight
