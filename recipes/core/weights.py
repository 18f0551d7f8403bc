"""Weights of trained models: opened, merged, counted, and in one piece where ZeRO-3 shards them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.core.catalog import check_source
from recipes.core.errors import UserError
from recipes.core.files import read_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def load_pretrained(auto: type, path: str, new_weights: set[str] | None = None, **kwargs: Any) -> "PreTrainedModel":
    """Weights from a Hub name or a folder; a folder that holds an adapter is merged into its base.

    Args:
        auto: one of transformers' Auto classes.
        new_weights: receives the names of the parameters that were not there and were initialised anew.

    Raises:
        UserError: the run was not made yet, the folder is missing, or it holds no model of this kind.
    """
    check_source(path, "model_name_or_path")
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    adapter = read_json(Path(path) / "adapter_config.json")
    try:
        source = adapter["base_model_name_or_path"] if adapter else path
        if adapter and adapter.get("revision"):
            kwargs["revision"] = adapter["revision"]  # of its base
        model, found = auto.from_pretrained(source, output_loading_info=True, **kwargs)
        give_memory_to_new_weights(model)
        missing = set(found["missing_keys"])
        if adapter:
            model = merged(model, path)
            saved = [f".{module}." for module in adapter.get("modules_to_save") or ()]
            missing = {key for key in missing if not any(module in f".{key}" for module in saved)}
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            f"{path} has a head of another size than this task's; name the model that it was made from"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no model could be opened at {path}: {error}") from None
    if new_weights is not None:
        new_weights |= missing
    return model


def give_memory_to_new_weights(model: "PreTrainedModel") -> None:
    """Under FSDP, where all processes but one have new weights, such as a head's, on the meta device until they are sent.

    accelerate tells the weights in an optimizer by their address, of which these have none: it would take them for one.
    """
    import torch

    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.is_meta:
                empty = torch.empty_like(weight, device="cpu")
                module.register_parameter(name, torch.nn.Parameter(empty, requires_grad=weight.requires_grad))


def weights_in(parameter: "nn.Parameter") -> int:
    """How many weights a parameter holds, also where ZeRO-3 keeps a part of it here, or 4 bits lie two in a byte."""
    count = getattr(parameter, "ds_numel", None) or parameter.numel()
    return 2 * parameter.quant_storage.itemsize * count if type(parameter).__name__ == "Params4bit" else count


def whole_weights(*models: "nn.Module") -> AbstractContextManager:
    """Under ZeRO-3, the weights of the models in one piece; what the first process writes to them is kept."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    parameters = [parameter for model in models for parameter in model.parameters()]
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


@contextmanager
def unsharded() -> Iterator[None]:
    """Models that are opened inside are whole in every process, also under ZeRO-3: for those that no engine is given."""
    from transformers.integrations import deepspeed as integration

    config = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = config


def merged(base: "PreTrainedModel", path: str) -> "PreTrainedModel":
    """The base with the adapter saved at `path` merged into its weights.

    Raises:
        UserError: the adapter is of another base, or its method has no weights to merge.
    """
    from peft import PeftConfig, PeftModel

    import recipes.adapters  # noqa: F401  registers its methods with PEFT

    config = PeftConfig.from_pretrained(path)
    unmergeable = (
        f"{path} is an adapter of {config.peft_type.value.lower()}, which has no weights to merge into its base"
    )
    if config.is_prompt_learning:
        raise UserError(f"{unmergeable}: open it with peft.AutoPeftModel")
    try:
        model = PeftModel.from_pretrained(base, path)
    except RuntimeError as error:  # sizes that differ
        raise UserError(f"{path} is an adapter of another base than {base.name_or_path}: {error}") from None
    try:
        return model.merge_and_unload()
    except NotImplementedError:
        raise UserError(f"{unmergeable}: open it with peft.AutoPeftModel") from None
