"""The `peft` block: any method of PEFT by the fields of its own config, and what libraries get wrong in silence refused.

A block is looked at three times: when it is read, against the fields of the method's config; when the model is there,
against its modules; before training, against what the trainer is about to do with it.
"""

import dataclasses
import sys
import typing
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from recipes.core.config import Setting, fit_setting
from recipes.core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import nn
    from transformers import PreTrainedModel, Trainer

OURS = {
    "task_type",
    "peft_type",
    "inference_mode",
    "base_model_name_or_path",
    "revision",
}  # set by the recipe, not by hand
HEADS = ("classifier", "score", "qa_outputs", "classification_head")
NEEDS = (  # a key, and the other key with the value without which PEFT ignores it
    ("prompt_tuning_init_text", "prompt_tuning_init", "TEXT"),
    ("encoder_hidden_size", "prefix_projection", True),
)
STEPS_UNKNOWN = sys.maxsize  # AdaLoRA's total_step until the trainer knows it


def methods() -> dict[str, type]:
    """Every method that can be named, with its config class: PEFT's, and those of `recipes.adapters`."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    import recipes.adapters  # noqa: F401  registers them with PEFT

    return {kind.value.lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def read(block: dict[str, Any], task_type: str, tokenizer: str | None = None) -> "PeftConfig":
    """PEFT's own config for a block, every key checked against its fields.

    Args:
        task_type: PEFT's name of the task: CAUSAL_LM, SEQ_CLS, …
        tokenizer: for methods that start from words, unless the block names another.

    Raises:
        UserError: an unknown method or key, a value of the wrong type, or one that the method cannot have.
    """
    from recipes.adapters import check_config

    known_methods = methods()
    block = dict(block)
    method = block.pop("method", None)
    if method not in known_methods:
        raise UserError(f"peft: 'method' must name a PEFT method, not {method!r}{did_you_mean(method, known_methods)}")
    cls = known_methods[method]
    hints = typing.get_type_hints(cls)
    known = {item.name for item in dataclasses.fields(cls) if item.init} - OURS
    for key, value in block.items():
        if key in OURS:
            raise UserError(f"peft: '{key}' is the recipe's to say; drop it")
        if key not in known:
            raise UserError(f"peft: method {method} has no key '{key}'{did_you_mean(key, known)}")
        block[key] = fit_setting(key, Setting(value, "peft"), hints[key])
    if "num_virtual_tokens" in known and block.get("num_virtual_tokens") is None:
        raise UserError(f"peft: method {method} needs num_virtual_tokens, the length of its prompt")
    for key, needed, value in NEEDS:
        if block.get(key) is not None and key in known and needed in known and block.get(needed) != value:
            raise UserError(f"peft: {key} has no effect unless {needed} is {value}; set it, or drop {key}")
    if block.get("init_lora_weights") in ("eva", "corda"):
        raise UserError(
            f"peft: init_lora_weights: {block['init_lora_weights']} is made from data, which no recipe shows it; take true, "
            "pissa or olora"
        )
    if block.get("prompt_tuning_init") == "TEXT":
        block.setdefault("tokenizer_name_or_path", tokenizer)
    if task_type == "SEQ_2_SEQ_LM" and method in ("prompt_tuning", "p_tuning"):
        # PEFT would make a prompt for the decoder too, and never show it
        block.setdefault("num_transformer_submodules", 1)
    if method == "adalora":
        block.setdefault("total_step", STEPS_UNKNOWN)
        if "r" in block:
            raise UserError("peft: adalora ignores r; its ranks begin at init_r and end at target_r on average")
    try:
        config = cls(task_type=task_type, **block)
    except (ValueError, TypeError) as error:
        raise UserError(f"peft: {error}") from None
    check_config(config)
    return config


# ----------------------------------------------------------------------------------------------- against the model
def check_model(config: "PeftConfig", model: "PreTrainedModel") -> None:
    """Hold a config against the model that it is to adapt.

    Raises:
        UserError: a named module that the model does not have, or a prompt that it cannot take.
    """
    from recipes.adapters.attaching import check_modules

    check_modules(config, model)
    if not config.is_prompt_learning:
        return
    method, task = config.peft_type.value.lower(), config.task_type
    if model.config.is_encoder_decoder and task != "SEQ_2_SEQ_LM":
        raise UserError(
            f"peft: {method} reaches an encoder-decoder in finetuning/sequence_to_sequence only: PEFT gives {task} no "
            "place for the prompt in it"
        )
    if task == "SEQ_CLS" and puts_prompt_at_input(config) and hasattr(model, "score"):
        raise UserError(
            f"peft: under {method} the head of a {model.config.model_type} reads the last position, which may be padding, "
            "and padding on the left comes between prompt and text; use prefix_tuning, or a template in place of the head"
        )
    if getattr(config, "num_virtual_tokens", None):
        room = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
        if room is not None and config.num_virtual_tokens >= room:
            raise UserError(
                f"peft: num_virtual_tokens {config.num_virtual_tokens} fills all {room} positions of the model"
            )


def puts_prompt_at_input(config: "PeftConfig") -> bool:
    """Whether a method lengthens the sequence by virtual tokens, whose positions then stand first among the logits."""
    return config.is_prompt_learning and config.peft_type not in ("PREFIX_TUNING", "CARTRIDGE")


def train_new_modules(config: "PeftConfig", missing_keys: Collection[str]) -> None:
    """Let modules train whose weights no checkpoint had, such as a head: frozen at random they would stay noise.

    PEFT itself thinks of heads of three names.

    Args:
        missing_keys: names of parameters that `from_pretrained` initialised anew.
    """
    modules = {whole_head(key.rpartition(".")[0]) for key in missing_keys} - {""}
    if not modules:
        return
    if not hasattr(config, "modules_to_save"):
        raise UserError(
            f"peft: the model has no trained weights for {min(modules)} and {config.peft_type.value.lower()} cannot train "
            "it beside the adapter; choose a method with modules_to_save"
        )
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *modules})


def whole_head(module: str) -> str:
    """The head that a module is a part of, as RoBERTa's `classifier.dense` is; any other module itself."""
    parts = module.split(".")
    ends = [index for index, part in enumerate(parts) if part in HEADS]
    return ".".join(parts[: ends[0] + 1]) if ends else module


def train_heads(config: "PeftConfig", model: "PreTrainedModel") -> None:
    """Let the heads of words and spans train, which PEFT names after it has put adapters into them, and then cannot."""
    if config.task_type in ("TOKEN_CLS", "QUESTION_ANS") and hasattr(config, "modules_to_save"):
        heads = {name for name, _ in model.named_children() if name in HEADS}
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *heads})


def adapt(
    model: "PreTrainedModel", config: "PeftConfig | None", activation_checkpointing: bool = False
) -> "PreTrainedModel":
    """The model under an adapter, for scripts on transformers' own Trainer (TRL's trainers do this themselves).

    A model in 4 or 8 bits is prepared as QLoRA needs it: norms in float32, gradients at the input.
    """
    if config is None:
        return model
    from peft import prepare_model_for_kbit_training

    from recipes.adapters import attach

    train_heads(config, model)
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=activation_checkpointing)
    return attach(model, config)


# ----------------------------------------------------------------------------------------- against the training
def adapted(trainer: "Trainer") -> "PeftModel | None":
    """The model under an adapter that is trained: the trainer's own, or PPO's policy; None without an adapter."""
    from peft import PeftModel

    model = getattr(trainer.model, "policy", trainer.model)
    return model if isinstance(model, PeftModel) else None


def check_training(trainer: "Trainer", block: dict[str, Any] | None) -> None:
    """Hold the adapter that is about to be trained against the trainer.

    Args:
        block: the config's `peft`.

    Raises:
        UserError: the trainer has no adapter although one was asked for; prefix-tuning with activation checkpointing, which
            drops the cache that carries the prefix; a prompt with packed rows or smoothed labels; AdaLoRA in PPO; nothing
            to train.
    """
    model = adapted(trainer)
    if model is None and block is not None:
        raise UserError("peft: this recipe trains all weights and would leave the adapter out; drop the block")
    if model is None:
        return
    config = model.active_peft_config
    method = config.peft_type.value.lower()
    packs = getattr(trainer.args, "packing", False) or getattr(trainer.args, "padding_free", False)
    if config.is_prompt_learning and packs:
        raise UserError(
            f"peft: {method} puts one prompt before a whole row, and packed texts would see each other; set packing and "
            "padding_free to false"
        )
    if puts_prompt_at_input(config) and trainer.label_smoother is not None:
        raise UserError(f"label_smoothing_factor: transformers cannot place it under the virtual tokens of {method}")
    if config.peft_type == "ADALORA" and model is not trainer.model:
        raise UserError(
            "peft: adalora has no schedule in PPO, and its ranks would stay as they are; take lora or dora"
        )
    if trainer.args.activation_checkpointing:
        if config.peft_type in ("PREFIX_TUNING", "CARTRIDGE"):
            raise UserError(
                f"peft: {method} needs activation_checkpointing: false; checkpointing turns off the cache that carries the "
                "prefix, and it would not be trained"
            )
        model.enable_input_require_grads()  # else reentrant checkpointing finds nothing to differentiate in frozen layers
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("peft: nothing is trained: every parameter of the model and of the adapter is frozen")


def adapter_parameters(model: "nn.Module") -> dict[str, "nn.Parameter"]:
    """The trained parameters of a PeftModel that are the method's own, not a head's beside it."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".modules_to_save." not in name
    }
