"""Responses of PPO by vLLM on GPUs: TRL's engine, which is given the policy's weights before each rollout."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available

from recipes.core.errors import UserError
from recipes.rlhf.ppo_config import PPOConfig


class VLLMResponder:
    """Samples responses with vLLM, in this process or on a server of its own.

    vLLM draws its own random numbers: unlike those of `generation`, its responses differ from run to run.
    """

    def __init__(
        self,
        args: PPOConfig,
        policy: nn.Module,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_id: int | None,
    ):
        if not is_vllm_available():
            raise UserError(
                "use_vllm: vLLM is not installed: pip install 'trl[vllm]' where there is a GPU, or drop it"
            )
        stop = {"ignore_eos": True, "stop_token_ids": [] if stop_token_id is None else [stop_token_id]}
        self.pad_token_id, self.length = tokenizer.pad_token_id, args.response_length
        self.engine = VLLMGeneration(
            model=policy,
            accelerator=accelerator,
            processing_class=tokenizer,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            temperature=args.temperature,
            max_completion_length=args.response_length,
            logprobs=None,  # those of the training pass are the ones that the ratio compares with
            generation_kwargs=stop,
        )

    def respond(self, prompt_ids: Tensor, prompt_mask: Tensor) -> dict[str, Tensor]:
        """`response_ids` [B, R] to left-padded prompts [B, P], padded after their stop token."""
        prompts = [ids[mask.bool()].tolist() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
        _, responses, _, _ = self.engine.generate(prompts=prompts, images=None, num_generations=1)
        rows = [torch.tensor(ids, dtype=torch.long, device=prompt_ids.device) for ids in responses]
        rows.append(rows[0].new_zeros(self.length))  # so that all have the length of the longest there may be
        return {"response_ids": pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)[:-1]}
