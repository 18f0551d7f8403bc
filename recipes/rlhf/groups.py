"""What RLOO and GRPO share: rewards for groups of answers to one prompt, and what TRL's trainers leave to chance.

A rollout of theirs is `per_device_train_batch_size * steps_per_generation` answers per process, `num_generations` to a
prompt; it serves `steps_per_generation * num_iterations` batches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from recipes.core import ModelConfig, UserError
from recipes.core.losses import refuse_smoothing
from recipes.core.weights import unsharded
from recipes.rlhf.comparison import score
from recipes.rlhf.ppo_data import check_lengths, left_pad, prompt_token_ids, response_texts, right_pad
from recipes.rlhf.rewards import Reward, RewardsConfig, load_reward
from recipes.rlhf.sampling import Answers
from recipes.rlhf.trunk import disable_dropout, positions_follow_mask


@dataclass
class GroupRewardsConfig(RewardsConfig):
    """What is rewarded."""

    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the reward of an answer that does not end by itself; positive."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.missing_eos_penalty is not None and self.missing_eos_penalty <= 0:
            raise UserError(f"missing_eos_penalty must be above 0, not {self.missing_eos_penalty}")


def check_reference(model: ModelConfig, beta: float) -> None:
    """Raise a UserError where TRL would hold the policy against another model than the one it starts from.

    TRL reads the reference again from the name in the policy's config: for a merged adapter that is the model under
    it, for a `model_revision` the newest one, and a model from scratch has no name at all.
    """
    adapter = (Path(model.model_name_or_path or "") / "adapter_config.json").exists()
    if beta > 0 and model.peft is None and (adapter or model.model_config or model.model_revision != "main"):
        kind = "an adapter" if adapter else "a model from scratch" if model.model_config else "a revision"
        whole = "start from a folder of whole weights (python -m scripts.export merges an adapter)"
        peft = "" if adapter else ", add a peft block (its reference is the model below the adapter)"
        raise UserError(f"beta: the KL reference of {kind} would be another model; {whole}{peft} or set beta: 0")


# ------------------------------------------------------------------------------------------------------------- rewards
def reward_functions(
    method: GroupRewardsConfig,
    training: RLOOConfig | GRPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str | None,
) -> list[Callable[..., list[float]]]:
    """The rewards as functions for TRL, `missing_eos_penalty` the last of them; `reward_weights` grows with it.

    TRL shows a reward model the decoded text: without its EOS, or through a chat template that adds one to an answer
    that never ended, without BOS, and after SentencePiece without the blank between prompt and answer. Here it reads
    the tokens that were sampled, as it does in PPO. Every process holds it whole.

    Raises:
        UserError: a reward cannot be opened, or there are not as many weights.
    """
    weights = training.reward_weights or [1.0] * len(method.reward_funcs)
    if len(weights) != len(method.reward_funcs):
        raise UserError(f"reward_weights has {len(weights)} entries for {len(method.reward_funcs)} reward functions")
    with unsharded():
        rewards = [load_reward(name, dtype) for name in method.reward_funcs]
    functions = [_as_function(reward, tokenizer, training.device) for reward in rewards]
    names = [function.__name__ for function in functions]
    for index, function in enumerate(functions):  # TRL would log the mean of two rewards of one name
        function.__name__ += f"_{index}" if names[index] in names[:index] else ""
    if method.missing_eos_penalty is not None:

        def missing_eos(completion_ids: list[list[int]], **columns: Any) -> list[float]:
            return [-method.missing_eos_penalty * (tokenizer.eos_token_id not in ids) for ids in completion_ids]

        functions, weights = [*functions, missing_eos], [*weights, 1.0]
    training.reward_weights = weights
    return functions


def _as_function(reward: Reward, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Callable:
    if reward.tokenizer is not None:
        reward.func.to(device)

    def function(prompts: list, completions: list, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        prompt_ids = [prompt_token_ids(prompt, tokenizer) for prompt in prompts]
        tokens = left_pad(prompt_ids, tokenizer.pad_token_id) | right_pad(completion_ids, tokenizer.pad_token_id)
        texts = response_texts(tokenizer, prompt_ids, completion_ids, isinstance(prompts[0], list))
        ended = torch.tensor([tokenizer.eos_token_id in ids for ids in completion_ids])
        rows = {"prompt": prompts, "completion_ids": completion_ids, **columns}
        return score(rows, Answers(tokens, texts, ended), reward, tokenizer).tolist()

    function.__name__ = reward.name.rstrip("/").rpartition("/")[2]  # under which TRL logs it
    return function


# ------------------------------------------------------------------------------------------------- what TRL leaves open
def check_rollouts(trainer: RLOOTrainer | GRPOTrainer) -> None:
    """Refuse settings that TRL accepts and that go wrong while it trains, or in a run that was killed and resumes.

    Raises:
        UserError: prompts too long, too few or not tokenized as everywhere else; groups that an evaluation batch
            would split; checkpoints in the middle of a rollout.
    """
    args, tokenizer = trainer.args, trainer.processing_class
    refuse_smoothing(args)
    context = getattr(trainer.model.config.get_text_config(), "max_position_embeddings", math.inf)
    for name, rows in (("train_dataset", trainer.train_dataset), ("eval_dataset", trainer.eval_dataset)):
        if rows is None:
            continue
        prompts = rows["prompt"][:]
        ids = [prompt_token_ids(prompt, tokenizer) for prompt in prompts]
        check_lengths([len(tokens) for tokens in ids], name, args.max_completion_length, context)
        if trainer._tokenize_prompts(prompts[:64])[0] != ids[:64]:
            raise UserError(
                f"TRL would not ask the prompts of {name} as they are: the tokenizer ends them with an EOS or begins "
                "them with a second BOS, or a conversation ends with the assistant's turn"
            )
    groups = args.generation_batch_size // args.num_generations
    if len(trainer.train_dataset) < groups:
        raise UserError(
            f"train_dataset has {len(trainer.train_dataset)} prompts and one rollout takes {groups}: lower "
            "per_device_train_batch_size or steps_per_generation, or raise num_generations"
        )
    if trainer.eval_dataset is not None and args.eval_batch_size * args.world_size % trainer.num_generations_eval:
        raise UserError(
            f"per_device_eval_batch_size: {args.eval_batch_size} answers on {args.world_size} processes are not whole "
            f"groups of {trainer.num_generations_eval}: change it or num_generations_eval"
        )
    batches = args.steps_per_generation * args.num_iterations
    if args.save_strategy == "steps" and args.save_steps * args.gradient_accumulation_steps % batches:
        steps = math.lcm(batches, args.gradient_accumulation_steps) // args.gradient_accumulation_steps
        raise UserError(
            f"save_steps: {args.save_steps} is inside a rollout, which no checkpoint holds, so that a resumed run would "
            f"differ; make it a multiple of {steps}"
        )


def sample_plainly(policy: PreTrainedModel) -> None:
    """Drop what the model's own generation config would do to the samples where a TRL config says nothing.

    A repetition ban, `min_p` or suppressed tokens would shape the rollouts, and the loss would know nothing of it.
    """
    own = policy.generation_config
    policy.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )


def make_repeatable(trainer: RLOOTrainer | GRPOTrainer) -> None:
    """Let the policy that samples be the one that learns, and a run that resumes go on as it would have.

    Dropout goes, an adapter's too: TRL leaves it on, and its noise would count as a change of the policy. TRL's order
    of the prompts depends on how many epochs this process has begun; here, on the epoch alone. An evaluation draws the
    same random numbers each time, and none from the training's.
    """
    disable_dropout(trainer.model)
    if isinstance(trainer.model, PeftModel):
        positions_follow_mask(trainer.model)
    get_train_sampler, evaluate, seed = trainer._get_train_sampler, trainer.evaluate, trainer.args.seed

    def sampler_by_epoch(*args: Any) -> Any:
        sampler = get_train_sampler(*args)
        if sampler.shuffle:
            sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(seed + epoch)
        return sampler

    def evaluate_alike(*args: Any, **kwargs: Any) -> dict[str, float]:
        with torch.random.fork_rng():
            torch.manual_seed(seed + trainer.args.process_index)
            return evaluate(*args, **kwargs)

    trainer._get_train_sampler, trainer.evaluate = sampler_by_epoch, evaluate_alike


def stop_on_broken_policy(trainer: RLOOTrainer | GRPOTrainer) -> None:
    """Raise a UserError where a policy can no longer be sampled from, which happens before a loss could tell."""
    generate = trainer._generate_single_turn

    def checked(*args: Any, **kwargs: Any) -> Any:
        try:
            return generate(*args, **kwargs)
        except RuntimeError as error:
            if "probability tensor" not in str(error):
                raise
            raise UserError(
                f"the policy's probabilities are not finite at step {trainer.state.global_step + 1}; the last good "
                "checkpoint is kept; lower learning_rate or max_grad_norm, or train in a wider dtype"
            ) from None

    trainer._generate_single_turn = checked


def quantities(metrics: dict[str, float]) -> dict[str, float]:
    """What was sampled on held-out prompts, under PPO's names; TRL's KL is per token, PPO's per answer."""
    renamed = {"eval_kl": "eval_kl_per_token", "eval_completions/mean_length": "eval_response_length"}
    found = {
        renamed.get(name, name.replace("rewards/", "reward/").removesuffix("/mean")): value
        for name, value in metrics.items()
        if name in (*renamed, "eval_reward") or (name.startswith("eval_rewards/") and name.endswith("/mean"))
    }
    if "eval_completions/clipped_ratio" in metrics:
        found["eval_eos_share"] = 1 - metrics["eval_completions/clipped_ratio"]
    return found
