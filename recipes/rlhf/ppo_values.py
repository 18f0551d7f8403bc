"""Scalar heads of PPO: value models in their forms, reward models, and copies of models."""

import copy
import os

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from recipes.core.errors import UserError
from recipes.core.weights import load_pretrained, whole_weights
from recipes.rlhf.trunk import last_cells, packs, part_of, states, without_adapter

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
        trunk = without_adapter(self.model).base_model
        hidden = states(trunk, self.packs, input_ids, attention_mask, at)
        return self.head(hidden).float().sum(dim=-1)  # of one label; `squeeze` is a view, which FSDP2 warns of

    @property
    def head(self) -> nn.Module:
        """What reads the score from the hidden states of a decoder."""
        return without_adapter(self.model).score

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

    @property
    def head(self) -> nn.Module:
        return self

    def save(self, folder: str, state_dict: dict[str, Tensor]) -> None:
        os.makedirs(folder, exist_ok=True)
        save_file(state_dict, os.path.join(folder, HEAD_NAME))

    def load(self, folder: str) -> None:
        self.load_state_dict(load_file(os.path.join(folder, HEAD_NAME)))


def make_value_model(
    given: str | PreTrainedModel, policy: PreTrainedModel | PeftModel, reward_models: list[nn.Module]
) -> ScalarModel | ValueHead:
    """The value of the policy's states, as `PPOTrainer` describes `value_model`.

    `reward_models` are those that read the policy's own tokens. A head that a named model does not have begins at 0.
    """
    if given in ("shared", "adapter"):
        return ValueHead(policy.config.get_text_config().hidden_size, VALUE_ADAPTER if given == "adapter" else None)
    if isinstance(given, str) and given != "separate":
        new, name = set(), given
        given = load_pretrained(AutoModelForSequenceClassification, name, new, num_labels=1, dtype=torch.float32)
        given.requires_grad_(True)  # an adapter's run is merged, and its base was frozen
        if "score.weight" in new:
            with whole_weights(given.score):
                nn.init.zeros_(given.score.weight)
    if isinstance(given, nn.Module):
        if not hasattr(given, "score") or given.config.num_labels != 1:
            raise UserError("value_model needs a single label: AutoModelForSequenceClassification with num_labels=1")
        if any(given is model for model in reward_models):
            raise UserError("value_model is trained and so cannot be a reward model too: pass a copy, or nothing")
        return ScalarModel(given)
    for model in reward_models:
        if isinstance(model, PreTrainedModel) and hasattr(model, "score"):
            return ScalarModel(copy_of(model))
    if getattr(policy, "is_quantized", False):
        raise UserError("a policy in few bits has no copy to train as a value: take value_model 'shared' or 'adapter'")
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


def copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own with the same weights, sharded where ZeRO-3 shards."""
    return _with_weights(type(model), copy.deepcopy(model.config), model)


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
