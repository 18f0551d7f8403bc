"""What PPO looks at before its first update and after every rollout, so that a run that cannot end well stops early."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from recipes.core.errors import UserError
from recipes.core.run import read_parent
from recipes.rlhf.ppo_config import PPOConfig

WEAK_REWARD_MODEL = 0.6  # held-out pair accuracy below which PPO would learn mostly noise


def check_bounds(metrics: dict[str, float], args: PPOConfig, step: int) -> None:
    """Stops a run whose rollout left the bounds of its config; the checkpoints before it stay.

    Raises:
        UserError: the KL is above `max_kl`, or the EOS share is below `min_eos_share`.
    """
    after = f"at optimizer step {step}; the last checkpoint stays"
    if args.max_kl is not None and metrics["kl"] > args.max_kl:
        raise UserError(
            f"the mean KL of the rollout, {metrics['kl']:.2f} nats, is above max_kl {args.max_kl} {after}: raise kl_coef or "
            "lower learning_rate"
        )
    if args.min_eos_share is not None and metrics["eos_share"] < args.min_eos_share:
        raise UserError(
            f"only {metrics['eos_share']:.0%} of the responses end by themselves, fewer than min_eos_share "
            f"{args.min_eos_share} {after}: set missing_eos_penalty, or raise response_length"
        )


def preflight(
    batch: dict[str, Tensor],
    metrics: dict[str, float],
    policy: str,
    reward_models: Iterable[str],
    memory: dict[str, int],
    prompt_length: int | None = None,
) -> str:
    """The table of what PPO starts from, after the first rollout, whose responses are still the SFT policy's.

    `batch` holds the rollout, `metrics` its means, `policy` and `reward_models` where the models came from (their result
    files know how they were measured), `memory` the bytes of each role's weights, `prompt_length` where prompts are cut.
    """
    lengths = batch["prompt_mask"].sum(dim=1).float()
    cut = "none truncated" if prompt_length is None else f"cut to their first {prompt_length}"
    rows = [
        ("prompts", f"{lengths.mean():.0f} tokens in the mean, {lengths.max():.0f} at most, {cut}"),
        ("responses", f"{metrics['response_length']:.0f} tokens, {metrics['eos_share']:.0%} end by themselves"),
        ("reward", f"mean {metrics['reward']:.3f}, standard deviation {metrics['reward_std']:.3f}"),
    ]
    supervised = read_parent(policy).get("metrics", {}).get("supervised_eos_share")
    if supervised is not None:
        rows.append(("policy", f"EOS was supervised in {supervised:.0%} of its demonstrations"))
    warnings = []
    for name in reward_models:
        accuracy = read_parent(name).get("metrics", {}).get("pair_accuracy")
        if accuracy is not None:
            rows.append((Path(name).name, f"agrees with {accuracy:.1%} of held-out pairs"))
        if accuracy is not None and accuracy < WEAK_REWARD_MODEL:
            warnings.append(f"warning: reward model {name} is right in {accuracy:.1%} of held-out pairs only")
    if metrics["reward_std"] < 1e-6:
        warnings.append("warning: all responses of the first rollout have one reward: there is nothing to learn from")
    if metrics["eos_share"] == 0 and supervised is not None:
        warnings.append("warning: no response ends by itself: was EOS supervised, and is response_length long enough?")
    rows.append(("memory", ", ".join(f"{role} {bytes_ / 2**20:.0f} MiB" for role, bytes_ in memory.items())))
    width = max(len(name) for name, _ in rows)
    return "\n".join(["before the first update", *(f"  {name:<{width}}  {what}" for name, what in rows), *warnings])


def weight_bytes(*models: nn.Module | None) -> int:
    """Bytes of the weights of these models; a sharded one's count whole."""
    parameters = {id(p): p for model in models if isinstance(model, nn.Module) for p in model.parameters()}
    return sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in parameters.values())


def optimizer_bytes(model: nn.Module) -> int:
    """Bytes that AdamW needs for what is trained: gradient and two moments."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(getattr(p, "ds_numel", p.numel()) * (p.element_size() + 2 * torch.float32.itemsize) for p in trained)
