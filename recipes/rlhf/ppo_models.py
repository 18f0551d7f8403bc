"""The models of PPO: policy and value as one module, scalar heads, and copies of models."""

import copy
import inspect
import math
import os
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from recipes.core.errors import UserError
from recipes.rlhf import ppo_math
from recipes.rlhf.generation import generate
from recipes.rlhf.head import head_logprobs
from recipes.rlhf.packing import make_packable, pack

HEAD_NAME = "value_head.safetensors"
VALUE_ADAPTER = "value"


class ScalarModel(nn.Module):
    """A classification model with one label, read at any token: a reward model or a value model."""

    def __init__(self, model: PreTrainedModel | PeftModel):
        super().__init__()
        self.model = model
        self.config = model.config
        self.config.use_cache = False
        self.pools = not hasattr(without_adapter(model), "score")  # an encoder does so by itself
        self.packs = not self.pools and packs(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, at: Tensor | None = None) -> Tensor:
        """Score at the last real token [B]; with `at`, bool [B, T], the score at each token it marks [N].

        Float32. The padding of `input_ids` [B, T] may be on either side, on both, or in between.
        """
        if self.pools:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0].float()
        at = last_cells(attention_mask) if at is None else at
        model = without_adapter(self.model)
        hidden = states(model.base_model, self.packs, input_ids, attention_mask, at)
        return model.score(hidden).float().sum(dim=-1)  # of one label; `squeeze` is a view, which FSDP2 warns of

    def save(self, folder: str, state_dict: dict[str, Tensor]) -> None:
        self.model.save_pretrained(folder, state_dict=part_of(state_dict, "model."))


class ValueHead(nn.Linear):
    """A value read from hidden states of the policy's trunk; at first it is 0 everywhere.

    With `adapter` the trunk carries that adapter in place of the policy's own; else the policy's states are read.
    """

    def __init__(self, hidden_size: int, adapter: str | None = None):
        super().__init__(hidden_size, 1, bias=False)
        self.adapter = adapter
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

    The value is a model of its own, or a head on the policy's trunk, under an adapter of its own or not: the trainer knows
    only what `forward` returns. Without `value` it is a reference.
    """

    _keys_to_ignore_on_save = None  # Trainer asks for it when it loads a checkpoint
    is_gradient_checkpointing = False  # TRL asks for it before generation, which runs in eval mode and has none

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        value: ScalarModel | ValueHead | None = None,
        scorers: dict[str, ValueHead] | None = None,
    ):
        super().__init__()
        self.policy = policy
        self.value = value
        self.scorers = nn.ModuleDict(scorers or {})
        self.config = policy.config
        self.packs = packs(policy) and has_plain_head(without_adapter(policy))
        if (scorers or getattr(value, "adapter", None)) and not self.packs:
            raise UserError(
                "an adapter as value or reward model needs a decoder that takes packed rows, and "
                f"{policy.config.model_type} with this attention does not: take value_model 'shared' or 'separate', and "
                "whole reward models"
            )

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
        ptx: dict[str, Tensor] | None = None,
        scorer: str | None = None,
    ) -> dict[str, Tensor]:
        """Takes left-padded prompts [B, P] and right-padded responses [B, R].

        With `scorer` it returns `scores` [B], the reward that this adapter reads at the last token. Else it
        returns `logprobs`, and where asked `values` and `entropy`, of the response tokens, each float32 [B, R], 0 at the
        padding. The value of a token is that of the state it is chosen in, before it is seen; so the last token of a
        response is never fed. `ptx` holds texts as such sequences of which everything but the first token is response; their
        log-probabilities, at temperature 1, are `ptx_logprobs`.
        """
        if scorer is not None:
            return {"scores": self._score(scorer, prompt_ids, prompt_mask, response_ids, response_mask)}
        real = response_mask.bool()
        input_ids = torch.cat([prompt_ids, response_ids[:, :-1]], dim=1)
        attention_mask = torch.cat([prompt_mask, response_mask[:, 1:]], dim=1)
        at = torch.cat([torch.zeros_like(prompt_mask[:, 1:], dtype=torch.bool), real], dim=1)
        shared = with_value and isinstance(self.value, ValueHead)

        policy = without_adapter(self.policy)
        if self.packs:
            hidden = states(policy.base_model, True, input_ids, attention_mask, at)
            head = policy.get_output_embeddings()
        else:  # what the policy makes of its hidden states is its own
            inputs = model_inputs(policy, input_ids, attention_mask, last=real.size(1))
            result = self.policy(**inputs, output_hidden_states=shared)
            hidden = result.hidden_states[-1][:, -real.size(1) :][real] if shared else None
        if self.packs:
            logprobs, entropy = head_logprobs(head, hidden, response_ids[real], temperature, with_entropy)
        else:
            logits = result.logits[:, -real.size(1) :][real].float() / temperature
            logprobs = ppo_math.token_logprobs(logits, response_ids[real])
            entropy = ppo_math.token_entropy(logits) if with_entropy else None
        outputs = {"logprobs": logprobs}
        if with_entropy:
            outputs["entropy"] = entropy
        if shared and self.value.adapter:
            with adapter(self.policy, self.value.adapter):
                hidden = states(policy.base_model, True, input_ids, attention_mask, at)
        if shared:
            outputs["values"] = self.value(hidden)
        elif with_value:
            outputs["values"] = self.value(input_ids, attention_mask, at)
        empty = torch.zeros(real.shape, device=real.device)
        outputs = {name: empty.masked_scatter(real, numbers) for name, numbers in outputs.items()}
        if ptx is not None:
            outputs["ptx_logprobs"] = self.forward(**ptx, temperature=1.0, with_value=False)["logprobs"]
        return outputs

    def _score(
        self, scorer: str, prompt_ids: Tensor, prompt_mask: Tensor, response_ids: Tensor, response_mask: Tensor
    ) -> Tensor:
        input_ids = torch.cat([prompt_ids, response_ids], dim=1)
        attention_mask = torch.cat([prompt_mask, response_mask], dim=1)
        head, policy = self.scorers[scorer], without_adapter(self.policy)
        with adapter(self.policy, head.adapter):
            hidden = states(policy.base_model, True, input_ids, attention_mask, last_cells(attention_mask))
        return head(hidden)

    def respond(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        uniforms: Tensor,
        temperature: float,
        stop_token_id: int | None,
        pad_token_id: int,
        synchronize: bool = False,
    ) -> Tensor:
        """`generation.generate` of the policy; of one that cannot take packed rows, by its own `generate`."""
        if self.packs:
            model = without_adapter(self.policy)
            return generate(
                model, prompt_ids, prompt_mask, uniforms, temperature, stop_token_id, pad_token_id, synchronize
            )
        config = GenerationConfig(
            max_new_tokens=uniforms.size(1), do_sample=False, eos_token_id=stop_token_id, pad_token_id=pad_token_id
        )
        sampling = [InverseCdfSampling(uniforms, prompt_ids.size(1), temperature)] if temperature > 0 else []
        saved = self.policy.generation_config
        self.policy.generation_config = GenerationConfig()  # free of what it asks for itself, such as top-k
        try:
            sequences = self.policy.generate(
                input_ids=prompt_ids,
                attention_mask=prompt_mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(sampling),
                synced_gpus=synchronize,
            )
        finally:
            for model in (self.policy, without_adapter(self.policy)):
                model.generation_config = saved
        responses = sequences[:, prompt_ids.size(1) :]
        return nn.functional.pad(responses, (0, uniforms.size(1) - responses.size(1)), value=pad_token_id)


class InverseCdfSampling(LogitsProcessor):
    """Leaves one token per row, drawn with the row's own random numbers [B, R]; greedy search on top of it samples."""

    def __init__(self, uniforms: Tensor, prompt_length: int, temperature: float):
        self.uniforms, self.prompt_length, self.temperature = uniforms, prompt_length, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms = self.uniforms[:, input_ids.size(1) - self.prompt_length]
        tokens = ppo_math.inverse_cdf_sample(scores.float() / self.temperature, uniforms)
        return torch.full_like(scores, -math.inf).scatter(1, tokens.unsqueeze(1), 0.0)


def last_cells(mask: Tensor) -> Tensor:
    """Marks the last real token of each row of `mask` [B, T]: bool [B, T]."""
    cells = torch.zeros_like(mask, dtype=torch.bool)
    cells[torch.arange(len(mask), device=mask.device), ppo_math.last_real_token(mask)] = True
    return cells


def states(trunk: PreTrainedModel, packs: bool, input_ids: Tensor, attention_mask: Tensor, at: Tensor) -> Tensor:
    """Last hidden states [N, H] at the tokens marked in `at`, bool [B, T], of sequences with padding anywhere."""
    if packs:
        packed = pack(input_ids, attention_mask)
        return trunk(**packed.inputs).last_hidden_state[0].index_select(0, packed.index[at])
    return trunk(**model_inputs(trunk, input_ids, attention_mask)).last_hidden_state[at]


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
    if given in ("shared", "adapter"):
        return ValueHead(policy.config.get_text_config().hidden_size, VALUE_ADAPTER if given == "adapter" else None)
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


def add_value_adapter(policy: PeftModel, head: ValueHead, scorers: dict[str, ValueHead]) -> None:
    """Gives the policy the adapter that the value `head` reads: the first reward's adapter, else one like the policy's."""
    source = next(iter(scorers.values()), None)
    name = source.adapter if source is not None else policy.active_adapter
    if head.adapter not in policy.peft_config:
        policy.add_adapter(head.adapter, copy.deepcopy(policy.peft_config[name]))
    if source is not None:
        set_peft_model_state_dict(
            policy, get_peft_model_state_dict(policy, adapter_name=name), adapter_name=head.adapter
        )
        head.load_state_dict(source.state_dict())


def train_adapters(policy: PeftModel, names: list[str]) -> None:
    """Marks the parameters of these adapters, and no others, as trained; PEFT's own switch knows a single one."""
    for module in policy.modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            for name, parameter in module.named_parameters():
                if any(part in policy.peft_config for part in name.split(".")):
                    parameter.requires_grad_(any(part in names for part in name.split(".")))


def reward_adapter(policy: PeftModel, folder: str, name: str) -> ValueHead:
    """Adds the reward model in `folder`, an adapter with a score head, to the policy; returns the head that reads it.

    Raises:
        UserError: the folder holds no adapter, or one of another base.
    """
    try:
        config = PeftConfig.from_pretrained(folder)
    except ValueError:
        raise UserError(f"reward model {folder} is no adapter: load it as a model, or name a run with peft") from None
    base = policy.get_base_model().config._name_or_path
    if os.path.normpath(config.base_model_name_or_path or "") != os.path.normpath(base):
        raise UserError(
            f"reward model {folder} is an adapter on {config.base_model_name_or_path} and the policy one on {base}: train "
            "both on one base, or merge the reward model's adapter"
        )
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", True
    weights = load_peft_weights(folder, device="cpu")
    scores = [key for key in weights if key.endswith("score.weight")]
    if not scores:
        raise UserError(f"reward model {folder} has no score head: train it with rlhf/reward and peft")
    head = ValueHead(policy.config.get_text_config().hidden_size, name)
    head.load_state_dict({"weight": weights.pop(scores[0])})
    policy.add_adapter(name, config)
    unexpected = set_peft_model_state_dict(policy, weights, adapter_name=name).unexpected_keys
    if unexpected:
        raise UserError(f"reward model {folder} does not fit the policy's base: it has {unexpected[0]}")
    return head.requires_grad_(False)


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
