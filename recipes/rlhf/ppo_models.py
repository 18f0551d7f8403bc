"""Policy and value of PPO as one module: log-probabilities and values of responses, and the responses themselves."""

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from recipes.core.errors import UserError
from recipes.rlhf.generation import Sampling, generate, generate_plain
from recipes.rlhf.head import head_logprobs, logprobs_of
from recipes.rlhf.ppo_values import ScalarModel, ValueHead
from recipes.rlhf.trunk import adapter, has_plain_head, last_cells, model_inputs, packs, states, without_adapter


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
    def value_reads_policy(self) -> bool:
        """Whether the value is a head on the states that the policy's own tokens are chosen from."""
        return isinstance(self.value, ValueHead) and not self.value.adapter

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
        response_ids: Tensor | None = None,
        response_mask: Tensor | None = None,
        temperature: float = 1.0,
        with_policy: bool = True,
        with_value: bool = True,
        with_entropy: bool = False,
        ptx: dict[str, Tensor] | None = None,
        scorer: str | None = None,
        uniforms: Tensor | None = None,
        sampling: Sampling | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Takes left-padded prompts [B, P] and right-padded responses [B, R].

        With `sampling` it is `respond`, for FSDP, which puts weights together in a forward pass only. With `scorer` it
        returns `scores` [B], the reward that this adapter reads at the last token. Else it returns `logprobs`, `values` and
        `entropy`, as asked, of the response tokens, each float32 [B, R], 0 at the padding. The value of a token is
        that of the state it is chosen in, before it is seen; so the last token of a response is never fed. `ptx` holds texts
        as such sequences of which everything but the first token is response; their log-probabilities, at temperature 1,
        are `ptx_logprobs`.
        """
        if sampling is not None:
            return self.respond(prompt_ids, prompt_mask, uniforms, sampling)
        if scorer is not None:
            return {"scores": self._score(scorer, prompt_ids, prompt_mask, response_ids, response_mask)}
        real = response_mask.bool()
        input_ids = torch.cat([prompt_ids, response_ids[:, :-1]], dim=1)
        attention_mask = torch.cat([prompt_mask, response_mask[:, 1:]], dim=1)
        at = torch.cat([torch.zeros_like(prompt_mask[:, 1:], dtype=torch.bool), real], dim=1)
        sequence = (input_ids, attention_mask, at)
        outputs, hidden = {}, None
        if with_policy:
            read_by_value = with_value and self.value_reads_policy
            outputs, hidden = self._chosen(sequence, response_ids, real, temperature, with_entropy, read_by_value)
        if with_value:
            outputs["values"] = self._values(sequence, hidden)
        empty = torch.zeros(real.shape, dtype=torch.float32, device=real.device)
        outputs = {name: empty.masked_scatter(real, numbers) for name, numbers in outputs.items()}
        if ptx is not None:
            # not `self.forward`, which accelerate has wrapped in an autocast that stays on when it is entered twice
            texts = type(self).forward(self, **ptx, temperature=1.0, with_value=False)
            outputs["ptx_logprobs"] = texts["logprobs"]
        return outputs

    def _chosen(
        self,
        sequence: tuple[Tensor, Tensor, Tensor],
        response_ids: Tensor,
        real: Tensor,
        temperature: float,
        with_entropy: bool,
        with_hidden: bool,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Log-probabilities [N] of the tokens that `real` marks, entropies [N] if asked, and the trunk's states [N, H]."""
        policy, tokens = without_adapter(self.policy), response_ids[real]
        if self.packs:
            hidden = states(policy.base_model, True, *sequence)
            head = policy.get_output_embeddings()
            logprobs, entropy = head_logprobs(head, hidden, tokens, temperature, with_entropy)
        else:  # what the policy makes of its hidden states is its own
            input_ids, attention_mask, _ = sequence
            inputs = model_inputs(policy, input_ids, attention_mask, last=real.size(1))
            result = self.policy(**inputs, output_hidden_states=with_hidden)
            logits = result.logits[:, -real.size(1) :][real]
            logprobs, entropy = logprobs_of(logits, tokens, temperature, with_entropy)
            hidden = result.hidden_states[-1][:, -real.size(1) :][real] if with_hidden else None
        return {"logprobs": logprobs} | ({"entropy": entropy} if with_entropy else {}), hidden

    def _values(self, sequence: tuple[Tensor, Tensor, Tensor], hidden: Tensor | None) -> Tensor:
        """Values [N] of the states a token is chosen in; `hidden` [N, H] are the policy's, which a shared value reads."""
        if self.value_reads_policy:
            return self.value(hidden)
        if isinstance(self.value, ValueHead):
            with adapter(self.policy, self.value.adapter):
                return self.value(states(without_adapter(self.policy).base_model, True, *sequence))
        return self.value(*sequence)

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
        self, prompt_ids: Tensor, prompt_mask: Tensor, uniforms: Tensor, sampling: Sampling
    ) -> dict[str, Tensor]:
        """Responses to left-padded prompts [B, P], and what was known of each token when it was chosen: `generation`."""
        if self.packs:
            value = self.value if self.value_reads_policy else None
            return generate(without_adapter(self.policy), prompt_ids, prompt_mask, uniforms, sampling, value)
        return generate_plain(self.policy, prompt_ids, prompt_mask, uniforms, sampling)
