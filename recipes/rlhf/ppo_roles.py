"""Who plays what in PPO: policy, value, reference, and rewards that are adapters on the policy's base."""

from dataclasses import dataclass

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from recipes.core.errors import UserError
from recipes.rlhf.ppo_config import PPOConfig
from recipes.rlhf.ppo_models import PolicyWithValue
from recipes.rlhf.ppo_rewards import Rewards
from recipes.rlhf.ppo_values import VALUE_ADAPTER, add_value_adapter, copy_of, make_value_model
from recipes.rlhf.trunk import (
    check_switchable,
    disable_dropout,
    positions_follow_mask,
    train_adapters,
    vocabulary_size,
)


@dataclass
class Roles:
    """`trained`: policy and value; `reference` is None where it is the policy with its adapters off, or not needed."""

    trained: PolicyWithValue
    reference: PolicyWithValue | None


def cast_roles(
    model: PreTrainedModel | PeftModel,
    value_model: str | PreTrainedModel,
    ref_model: PreTrainedModel | None,
    peft_config: PeftConfig | None,
    rewards: Rewards,
    args: PPOConfig,
) -> Roles:
    """The models of `PPOTrainer`, made from its arguments of these names.

    Raises:
        UserError: two roles do not go together; the message says what to change.
    """
    if value_model == "adapter" and peft_config is None:
        raise UserError("value_model 'adapter' needs an adapter on the policy: give peft, e.g. {method: lora, r: 16}")
    value = make_value_model(value_model, model, rewards.models_of_policy_tokens())
    if ref_model is model:
        raise UserError("ref_model is the policy itself: pass a copy of it, or nothing")
    has_adapter = peft_config is not None or isinstance(model, PeftModel)
    if args.kl_coef > 0 and ref_model is None and not has_adapter:
        ref_model = copy_of(model)
    for name, other in (("value_model", getattr(value, "model", None)), ("ref_model", ref_model)):
        if other is not None and vocabulary_size(other) != vocabulary_size(model):
            raise UserError(
                f"{name} has a vocabulary of {vocabulary_size(other)} tokens and the policy one of "
                f"{vocabulary_size(model)}: take one with the policy's vocabulary"
            )
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise UserError("the policy has an adapter already: merge it (merge_and_unload) or drop peft_config")
        set_seed(args.seed)  # the adapter's weights are random; ZeRO-3 gathers parameters of one dtype only
        model = get_peft_model(model, peft_config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    if isinstance(model, PeftModel):
        positions_follow_mask(model)
    scorers = rewards.attach(model)
    trained = [VALUE_ADAPTER] if value_model == "adapter" else []
    if trained:
        add_value_adapter(model, value, scorers)
    if trained or scorers:
        train_adapters(model, [model.active_adapter, *trained])
    if has_adapter and args.kl_coef > 0 and ref_model is None:
        check_switchable(model)
    if has_adapter and args.activation_checkpointing:
        model.enable_input_require_grads()
    disable_dropout(model)
    disable_dropout(value)
    reference = PolicyWithValue(ref_model) if args.kl_coef > 0 and ref_model is not None else None
    return Roles(PolicyWithValue(model, value, scorers), reference)
