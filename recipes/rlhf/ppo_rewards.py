"""Rewards for responses: any number of reward models and Python functions, weighted into one score."""

import os
from collections.abc import Callable

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import get_callable_name

from recipes.core.errors import UserError
from recipes.rlhf import ppo_math
from recipes.rlhf.ppo_config import PPOConfig
from recipes.rlhf.ppo_data import response_texts
from recipes.rlhf.ppo_values import ScalarModel, ValueHead, reward_adapter
from recipes.rlhf.trunk import on_device, vocabulary_size

RewardFunc = nn.Module | Callable[..., list[float]] | str


class Rewards:
    """The reward functions with their names, weights and tokenizers; a tokenizer is None where it is the policy's."""

    def __init__(
        self,
        funcs: RewardFunc | list[RewardFunc],
        tokenizers: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None,
        args: PPOConfig,
        policy: nn.Module,
        policy_tokenizer: PreTrainedTokenizerBase,
        stop_token_id: int | None,
    ):
        self.funcs = list(funcs) if isinstance(funcs, list | tuple) else [funcs]
        self.args, self.policy_tokenizer, self.stop_token_id = args, policy_tokenizer, stop_token_id
        tokenizers = tokenizers if isinstance(tokenizers, list | tuple) else [tokenizers] * len(self.funcs)
        weights = args.reward_weights or [1.0] * len(self.funcs)
        for option, given in (("reward_weights", weights), ("reward_processing_classes", tokenizers)):
            if len(given) != len(self.funcs):
                raise UserError(f"{option} has {len(given)} entries for {len(self.funcs)} reward functions")
        self.weights = torch.tensor(weights, dtype=torch.float32, device=args.device)
        self.names, self.tokenizers = [], []
        models = [func for func in self.funcs if isinstance(func, str | nn.Module)]
        self.sources = [model if isinstance(model, str) else model.config._name_or_path for model in models]
        for func, tokenizer in zip(self.funcs, tokenizers, strict=True):
            name = reward_name(func)
            self.names.append(f"{name}_{len(self.names)}" if name in self.names else name)
            self.tokenizers.append(None)
            if not isinstance(func, nn.Module):
                continue
            if func.config.num_labels != 1:
                raise UserError(f"reward model {name} has {func.config.num_labels} labels: load it with num_labels=1")
            if tokenizer is not None and not same_tokenizer(tokenizer, policy_tokenizer):
                tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
                self.tokenizers[-1] = tokenizer
            elif vocabulary_size(func) != vocabulary_size(policy):
                raise UserError(
                    f"reward model {name} has a vocabulary of {vocabulary_size(func)} tokens and the policy one of "
                    f"{vocabulary_size(policy)}: give its tokenizer in reward_processing_classes"
                )

    def models_of_policy_tokens(self) -> list[nn.Module]:
        """The reward models that read the policy's own tokens."""
        pairs = zip(self.funcs, self.tokenizers, strict=True)
        return [func for func, tokenizer in pairs if isinstance(func, nn.Module) and tokenizer is None]

    def check_context(self, length: int) -> None:
        """Raise a UserError if a reward model that reads the policy's tokens has fewer positions than these."""
        for model in self.models_of_policy_tokens():
            check_positions(model, length)

    def attach(self, policy: PeftModel) -> dict[str, ValueHead]:
        """Loads the reward models that are adapters onto the policy's base; their heads by name."""
        pairs = zip(self.names, self.funcs, strict=True)
        adapters = {name: func for name, func in pairs if isinstance(func, str)}
        for folder in adapters.values():
            if not isinstance(policy, PeftModel):
                raise UserError(
                    f"reward model {folder} is read as an adapter and the policy has none: give peft, or a model"
                )
        return {name: reward_adapter(policy, folder, f"reward_{name}") for name, folder in adapters.items()}

    def freeze(self, prepare: Callable[[nn.Module], nn.Module]) -> None:
        """Makes the reward models ready to score, each wrapped as `prepare` wants it."""
        self.funcs = [prepare(ScalarModel(func)) if isinstance(func, nn.Module) else func for func in self.funcs]

    def score(
        self,
        examples: list[dict],
        batch: dict[str, Tensor],
        accelerator: Accelerator,
        score_with: Callable[[str], Tensor] | None = None,
    ) -> Tensor:
        """What each reward function gives the response to each example: float32 [B, reward functions].

        `score_with` asks the policy for the scores of one of its adapters, by name. `batch` holds `prompt_ids` and
        `prompt_mask` [B, P], `response_ids` and `response_mask` [B, R].
        """
        token_ids = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["response_ids"], batch["response_mask"], strict=True)
        ]
        prompts = [example["prompt"] for example in examples]
        chat = isinstance(prompts[0], list)
        prompt_ids = [example["prompt_ids"] for example in examples]
        texts = response_texts(self.policy_tokenizer, prompt_ids, token_ids, chat)
        completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
        reserved = {"prompt", "prompt_ids", "completion", "completion_ids"}
        columns = {key: [example[key] for example in examples] for key in examples[0] if key not in reserved}

        scores = []
        for func, name, tokenizer in zip(self.funcs, self.names, self.tokenizers, strict=True):
            if isinstance(func, str):
                scores.append(score_with(name))
                continue
            if not isinstance(func, nn.Module):
                given = func(prompts=prompts, completions=completions, completion_ids=token_ids, **columns)
                scores.append(checked(given, name, len(examples)).to(accelerator.device))
                continue
            if tokenizer is None:
                ids = torch.cat([batch["prompt_ids"], batch["response_ids"]], dim=1)
                mask = torch.cat([batch["prompt_mask"], batch["response_mask"]], dim=1)
            else:
                ends = [ids[-1] == self.stop_token_id for ids in token_ids]
                ids, mask = retokenize(prompts, completions, ends, tokenizer)
            check_positions(func, int(mask.sum(dim=1).max()))
            size = self.args.local_rollout_forward_batch_size
            with accelerator.autocast(), on_device(func, accelerator.device):
                parts = [
                    func(some_ids.to(accelerator.device), some_mask.to(accelerator.device))
                    for some_ids, some_mask in zip(ids.split(size), mask.split(size), strict=True)
                ]
            scores.append(torch.cat(parts))
        return torch.stack(scores, dim=1)

    def ended(self, batch: dict[str, Tensor]) -> Tensor:
        """Whether each response ends with its stop token: bool [B]."""
        if self.stop_token_id is None:
            return torch.zeros(len(batch["response_ids"]), dtype=torch.bool, device=self.weights.device)
        return ((batch["response_ids"] == self.stop_token_id) & batch["response_mask"].bool()).any(dim=1)

    def weighted(self, batch: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the rewards [B]."""
        return batch["scores"] @ self.weights

    def total(self, batch: dict[str, Tensor], moments: Tensor | None = None) -> Tensor:
        """The score PPO trains on [B]: weighted, summed, normalised where `moments` are given (`ppo_math.joined_moments`),
        clipped, less the penalty for a missing stop token. Without `moments` a score that PPO normalises is not clipped.
        """
        total = self.weighted(batch)
        if moments is not None:
            total = ppo_math.normalized(total, moments)
        if self.args.reward_clip is not None and (moments is not None or not self.args.normalize_rewards):
            total = total.clamp(-self.args.reward_clip, self.args.reward_clip)
        if self.args.missing_eos_penalty is not None:
            total = total - self.args.missing_eos_penalty * ~self.ended(batch)
        return total


def reward_name(func: RewardFunc) -> str:
    """Under which name a reward function is logged."""
    if isinstance(func, str):  # an adapter, whose name PyTorch takes for that of a module
        return os.path.basename(func.rstrip("/")).replace(".", "_")
    if isinstance(func, nn.Module):
        return os.path.basename(func.config._name_or_path.rstrip("/")) or type(func).__name__
    if not callable(func):
        raise UserError(f"a reward function is a model or a Python function, not {type(func).__name__}")
    return get_callable_name(func)


def same_tokenizer(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    return one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template


def check_positions(model: nn.Module, length: int) -> None:
    """Raise a UserError if a reward model has fewer positions than a prompt and its response have tokens."""
    model = getattr(model, "module", model)  # DeepSpeed's engine has a config of its own
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise UserError(
            f"reward model {reward_name(model)} has {positions} positions, and a prompt and its response up to {length} "
            "tokens: shorten response_length, or drop the longest prompts"
        )


def retokenize(
    prompts: list, completions: list, ended: list[bool], tokenizer: PreTrainedTokenizerBase
) -> tuple[Tensor, Tensor]:
    """Prompts and responses in the tokens of a reward model that has its own: ids and mask, right-padded [B, T].

    Conversations go through the reward model's chat template, which ends the last turn where the response ended; one that
    continues an assistant's turn is joined to it. Plain text gets its EOS where the response ended.
    """
    chat = isinstance(prompts[0], list)
    if chat:
        turns = [joined(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        texts = [
            tokenizer.apply_chat_template(turn, tokenize=False, continue_final_message=not end)
            for turn, end in zip(turns, ended, strict=True)
        ]
    else:
        ends = [tokenizer.eos_token if end and tokenizer.eos_token else "" for end in ended]
        texts = [prompt + text + end for prompt, text, end in zip(prompts, completions, ends, strict=True)]
    tokens = tokenizer(texts, padding=True, padding_side="right", add_special_tokens=not chat, return_tensors="pt")
    return tokens["input_ids"], tokens["attention_mask"]


def joined(prompt: list[dict], completion: list[dict]) -> list[dict]:
    """The conversation with its answer, which goes on with the last turn if that is the assistant's too."""
    if prompt[-1]["role"] != "assistant":
        return prompt + completion
    return [*prompt[:-1], prompt[-1] | {"content": prompt[-1]["content"] + completion[0]["content"]}]


def checked(given: list[float], name: str, expected: int) -> Tensor:
    """What a Python reward function returned, float32 [expected]; ValueError unless it is that many finite numbers."""
    try:
        rewards = torch.as_tensor(given, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"reward function {name} must return a list of numbers: {error}") from error
    if rewards.shape != (expected,):
        shape = tuple(rewards.shape)
        raise UserError(f"reward function {name} must return one number for each of {expected} responses, not {shape}")
    if not rewards.isfinite().all():
        bad = (~rewards.isfinite()).nonzero()[0].item()
        raise UserError(f"reward function {name} returned {rewards[bad]} for response {bad}: return a finite number")
    return rewards
