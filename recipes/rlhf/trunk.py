"""What PPO asks of any transformers model: its last hidden states and its adapters on and off."""

import inspect
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from recipes.core.errors import UserError
from recipes.core.peft_block import puts_prompt_at_input
from recipes.core.weights import whole_weights
from recipes.rlhf import ppo_math
from recipes.rlhf.packing import make_packable, pack


def without_adapter(model: nn.Module) -> nn.Module:
    """The transformers model under a PEFT model, with its adapter layers in place; any other model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def adapter(policy: PeftModel, name: str | None):
    """The policy under another of its adapters, or under none, for a while.

    Unlike PEFT's `set_adapter` and `disable_adapter` it leaves alone which parameters are trained. A prompt-learning
    method, which has no layers to switch, is turned off by PEFT.
    """
    if policy.active_peft_config.is_prompt_learning:
        with policy.disable_adapter() if name is None else nullcontext():
            yield
        return
    layers = [m for m in policy.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    saved = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter, layer._disable_adapters = [name] if name else layer._active_adapter, name is None
    try:
        yield
    finally:
        for layer, active, disabled in saved:
            layer._active_adapter, layer._disable_adapters = active, disabled


def check_switchable(policy: PeftModel) -> None:
    """The reference of an adapter is the policy without it, so that all that is trained must be of the adapter.

    Raises:
        UserError: something else is trained too, such as biases of the base.
    """
    if policy.active_peft_config.is_prompt_learning:
        return
    inside = {
        id(parameter)
        for module in policy.modules()
        if isinstance(module, BaseTunerLayer)
        for name in module.adapter_layer_names
        for parameter in getattr(module, name).parameters()
    }
    inside |= {
        id(parameter)
        for module in policy.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        for name, parameter in module.named_parameters()
        if not name.startswith("original_module")
    }
    outside = [
        name
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and id(parameter) not in inside
    ]
    if outside:
        raise UserError(
            f"the adapter cannot be switched off for the reference: it also trains {outside[0]} of the base; set "
            "bias: none in peft, pass a ref_model, or set kl_coef to 0"
        )


def train_adapters(policy: PeftModel, names: list[str]) -> None:
    """Marks the parameters of these adapters, and no others, as trained; PEFT's own switch knows a single one."""
    for module in policy.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            for name, parameter in module.named_parameters():
                if any(part in policy.peft_config for part in name.split(".")):
                    parameter.requires_grad_(any(part in names for part in name.split(".")))


def packs(model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model takes packed rows, which it is made ready for; see `packing`."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return False  # what it puts before the prompt is added outside the transformers model
    with whole_weights(model):
        return make_packable(without_adapter(model))


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits of a causal language model are its head's output, neither scaled nor capped: by a try."""
    with whole_weights(model):
        tokens = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
        result = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        plain = model.get_output_embeddings()(result.hidden_states[-1])
        return torch.equal(plain.float(), result.logits.float())


def states(trunk: PreTrainedModel, packs: bool, input_ids: Tensor, attention_mask: Tensor, at: Tensor) -> Tensor:
    """Last hidden states [N, H] at the tokens marked in `at`, bool [B, T], of sequences with padding anywhere."""
    if packs:
        packed = pack(input_ids, attention_mask)
        return trunk(**packed.inputs).last_hidden_state[0].index_select(0, packed.index[at])
    return trunk(**model_inputs(trunk, input_ids, attention_mask)).last_hidden_state[at]


def positions_follow_mask(policy: PeftModel) -> None:
    """Count the positions of a model under virtual tokens by its mask: PEFT drops those that it is given.

    Without them padding on the left would stand between the virtual tokens and the prompt, and a response depend on what
    shares its batch.
    """
    base = policy.get_base_model()
    if not puts_prompt_at_input(policy.active_peft_config) or "position_ids" not in signature(base):
        return

    def count(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        mask = kwargs.get("attention_mask")
        if kwargs.get("position_ids") is None and mask is not None and mask.dim() == 2:
            given = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
            kwargs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -given.size(1) :]
        return args, kwargs

    base.register_forward_pre_hook(count, with_kwargs=True)


def last_cells(mask: Tensor) -> Tensor:
    """Marks the last real token of each row of `mask` [B, T]: bool [B, T]."""
    cells = torch.zeros_like(mask, dtype=torch.bool)
    cells[torch.arange(len(mask), device=mask.device), ppo_math.last_real_token(mask)] = True
    return cells


def model_inputs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, last: int | None = None) -> dict:
    """Inputs of a transformers model for sequences with padding anywhere; `last`: logits at the last positions only."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    accepted = signature(model)
    if "position_ids" in accepted:
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    if last is not None and "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = last
    return inputs


def signature(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def disable_dropout(model: nn.Module) -> None:
    """Turns dropout off, in modules and in the plain numbers attention takes; the config, which is saved, keeps it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def vocabulary_size(model: nn.Module) -> int:
    return model.config.get_text_config().vocab_size


@contextmanager
def on_device(model: nn.Module, device: torch.device):
    """The model on a device for a while; afterwards it is again where it was."""
    home = next(model.parameters()).device
    if home != device:
        model.to(device)
    try:
        yield
    finally:
        if home != device:
            model.to(home)


def part_of(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
