"""Answers sampled from a policy and their log-probabilities under another, in batches of any size."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.rlhf import ppo_math
from recipes.rlhf.generation import Sampling
from recipes.rlhf.ppo_data import left_pad, prompt_token_ids, response_texts, select
from recipes.rlhf.ppo_models import PolicyWithValue

BATCH = 256


@dataclass
class Answers:
    """Sampled answers to N prompts.

    `tokens`: left-padded `prompt_ids`, `prompt_mask` [N, P] and right-padded `response_ids`, `response_mask` [N, R].
    `texts`: the answers without special tokens. `ended`: whether each stopped by itself, bool [N].
    """

    tokens: dict[str, torch.Tensor]
    texts: list[str]
    ended: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        return self.tokens["response_mask"].sum(dim=1)


@torch.inference_mode()
def sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list,
    response_length: int,
    temperature: float,
    seed: int,
) -> Answers:
    """One answer to each prompt; answer i depends on (seed, i) alone, never on the batch it was drawn in.

    Args:
        prompts: texts or conversations.
        temperature: 0 takes the likeliest token.
    """
    ids = [prompt_token_ids(prompt, tokenizer) for prompt in prompts]
    device = policy.device
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    tokens = {name: tensor.to(device) for name, tensor in left_pad(ids, pad).items()}
    tokens["response_ids"] = torch.full((len(ids), response_length), pad, device=device)
    uniforms = torch.rand(len(ids), response_length, generator=torch.Generator().manual_seed(seed)).to(device)
    model = PolicyWithValue(policy.eval())
    sampling = Sampling(temperature, stop_token_id=eos, pad_token_id=pad)
    for rows in torch.arange(len(ids), device=device).split(BATCH):
        chunk = select({name: tokens[name] for name in ("prompt_ids", "prompt_mask")}, rows)
        drawn = model.respond(**chunk, uniforms=uniforms[rows], sampling=sampling)
        tokens["response_ids"][rows] = drawn["response_ids"]
    tokens["response_mask"] = ppo_math.response_mask(tokens["response_ids"], eos)
    ended = ((tokens["response_ids"] == eos) & tokens["response_mask"].bool()).any(dim=1)
    real = [row[mask.bool()].tolist() for row, mask in zip(tokens["response_ids"], tokens["response_mask"])]
    return Answers(tokens, response_texts(tokenizer, ids, real, isinstance(prompts[0], list)), ended)


@torch.inference_mode()
def log_probability(policy: PreTrainedModel, answers: Answers, temperature: float) -> torch.Tensor:
    """log p(answer | prompt) in nats, summed over the answer's tokens at the sampling temperature, float32 [N]."""
    model = PolicyWithValue(policy.eval())
    total = []
    for rows in torch.arange(len(answers.texts), device=policy.device).split(BATCH):
        batch = select(answers.tokens, rows)
        for side in ("prompt", "response"):  # the other policy's padding may be a token that this one does not have
            batch[f"{side}_ids"] = batch[f"{side}_ids"] * batch[f"{side}_mask"]
        logprobs = model(**batch, temperature=temperature, with_value=False)["logprobs"]
        total.append((logprobs * batch["response_mask"]).sum(dim=1))
    return torch.cat(total)
