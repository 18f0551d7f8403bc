"""Putting an adapter on a model and opening a saved one, with the mistakes found that PEFT passes over in silence.

PEFT ignores a name in `target_modules` that no module has as long as another one fits, loads what it finds of an adapter
and warns of the rest, and drops tensors for which the model has no place.
"""

import re
import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, load_peft_weights
from torch import nn

from recipes.adapters.layers import own_modules
from recipes.adapters.places import ends, features
from recipes.core.catalog import parent_config
from recipes.core.errors import UserError, did_you_mean

POSITIVE = ("r", "init_r", "target_r", "num_virtual_tokens", "lora_alpha")
NAMED_MODULES = ("target_modules", "feedforward_modules", "exclude_modules", "modules_to_save")
OWN_PLACES = (PeftType.BITFIT, PeftType.BOTTLENECK, PeftType.ADAPTER_FUSION, PeftType.P_TUNING_TEMPLATE)


def check_config(config: PeftConfig) -> None:
    """What can be said without a model; PEFT finds it when the model is loaded, or never.

    Raises:
        UserError: a rank, a scaling or a number of prompt tokens that is not above 0.
    """
    for key in POSITIVE:
        value = getattr(config, key, None)
        if isinstance(value, (int, float)) and value <= 0:
            raise UserError(f"peft: {key} must be above 0, not {value}")
    if config.peft_type == PeftType.ADALORA and config.target_r >= config.init_r:
        raise UserError(
            f"peft: target_r ({config.target_r}) must be below init_r ({config.init_r}), or no rank is left to take away"
        )


def check_modules(config: PeftConfig, model: nn.Module) -> None:
    """Raise a UserError if the config names a module that the model does not have; lists those that it has."""
    names = [name for name, _ in own_modules(model, whole=True)]
    linear = [name for name, module in own_modules(model) if features(module)]
    for key in ("rank_pattern", "alpha_pattern"):
        for each in getattr(config, key, None) or ():
            if config.peft_type != PeftType.ADALORA and not any(
                re.match(rf"(.*\.)?({each})$", name) for name in names
            ):
                raise UserError(
                    f"peft: {key}: {type(model).__name__} has no module '{each}'; has {', '.join(ends(linear))}"
                )
    for key in NAMED_MODULES:
        wanted = getattr(config, key, None)
        if not wanted or wanted == "all-linear" or (key != "modules_to_save" and config.peft_type in OWN_PLACES):
            continue
        for each in [wanted] if isinstance(wanted, str) else wanted:
            if isinstance(wanted, str):
                found = any(re.fullmatch(each, name) for name in names)
            else:
                found = any(f".{name}".endswith(f".{each}") for name in names)
            if not found:
                near = did_you_mean(each, {name.rpartition(".")[2] for name in names})
                raise UserError(
                    f"peft: {key}: {type(model).__name__} has no module '{each}'{near if 'did you mean' in near else ''}"
                    + (f"; its linear layers: {', '.join(ends(linear))}" if key != "modules_to_save" else "")
                )


def attach(model: nn.Module, config: PeftConfig, adapter_name: str = "default") -> PeftModel:
    """A new adapter on the model, which is changed in place; its parameters alone are trained.

    Raises:
        UserError: the config does not fit the model.
    """
    check_config(config)
    check_modules(config, model)
    check_name(adapter_name, model)
    try:
        return get_peft_model(model, config, adapter_name)
    except UserError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"peft: {error}") from None


def check_name(adapter_name: str, model: nn.Module) -> None:
    """Raise a UserError if an adapter's name is part of a module's: PEFT tells tensors apart by it."""
    if any(adapter_name in name.split(".") for name, _ in own_modules(model)):
        raise UserError(f"adapter name '{adapter_name}': the model has a module of this name; choose another one")


def open_adapter(
    model: nn.Module | PeftModel,
    source: str | Path,
    adapter_name: str = "default",
    trainable: bool = False,
    any_base: bool = False,
) -> PeftModel:
    """A saved adapter on its base model, or beside the adapters that a PeftModel already has.

    Args:
        source: folder or Hub name.
        trainable: whether to train on; prompt methods of PEFT cannot be.
        any_base: take a base model of another name than the one that the adapter was trained on, if the tensors fit.

    Raises:
        UserError: there is no adapter, it belongs to another base model, or its tensors do not fit this one.
    """
    source = str(source)
    config = read_config(source)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not any_base:
        check_base(config, base, source)
    check_name(adapter_name, base)
    mismatch = UserError(
        f"{source}: the adapter does not fit {type(base).__name__}; it was trained on {config.base_model_name_or_path}"
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of missing tensors is checked below
            if isinstance(model, PeftModel):
                model.load_adapter(source, adapter_name, is_trainable=trainable)
            else:
                model = PeftModel.from_pretrained(model, source, adapter_name, is_trainable=trainable)
    except UserError:
        raise
    except (RuntimeError, KeyError) as error:
        raise mismatch from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from None
    saved = load_peft_weights(source, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    embeddings = re.compile(r"\.(embed\w*|wte|shared|word_embeddings|lm_head|decoder)(\.base_layer)?\.(weight|bias)$")
    if {key for key in saved if not embeddings.search(key)} - set(held) or set(held) - set(saved):
        raise mismatch
    return model


def read_config(source: str) -> PeftConfig:
    """The config of a saved adapter.

    Raises:
        UserError: there is none, or it is of a method that neither PEFT nor this repository has.
    """
    try:
        kind = PeftConfig._get_peft_type(source)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"no adapter could be opened at {source}: {error}") from None
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = [each.value for each in PEFT_TYPE_TO_CONFIG_MAPPING]
        raise UserError(f"{source}: unknown kind of adapter '{kind}'{did_you_mean(kind, known)}")
    return PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(source)


def check_base(config: PeftConfig, model: nn.Module, source: str) -> None:
    """Raise a UserError if the adapter names another base model than this one.

    Two names are of one model if they are equal, are the same run, or end alike: `bert-base-uncased`,
    `google-bert/bert-base-uncased` and `/models/bert-base-uncased`.
    """
    trained_on, given = config.base_model_name_or_path, getattr(model, "name_or_path", None)
    if trained_on and given and base_name(trained_on) != base_name(given):
        raise UserError(
            f"{source}: the adapter was trained on {trained_on}, not on {given}; open that model, or, if they are the same "
            "weights, set base_model_name_or_path in its adapter_config.json"
        )


def base_name(path: str) -> str:
    return parent_config(path) or Path(path).name
