"""The responses of a rollout: sampled from the policy, and all that is known of them."""

import time
from collections import defaultdict
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl.models.utils import unwrap_model_for_generation

from recipes.rlhf import ppo_math
from recipes.rlhf.generation import Sampling
from recipes.rlhf.ppo_config import PPOConfig
from recipes.rlhf.ppo_data import left_pad, select
from recipes.rlhf.ppo_rewards import Rewards
from recipes.rlhf.ppo_vllm import VLLMResponder
from recipes.rlhf.trunk import adapter, on_device

SEQUENCE = ("prompt_ids", "prompt_mask", "response_ids", "response_mask")


@contextmanager
def gathered_once(model: FSDPModule, reshard_after_forward: bool):
    """Layers that are put together for one token stay so for the next, as they need to in generation."""
    model.set_reshard_after_forward(False)
    try:
        yield
    finally:
        model.set_reshard_after_forward(reshard_after_forward)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


class ResponseSampler:
    """Samples responses from a `PolicyWithValue` and measures them.

    Without `ref_model` the reference of a KL penalty is the policy with its adapters off.
    """

    def __init__(
        self,
        args: PPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        rewards: Rewards,
        policy: nn.Module,
        ref_model: nn.Module | None,
    ):
        self.args, self.tokenizer, self.accelerator = args, tokenizer, accelerator
        self.rewards, self.ref_model = rewards, ref_model
        sharded = is_deepspeed_zero3_enabled() or accelerator.distributed_type == DistributedType.FSDP
        synchronize = sharded and accelerator.num_processes > 1
        self.sampling = Sampling(args.temperature, rewards.stop_token_id, tokenizer.pad_token_id, synchronize)
        self.vllm = (
            VLLMResponder(args, policy, accelerator, tokenizer, rewards.stop_token_id) if args.use_vllm else None
        )
        self.seconds: dict[str, float] = defaultdict(float)

    def take_weights(self) -> None:
        """Hands the policy's weights, which may have changed, to an engine that has copies of its own."""
        if self.vllm is not None:
            with self.phase("weights to vLLM"):
                self.vllm.engine.sync_weights()

    @torch.no_grad()
    def sample(
        self,
        model: nn.Module,
        examples: list[dict],
        uniforms: Tensor,
        prepared: bool = True,
        with_value: bool = True,
    ) -> dict[str, Tensor]:
        """One response to each prompt, drawn with its own random numbers in [0, 1) [B, response_length].

        `prepared`: whether training has wrapped the model, so that ZeRO-3 may have to gather its weights.

        Returns `prompt_ids`, `prompt_mask` [B, P], `response_ids`, `response_mask` [B, R]; `logprobs`, `entropy`,
        where asked `values` and, under a KL penalty, `ref_logprobs` [B, R], 0 at the padding; `scores` [B, reward
        functions]. What generation knew of its tokens is not worked out again: of most decoders their log-probabilities
        and entropy, and the values that read the policy's own states.
        """
        device = self.args.device
        prompts = left_pad([example["prompt_ids"] for example in examples], self.tokenizer.pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in prompts.items()}

        with self.accelerator.autocast(), self.phase("generation"):
            drawn = self._generate(model, batch, uniforms.to(device), prepared)
            mask = ppo_math.response_mask(drawn["response_ids"], self.rewards.stop_token_id)
            batch = select(batch | drawn | {"response_mask": mask}, torch.arange(len(examples)))
            outputs = {name: batch[name] for name in drawn if name != "response_ids"}
        with self.accelerator.autocast(), self.phase("log-probabilities"):
            missing = {
                "with_policy": "logprobs" not in outputs,
                "with_entropy": "entropy" not in outputs,
                "with_value": with_value and "values" not in outputs,
            }
            if any(missing.values()):
                outputs |= self._forward(model, batch, **missing)
            if self.ref_model is not None:
                with on_device(self.ref_model, device):
                    outputs["ref_logprobs"] = self._forward(self.ref_model, batch, with_value=False)["logprobs"]
            elif self.args.kl_coef > 0:
                with adapter(self.accelerator.unwrap_model(model).policy, None):
                    outputs["ref_logprobs"] = self._forward(model, batch, with_value=False)["logprobs"]
        batch |= {name: tensor * batch["response_mask"] for name, tensor in outputs.items()}
        with self.phase("scoring"):
            scores = self.rewards.score(
                examples, batch, self.accelerator, lambda name: self._scores(model, batch, name)
            )
        return batch | {"scores": scores}

    @contextmanager
    def phase(self, name: str):
        """Counts the seconds that pass in `seconds`, by name."""
        synchronize = torch.cuda.synchronize if self.args.device.type == "cuda" else lambda: None
        synchronize()
        start = time.monotonic()
        yield
        synchronize()
        self.seconds[name] += time.monotonic() - start

    def metrics(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is logged of each sample, in training and evaluation: name -> float32 [B]."""
        metrics = {"reward": self.rewards.total(batch)}
        metrics |= {f"reward/{name}": batch["scores"][:, i] for i, name in enumerate(self.rewards.names)}
        if "ref_logprobs" in batch:
            pair = (batch["logprobs"], batch["ref_logprobs"])
            metrics["kl"], metrics["kl_k3"] = (ppo_math.kl_penalty(*pair, name).sum(dim=1) for name in ("k1", "k3"))
        metrics["response_length"] = batch["response_mask"].sum(dim=1).float()
        metrics["eos_share"] = self.rewards.ended(batch).float()
        return metrics

    def _chunks(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return torch.arange(len(batch["prompt_ids"])).split(self.args.local_rollout_forward_batch_size)

    def _generate(
        self, model: nn.Module, prompts: dict[str, Tensor], uniforms: Tensor, prepared: bool
    ) -> dict[str, Tensor]:
        """What `generation` returns, for the left-padded prompts of all chunks; of vLLM, `response_ids` alone."""
        if self.vllm is not None:
            return self.vllm.respond(**prompts)
        if isinstance(model, FSDPModule):
            ready, respond = gathered_once(model, self.accelerator.state.fsdp_plugin.reshard_after_forward), model
        else:
            gather = self.args.ds3_gather_for_generation and prepared  # before training they are whole
            ready = unwrap_model_for_generation(model, self.accelerator, gather_deepspeed3_params=gather)
            respond = self.accelerator.unwrap_model(model).respond
        with ready:
            parts = [
                respond(**select(prompts, rows), uniforms=uniforms[rows], sampling=self.sampling)
                for rows in self._chunks(prompts)
            ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _scores(self, model: nn.Module, batch: dict[str, Tensor], scorer: str) -> Tensor:
        sequence = {name: batch[name] for name in SEQUENCE}
        with self.accelerator.autocast():
            parts = [
                model(**select(sequence, rows), temperature=1.0, scorer=scorer)["scores"]
                for rows in self._chunks(batch)
            ]
        return torch.cat(parts)

    def _forward(self, model: nn.Module, batch: dict[str, Tensor], **outputs: bool) -> dict[str, Tensor]:
        """`PolicyWithValue.forward` in chunks, each without the padding it does not need."""
        parts, length = defaultdict(list), batch["response_ids"].size(1)
        sequence = {name: batch[name] for name in SEQUENCE}
        for rows in self._chunks(batch):
            result = model(**select(sequence, rows), temperature=self.args.temperature, **outputs)
            for name, tensor in result.items():
                parts[name].append(pad(tensor, (0, length - tensor.size(1))))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}
