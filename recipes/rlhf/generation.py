"""Sampling responses: a decoding loop that drops the sequences that have ended from its batch."""

import math
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from recipes.rlhf import ppo_math
from recipes.rlhf.trunk import without_adapter

SHRINK_BELOW = 0.8  # share of the batch that is unfinished; each time it falls below, the finished rows are dropped
STEP = 16  # tokens by which the cache that attention sees grows, and half of that the rows by which a batch shrinks


def in_steps(length: int) -> int:
    """The length that keys and values of this many tokens are given with."""
    return -(-length // STEP) * STEP


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer in memory that grows a few tokens at a time, in place of a longer copy for every token.

    It gives a few more than there are, which the mask must hide, so that products of matrices come in few shapes; and all
    that it holds, since a part of it would be copied for every product.
    """

    def __init__(self):
        super().__init__()
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        end = self.length + key_states.size(2)
        room = in_steps(end) - self.keys.size(2)
        if room > 0:
            self.keys, self.values = (nn.functional.pad(kept, (0, 0, 0, room)) for kept in (self.keys, self.values))
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    `temperature`: 0 takes the likeliest token. `stop_token_id`: what follows it is `pad_token_id`. `synchronize`: go on
    until the sequences of all processes have ended, as a model must whose weights are sharded over them.
    """

    temperature: float
    stop_token_id: int | None
    pad_token_id: int
    synchronize: bool = False

    def choose(self, logits: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """One token for each row of `logits` [B, V], by its random number in [0, 1) [B].

        Returns `response_ids`, `logprobs` of these at the temperature, and `entropy` there in nats, each [B].
        """
        logprobs = (logits.float() / (self.temperature or 1.0)).log_softmax(dim=-1)
        probabilities = logprobs.exp()
        greedy = self.temperature == 0
        tokens = logprobs.argmax(dim=-1) if greedy else ppo_math.inverse_cdf_sample(probabilities, uniforms)
        return {
            "response_ids": tokens,
            "logprobs": logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1),
            "entropy": -probabilities.mul_(logprobs).sum(dim=-1),
        }


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    uniforms: Tensor,
    sampling: Sampling,
    value: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Responses to left-padded prompts [B, P], sampled with the random numbers `uniforms` in [0, 1) [B, R].

    Of a model that takes packed rows, whose trunk and head can be called one after the other; any other: `generate_plain`.

    Returns `response_ids`, and what was known when each was chosen, so that no pass over the responses need find it again:
    `logprobs` and `entropy` at the temperature and, where `value` reads the trunk's states, `values`, float32 [B, R]. What
    stands after a stop token is padding in the first and means nothing in the others.
    """
    stop_token_id, pad_token_id = sampling.stop_token_id, sampling.pad_token_id
    trunk, head = model.base_model, model.get_output_embeddings()
    (size, start), length, device = prompt_ids.shape, uniforms.size(1), prompt_ids.device
    eager = "eager" in model.config.get_text_config()._attn_implementation
    responses = {"response_ids": torch.full_like(uniforms, pad_token_id, dtype=torch.long)}
    names = ("logprobs", "entropy") if value is None else ("logprobs", "entropy", "values")
    responses |= {name: torch.zeros_like(uniforms) for name in names}
    rows = torch.arange(size, device=device)  # of the responses, for each row of the shrinking batch
    ended = torch.zeros_like(rows, dtype=torch.bool)
    seen = nn.functional.pad(prompt_mask.bool(), (0, in_steps(start + length) - start))
    positions = (prompt_mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = Cache(layer_class_to_replicate=RoomyLayer)

    inputs = prompt_ids
    # a token sees the real ones before it; and itself, so that the padding, which nobody sees, has something to look at
    square = torch.ones(start, in_steps(start), dtype=torch.bool, device=device)
    visible = (seen[:, None, : in_steps(start)] & square.tril()) | square.tril().triu()
    for step in range(length):
        mask = visible.unsqueeze(1)
        if eager:
            mask = torch.zeros(mask.shape, device=device).masked_fill_(~mask, torch.finfo(torch.float32).min)
        hidden = trunk(
            input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        chosen = sampling.choose(head(hidden), uniforms[rows, step])
        tokens = chosen["response_ids"]
        if value is not None:
            chosen["values"] = value(hidden)
        chosen["response_ids"] = torch.where(ended, pad_token_id, tokens)
        for name, numbers in chosen.items():
            responses[name][rows, step] = numbers
        if stop_token_id is not None:
            ended = ended | (tokens == stop_token_id)
            left = int((~ended).sum())
            if sampling.synchronize:
                anywhere = torch.tensor([left], device=device)
                torch.distributed.all_reduce(anywhere)
            if (anywhere.item() if sampling.synchronize else left) == 0:
                break
            if 0 < left < SHRINK_BELOW * len(rows):
                kept = ended.long().argsort(stable=True)[: -(-left // (STEP // 2)) * (STEP // 2)]
                cache.batch_select_indices(kept)
                rows, tokens, positions, seen, ended = (t[kept] for t in (rows, tokens, positions, seen, ended))
        inputs, positions = tokens.unsqueeze(1), positions[:, -1:] + 1
        seen[:, start + step] = True
        visible = seen[:, None, : in_steps(start + step + 1)]
    return responses


@torch.no_grad()
def generate_plain(
    policy: PreTrainedModel | PeftModel, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor, sampling: Sampling
) -> dict[str, Tensor]:
    """The same `response_ids` as `generate`, by the model's own `generate`, free of what its generation config asks for."""
    config = GenerationConfig(
        max_new_tokens=uniforms.size(1),
        do_sample=False,
        eos_token_id=sampling.stop_token_id,
        pad_token_id=sampling.pad_token_id,
    )
    saved, policy.generation_config = policy.generation_config, GenerationConfig()
    try:
        sequences = policy.generate(
            input_ids=prompt_ids,
            attention_mask=prompt_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([_Chosen(uniforms, prompt_ids.size(1), sampling)]),
            synced_gpus=sampling.synchronize,
        )
    finally:
        for model in (policy, without_adapter(policy)):
            model.generation_config = saved
    responses = sequences[:, prompt_ids.size(1) :]
    missing = uniforms.size(1) - responses.size(1)
    return {"response_ids": nn.functional.pad(responses, (0, missing), value=sampling.pad_token_id)}


class _Chosen(LogitsProcessor):
    """Leaves one token per row, drawn with the row's own random numbers [B, R]; greedy search on top of it samples."""

    def __init__(self, uniforms: Tensor, prompt_length: int, sampling: Sampling):
        self.uniforms, self.prompt_length, self.sampling = uniforms, prompt_length, sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniforms = self.uniforms[:, input_ids.size(1) - self.prompt_length]
        tokens = self.sampling.choose(scores, uniforms)["response_ids"]
        return torch.full_like(scores, -math.inf).scatter(1, tokens.unsqueeze(1), 0.0)
