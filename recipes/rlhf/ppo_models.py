"""The models of PPO: policy and value as one module, scalar heads, and copies of models."""

import copy
import inspect
import math
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from recipes.core.errors import UserError
from recipes.rlhf import ppo_math

HEAD_NAME = "value_head.safetensors"


class ScalarModel(nn.Module):
    """A classification model with one label, read at any token: a reward model or a value model."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self.config = model.config
        self.config.use_cache = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor, last: int | None = None) -> Tensor:
        """Score at the last real token [B]; with `last`, the value before each of the last `last` tokens [B, last].

        Float32. The padding of `input_ids` [B, T] may be on either side, on both, or in between.
        """
        model = without_adapter(self.model)
        if not hasattr(model, "score"):  # an encoder, which pools by itself
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0].float()
        hidden = model.base_model(**model_inputs(model.base_model, input_ids, attention_mask)).last_hidden_state
        if last is None:
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), ppo_math.last_real_token(attention_mask)]
        else:
            hidden = hidden[:, -last - 1 : -1]
        return model.score(hidden).float().sum(dim=-1)  # of one label; `squeeze` is a view, which FSDP2 warns of

    def save(self, folder: str, state_dict: dict[str, Tensor]) -> None:
        self.model.save_pretrained(folder, state_dict=part_of(state_dict, "model."))


class ValueHead(nn.Linear):
    """A value read from the policy's own last hidden states; at first it is 0 everywhere."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, 1, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] to values [...], in float32 under autocast too."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight.dtype)).float().sum(dim=-1)

    def save(self, folder: str, state_dict: dict[str, Tensor]) -> None:
        os.makedirs(folder, exist_ok=True)
        save_file(state_dict, os.path.join(folder, HEAD_NAME))

    def load(self, folder: str) -> None:
        self.load_state_dict(load_file(os.path.join(folder, HEAD_NAME)))


class PolicyWithValue(nn.Module):
    """Policy and value model as the one module that is trained, so that DDP, ZeRO and FSDP see every parameter.

    The value is a model of its own or a head on the policy's trunk: the trainer knows only what `forward` returns.
    Without `value` it is a reference.
    """

    _keys_to_ignore_on_save = None  # Trainer asks for it when it loads a checkpoint
    is_gradient_checkpointing = False  # TRL asks for it before generation, which runs in eval mode and has none

    def __init__(self, policy: PreTrainedModel | PeftModel, value: ScalarModel | ValueHead | None = None):
        super().__init__()
        self.policy = policy
        self.value = value
        self.config = policy.config

    def _models(self) -> list[PreTrainedModel]:
        models = [self.policy, getattr(self.value, "model", None)]
        return [without_adapter(model) for model in models if model is not None]

    @property
    def generation_config(self) -> GenerationConfig:
        return self.policy.generation_config

    @property
    def _no_split_modules(self) -> list[str]:  # the layers that FSDP wraps
        return sorted({name for model in self._models() for name in model._no_split_modules or ()})

    def tie_weights(self) -> None:  # FSDP does it after it has replaced the parameters
        for model in self._models():
            model.tie_weights()

    def activation_checkpointing_enable(self, **kwargs) -> None:
        for model in self._models():
            model.activation_checkpointing_enable(**kwargs)

    def forward(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        response_mask: Tensor,
        temperature: float,
        with_value: bool = True,
        with_entropy: bool = False,
    ) -> dict[str, Tensor]:
        """Takes left-padded prompts [B, P] and right-padded responses [B, R].

        Returns `logprobs`, and where asked `values` and `entropy`, of the response tokens, each float32 [B, R]. The
        value of a token is that of the state it is chosen in, before it is seen.
        """
        input_ids = torch.cat([prompt_ids, response_ids], dim=1)
        attention_mask = torch.cat([prompt_mask, response_mask], dim=1)
        length = response_ids.size(1)

        inputs = model_inputs(without_adapter(self.policy), input_ids, attention_mask, last=length + 1)
        shared = with_value and isinstance(self.value, ValueHead)
        result = self.policy(**inputs, output_hidden_states=shared)
        logits = result.logits[:, -length - 1 : -1].float() / temperature
        outputs = {"logprobs": ppo_math.token_logprobs(logits, response_ids)}
        if with_entropy:
            outputs["entropy"] = ppo_math.token_entropy(logits)
        if shared:
            outputs["values"] = self.value(result.hidden_states[-1][:, -length - 1 : -1])
        elif with_value:
            outputs["values"] = self.value(input_ids, attention_mask, last=length)
        return outputs

    def generate(self, **kwargs) -> Tensor:
        """`generate` of the policy, free of what its own generation config asks for (top-k, repetition penalty)."""
        saved = self.policy.generation_config
        self.policy.generation_config = GenerationConfig()
        try:
            return self.policy.generate(**kwargs)
        finally:
            for model in (self.policy, without_adapter(self.policy)):
                model.generation_config = saved


class InverseCdfSampling(LogitsProcessor):
    """Leaves one token per row, drawn with the row's own random numbers [B, R]; greedy search on top of it samples."""

    def __init__(self, uniforms: Tensor, prompt_length: int, temperature: float):
        self.uniforms, self.prompt_length, self.temperature = uniforms, prompt_length, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms = self.uniforms[:, input_ids.size(1) - self.prompt_length]
        tokens = ppo_math.inverse_cdf_sample(scores.float() / self.temperature, uniforms)
        return torch.full_like(scores, -math.inf).scatter(1, tokens.unsqueeze(1), 0.0)


def model_inputs(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, last: int | None = None) -> dict:
    """Inputs of a transformers model for sequences with padding anywhere; `last`: logits at the last positions only."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    accepted = inspect.signature(model.forward).parameters
    if "position_ids" in accepted:
        inputs["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    if last is not None and "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = last
    return inputs


def without_adapter(model: nn.Module) -> nn.Module:
    """The transformers model under a PEFT model, with its adapter layers in place; any other model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def vocabulary_size(model: nn.Module) -> int:
    return model.config.get_text_config().vocab_size


def disable_dropout(model: nn.Module) -> None:
    """Turns dropout off, in modules and in the plain numbers attention takes; the config, which is saved, keeps it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(module, name, 0.0)


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own with the same weights, sharded where ZeRO-3 shards."""
    return _with_weights(type(model), copy.deepcopy(model.config), model)


def make_value_model(
    given: str | PreTrainedModel, policy: PreTrainedModel | PeftModel, reward_models: list[nn.Module]
) -> ScalarModel | ValueHead:
    """The value of the policy's states, as `PPOTrainer` describes `value_model`.

    `reward_models` are those that read the policy's own tokens.
    """
    if given == "shared":
        return ValueHead(policy.config.get_text_config().hidden_size)
    if isinstance(given, str) and given != "separate":
        load = AutoModelForSequenceClassification.from_pretrained
        given = load(given, num_labels=1, dtype=torch.float32)
    if isinstance(given, nn.Module):
        if not hasattr(given, "score") or given.config.num_labels != 1:
            raise UserError("value_model needs a single label: AutoModelForSequenceClassification with num_labels=1")
        if any(given is model for model in reward_models):
            raise UserError("value_model is trained and so cannot be a reward model too: pass a copy, or nothing")
        return ScalarModel(given)
    for model in reward_models:
        if isinstance(model, PreTrainedModel) and hasattr(model, "score"):
            return ScalarModel(copy_of(model))
    if isinstance(policy, PeftModel):
        raise UserError("a policy that comes with an adapter needs a value_model: 'shared', a model, or its path")
    return ScalarModel(value_model_from(policy))


def value_model_from(policy: PreTrainedModel) -> PreTrainedModel:
    """A value model with the policy's trunk and a new head that says 0."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{config.model_type} has no sequence classification model to make a value_model: pass one")
    head = {"score.weight": torch.zeros(1, config.get_text_config().hidden_size)}
    return _with_weights(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)], config, policy, head)


def _with_weights(
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    source: PreTrainedModel,
    more: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """A model of class `cls` with the weights of `source` where their names agree, and `more`."""
    attention = source.config._attn_implementation
    with no_init_weights():
        model = cls._from_config(config, dtype=source.dtype, attn_implementation=attention)
    model.tie_weights()
    with whole_weights(source, model):
        missing, _ = model.load_state_dict(source.state_dict() | (more or {}), strict=False)
    if set(missing) - set(model.all_tied_weights_keys):
        raise UserError(
            f"{cls.__name__} cannot take its {', '.join(missing)} from {type(source).__name__}: pass a model"
        )
    return model.to(source.device)


def whole_weights(*models: nn.Module) -> AbstractContextManager:
    """Under ZeRO-3, the weights of the models in one piece; what the first process writes to them is kept."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    parameters = [parameter for model in models for parameter in model.parameters()]
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


def part_of(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
