"""Adapters that were published before PEFT had a format, as PEFT's tensors and configs.

- microsoft/LoRA's (Hu et al. 2021, arXiv 2106.09685): `…query.lora_A`, `…query.lora_B`, and the classifier.
- T-Few's (IA)³ (Liu et al. 2022, arXiv 2205.05638): `multi_lora_b` of `k`, `v` and `wi_1`.
- Soft prompts of google-research/prompt-tuning (Lester et al. 2021, arXiv 2104.08691): one array of numpy.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PromptTuningConfig

from recipes.core.errors import UserError

Tensors = dict[str, torch.Tensor]
PREFIX = "base_model.model."


def from_microsoft_lora(tensors: Tensors, base: str, lora_alpha: float = 16) -> tuple[Tensors, PeftConfig]:
    """LoRA matrices and, where there is one, the classifier that was trained with them.

    The file says nothing of the scaling α/r: the published runs on RoBERTa take α = 16.

    Raises:
        UserError: there are no such tensors, or their ranks differ.
    """
    converted, modules, ranks, whole = {}, set(), set(), set()
    for key, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.(lora_[AB])", key):
            converted[f"{PREFIX}{key}.weight"] = tensor.contiguous()
            modules.add(re.split(r"\.\d+\.", match[1])[-1])
            ranks.add(tensor.shape[0 if match[2] == "lora_A" else 1])
        else:
            converted[f"{PREFIX}{key}"] = tensor.contiguous()
            whole.add(key.partition(".")[0])
    if len(ranks) != 1:
        raise UserError(
            f"not a file of microsoft/LoRA: {'no lora_A and lora_B' if not ranks else 'several ranks'} in it"
        )
    config = LoraConfig(
        task_type="SEQ_CLS" if whole else None,
        r=ranks.pop(),
        lora_alpha=lora_alpha,
        target_modules=sorted(modules),
        modules_to_save=sorted(whole) or None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    return converted, config


def from_t_few_ia3(tensors: Tensors, base: str) -> tuple[Tensors, PeftConfig]:
    """The vectors that scale keys, values and the feed-forward block's inner activations.

    T-Few scales what `wi_1` puts out, PEFT what `wo` takes in: act(wi_0·x) ⊙ (l ⊙ wi_1·x) is the same either way.

    Raises:
        UserError: there are no such tensors.
    """
    converted = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(.*)\.(\w+)\.multi_lora_b", key)
        if not match or tensor.shape[1] != 1:
            raise UserError(f"not a file of T-Few's (IA)³: it holds {key} of shape {tuple(tensor.shape)}")
        feed_forward = match[2].startswith("wi")
        name = f"{match[1]}.{'wo' if feed_forward else match[2]}"
        converted[f"{PREFIX}{name}.ia3_l"] = (tensor.T if feed_forward else tensor).contiguous()
    config = IA3Config(
        task_type="SEQ_2_SEQ_LM",
        target_modules=["k", "v", "wo"],
        feedforward_modules=["wo"],
        base_model_name_or_path=base,
        inference_mode=True,
    )
    return converted, config


def from_t5_prompt(tensors: Tensors, base: str) -> tuple[Tensors, PeftConfig]:
    """A soft prompt that stands before the encoder's input.

    Raises:
        UserError: it is not one matrix.
    """
    (prompt,) = tensors.values() if len(tensors) == 1 else (None,)
    if prompt is None or prompt.ndim != 2:
        raise UserError("not a soft prompt: it must be one array of shape (tokens, features)")
    config = PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM",
        num_virtual_tokens=prompt.shape[0],
        token_dim=prompt.shape[1],
        num_transformer_submodules=1,  # of the encoder alone
        base_model_name_or_path=base,
        inference_mode=True,
    )
    return {"prompt_embeddings": prompt.contiguous()}, config


FORMATS: dict[str, Callable[..., tuple[Tensors, PeftConfig]]] = {
    "microsoft-lora": from_microsoft_lora,
    "t-few-ia3": from_t_few_ia3,
    "t5-prompt": from_t5_prompt,
}


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file of PyTorch or numpy; nothing in it is executed.

    Raises:
        UserError: the file is missing, or holds anything but tensors.
    """
    try:
        if path.suffix == ".npy":
            return {path.stem: torch.from_numpy(numpy.load(path, allow_pickle=False))}
        held: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except Exception as error:  # pickle, zip and numpy each raise their own kind
        raise UserError(f"{path}: no tensors could be read: {str(error).splitlines()[0]}") from None
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise UserError(f"{path}: holds something else than tensors by their names")
    return dict(held)
