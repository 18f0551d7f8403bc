"""BitFit: only the bias terms are trained.

Paper: Ben Zaken et al. 2021, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
       Language-models, arXiv 2106.10199, section 3.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from recipes.adapters.layers import AdapterModel, own_modules, trained_whole
from recipes.core.errors import UserError, did_you_mean

QUERY = re.compile(r"(^|\.)(query|q_proj|q_lin|q)$")
INTERMEDIATE = re.compile(r"(^|\.)(intermediate\.dense|fc1|lin1|wi|wi_0|wi_1|c_fc|up_proj|gate_proj)$")


@dataclass
class BitFitConfig(PeftConfig):
    """Train the bias terms, each adapter a copy of its own.

    The paper's learning rates for it are 1e-4, 4e-4, 7e-4 and 1e-3, ten times those of full fine-tuning.
    """

    bias_terms: Literal["all", "query_and_intermediate"] = field(
        default="all",
        metadata={
            "help": "all, or the paper's subset of half as many: the query's bias and that of the MLP's hidden layer "
            "(b_q and b_m2 in its section 3)."
        },
    )
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "Only the biases of these modules: names, or a regular expression for the whole name."},
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained whole and saved with the adapter, such as a new head."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BITFIT


class BitFitLayer(nn.Module, BaseTunerLayer):
    """A module of the base whose bias is replaced by the active adapter's while it computes."""

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self.bitfit_bias = nn.ParameterDict()
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        self._original: torch.Tensor | None = None  # the base's own bias while another one is merged

    def add_copy(self, adapter_name: str) -> None:
        base = self.base_layer.bias if self._original is None else self._original
        self.bitfit_bias[adapter_name] = nn.Parameter(base.detach().clone())

    @property
    def active_bias(self) -> nn.Parameter | None:
        """The bias to compute with instead of the base's, if there is one.

        Raises:
            UserError: two active adapters have one each.
        """
        if self.disable_adapters or self.merged:
            return None
        active = [self.bitfit_bias[name] for name in self.active_adapters if name in self.bitfit_bias]
        if len(active) > 1:
            raise UserError("bitfit: a bias has one value; set one adapter active")
        return active[0] if active else None

    def forward(self, *args, **kwargs):
        if self.disable_adapters and self.merged:
            self.unmerge()
        bias = self.active_bias
        if bias is None:
            return self.base_layer(*args, **kwargs)
        parameters = self.base_layer._parameters  # not setattr: the base's own parameter stays registered nowhere else
        own, parameters["bias"] = parameters["bias"], bias
        try:
            return self.base_layer(*args, **kwargs)
        finally:
            parameters["bias"] = own

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.bitfit_bias]
        if not names:
            return
        if len(names) > 1 or self.merged:
            raise UserError("bitfit: a bias has one value; merge one adapter, after unmerging the last")
        new = self.bitfit_bias[names[0]].detach()
        if safe_merge and not new.isfinite().all():
            raise UserError(f"the adapter {names[0]} holds a number that is not finite")
        self._original = self.base_layer.bias.detach().clone()
        self.base_layer.bias.data.copy_(new)
        self.merged_adapters.append(names[0])

    def unmerge(self) -> None:
        if self.merged:
            self.base_layer.bias.data.copy_(self._original)
            self._original = None
            self.merged_adapters.clear()


class BitFitModel(AdapterModel):
    """Tuner that puts a BitFitLayer around every module that has a bias of its own."""

    prefix = "bitfit_"

    def find(self, config: BitFitConfig, model: nn.Module) -> list[str]:
        if is_deepspeed_zero3_enabled():
            raise UserError("bitfit: puts its biases in the place of others, which ZeRO-3 has in parts; use zero2")
        return chosen(config, model)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key) -> None:
        if not isinstance(target, BitFitLayer):
            target = BitFitLayer(target)
            setattr(parent, target_name, target)
        target.add_copy(adapter_name)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave the copies in the base's type: each stands in for one of its parameters."""


def biased(config: BitFitConfig, model: nn.Module) -> Iterator[str]:
    """The modules that compute with a bias of their own: those without parts, so that no bias is met twice."""
    for name, module in own_modules(model):
        if next(module.children(), None) is None and not trained_whole(config, name):
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter) and getattr(module, "weight", None) is not None:
                yield name


def chosen(config: BitFitConfig, model: nn.Module) -> list[str]:
    """The modules whose bias the config asks for.

    Raises:
        UserError: the model has no biases, or not those.
    """
    kind = type(model).__name__
    found = list(biased(config, model))
    if not found:
        raise UserError(
            f"bitfit: {kind} has no bias terms (LLaMA and its kin were trained without); "
            "take ln_tuning, ia3 or lora, which train as little"
        )
    if config.bias_terms == "query_and_intermediate":
        queries, hidden = ([name for name in found if pattern.search(name)] for pattern in (QUERY, INTERMEDIATE))
        if not queries or not hidden:
            raise UserError(
                f"bitfit: {kind} has no {'query' if not queries else 'hidden layer of an MLP'} with a bias of its "
                "own; set bias_terms: all, or name the modules in target_modules"
            )
        found = queries + hidden
    wanted = config.target_modules
    if wanted is None:
        return found
    if isinstance(wanted, str):
        matched = [name for name in found if re.fullmatch(wanted, name)]
        wanted = [wanted]
    else:
        matched = [name for name in found if any(f".{name}".endswith(f".{each}") for each in wanted)]
    ends = {name.rpartition(".")[2] for name in found}
    for each in wanted:
        if not any(re.fullmatch(each, name) or f".{name}".endswith(f".{each}") for name in found):
            raise UserError(f"bitfit: target_modules: no module '{each}' with a bias{did_you_mean(each, ends)}")
    return matched
