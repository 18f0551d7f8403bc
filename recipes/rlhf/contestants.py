"""Who takes part in a comparison: policies of one vocabulary and their judges, on the accelerator if there is one."""

import math
from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from recipes.core import ModelConfig, UserError
from recipes.rlhf.ppo_data import check_lengths, prompt_token_ids
from recipes.rlhf.rewards import Reward, load_reward

NEEDS = ("eos_token",)


def check_vocabularies(policies: dict[str, str], reference: str) -> None:
    """Raise a UserError if a policy's tokens are not the reference's: no KL divergence is defined between them.

    One may have more than the other, such as a token for padding.
    """
    vocabularies = {
        name: ModelConfig(model_name_or_path=path).load_tokenizer(needs=NEEDS).get_vocab().items()
        for name, path in policies.items()
    }
    for name, vocabulary in vocabularies.items():
        if not (vocabulary <= vocabularies[reference] or vocabulary >= vocabularies[reference]):
            raise UserError(
                f"policies: {name} has another vocabulary than {reference}, so that no KL divergence is defined between "
                "them; compare it in a config of its own"
            )


def open_policy(path: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A policy's tokenizer and model, on the accelerator if there is one; masks tell padding, so that EOS may be it."""
    tokenizer, policy = ModelConfig(model_name_or_path=path).load(AutoModelForCausalLM, needs=NEEDS)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer, on_accelerator(policy)


def check_prompts(
    prompts: list, tokenizer: PreTrainedTokenizerBase, policy: PreTrainedModel, response_length: int
) -> None:
    """Raise a UserError unless every prompt leaves the policy room for an answer."""
    context = getattr(policy.config.get_text_config(), "max_position_embeddings", math.inf)
    lengths = [len(prompt_token_ids(prompt, tokenizer)) for prompt in prompts]
    check_lengths(lengths, "the test split", response_length, context)


def open_judge(name: str) -> Reward:
    """A reward model, on the accelerator if there is one, or a function."""
    judge = load_reward(name)
    return replace(judge, func=on_accelerator(judge.func)) if judge.tokenizer is not None else judge


def on_accelerator(model: PreTrainedModel) -> PreTrainedModel:
    return model.to(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else model
