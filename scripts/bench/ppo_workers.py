"""One measurement of `scripts.bench.ppo`, in a process of its own: builds the models, or trains with ours or TRL's PPO.

Takes a job as JSON on the command line, and writes its result as JSON in the last line of stdout. Which TRL it imports is
decided by PYTHONPATH.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)

from recipes.core.results import commit, hardware, peak_memory_mib, versions

Job = dict[str, Any]
PAD, EOS = 0, 1
NEVER = -10.0  # logit of the padding token, which TRL would take for the end of a response


# ---------------------------------------------------------------------------------------------- models and prompts
def build(job: Job) -> Job:
    """Saves a seeded policy, a reward model, a tokenizer and prompts, all made up, in `job["models"]`.

    Returns the policy's parameters.
    """
    folder, vocabulary = Path(job["models"]), job["shape"]["vocab_size"]
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{index}": index for index in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    tokenizer.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "reward")

    set_seed(job["seed"])
    config = LlamaConfig(
        **job["shape"], max_position_embeddings=256, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None
    )
    policy = LlamaForCausalLM(config)
    set_ending(policy, job["mean_length"], job["temperature"])
    policy.save_pretrained(folder / "policy")
    config.num_labels = 1
    reward = AutoModelForSequenceClassification.from_config(config)
    reward.save_pretrained(folder / "reward")
    reward.name_or_path = str(folder / "policy")  # the base that the policy has too
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(reward, adapter).save_pretrained(folder / "reward_adapter")

    shortest, longest = job["prompt_tokens"]
    lengths = torch.randint(shortest, longest + 1, (job["prompts"],)).tolist()
    prompts = [" ".join(f"w{word}" for word in torch.randint(2, vocabulary, (length,)).tolist()) for length in lengths]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return {"parameters": policy.num_parameters()}


@torch.no_grad()
def set_ending(policy: LlamaForCausalLM, mean_length: float | None, temperature: float) -> None:
    """Makes EOS as likely at every position as a geometric length of this mean asks for, padding never, by weights alone.

    The first hidden channel is the same for every token: large, and no layer reads or writes it. Through it the head
    gives a token a logit that hardly depends on the text. So any trainer that runs the architecture samples alike.
    """
    width = policy.config.hidden_size
    policy.model.embed_tokens.weight[:, 0] = 0.25 * width**0.5
    for name, weight in policy.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "layernorm.weight")):
            weight[0] = 0.0
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight /= (2 * policy.config.num_hidden_layers) ** 0.5  # as GPT-2's: a deep model drowns the channel else
    policy.model.norm.weight[0] = 0.02  # small, so that with tied embeddings the logits stay in bf16's fine range

    text = torch.randint(2, policy.config.vocab_size, (16, 64))
    hidden = policy.model(input_ids=text).last_hidden_state
    constant, head = hidden[..., 0].mean(), policy.lm_head.weight
    others = torch.logsumexp(policy.lm_head(hidden)[..., 2:] / temperature, dim=-1).mean()
    head[PAD] = head[EOS] = 0.0
    head[PAD, 0] = NEVER / constant
    odds = mean_length - 1 if mean_length else policy.config.vocab_size  # against EOS
    head[EOS, 0] = temperature * (others - torch.tensor(odds).log()) / constant


def load(kind: str, job: Job) -> nn.Module:
    """A model that `build` saved: "policy" or "reward"."""
    classes = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
    return classes[kind].from_pretrained(
        f"{job['models']}/{kind}", dtype=getattr(torch, job["dtype"]), attn_implementation=job["attention"]
    )


# --------------------------------------------------------------------------------------------------- reward by rule
class ShareBackbone(nn.Module):
    """As hidden states [B, T, 1] the share of words of the vocabulary's upper half in the response so far."""

    def __init__(self, job: Job):
        super().__init__()
        self.half, self.prompt = job["shape"]["vocab_size"] // 2, job["prompt_tokens"][0]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        real = attention_mask.float()
        real[:, : self.prompt] = 0.0  # the prompts of this task are of one length
        share = ((input_ids >= self.half) * real).cumsum(dim=1) / real.cumsum(dim=1).clamp(min=1.0)
        return SimpleNamespace(hidden_states=(share.unsqueeze(-1),))


class ShareReward(nn.Module):
    """`upper_share` with the face of a reward model, which is all that TRL 1.12 takes."""

    base_model_prefix = "backbone"

    def __init__(self, job: Job):
        super().__init__()
        self.backbone, self.score = ShareBackbone(job), nn.Identity()


def upper_share(half: int) -> Callable[..., list[float]]:
    """A reward function: the share of a response's tokens from `half` on."""

    def upper_half(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token >= half for token in ids) / len(ids) for ids in completion_ids]

    return upper_half


# --------------------------------------------------------------------------------------------------------- training
class Clock(TrainerCallback):
    """The time at the start and after each update, which is `steps` of the trainer's steps."""

    def __init__(self, steps: int):
        self.steps, self.times = steps, []

    def read(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.read()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.steps == 0:
            self.read()


def common_options(job: Job) -> dict[str, Any]:
    """What both configs call by the same name."""
    return {
        "output_dir": f"{job['models']}/out",
        "total_episodes": job["episodes"] * job["updates"],
        "num_ppo_epochs": 4,
        "response_length": job["response_length"],
        "stop_token": job["stop_token"],
        "local_rollout_forward_batch_size": 64,
        "temperature": job["temperature"],
        "kl_coef": job["kl_coef"],
        "vf_coef": 0.1,
        "learning_rate": job["learning_rate"],
        "adam_epsilon": 1e-8,  # the default of TRL's PPO, not of ours
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,  # TRL's PPO does not clip gradients
        "bf16": job["bf16"],
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),  # said, or bf16 is refused on a CPU
        "seed": job["seed"],
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def ours(job: Job, tokenizer: PreTrainedTokenizerFast, prompts: list[str], peft: LoraConfig | None) -> tuple:
    """A trainer of this repository, its steps an update, and how to read response lengths and the logs' names."""
    from recipes.rlhf.ppo_config import PPOConfig
    from recipes.rlhf.ppo_trainer import PPOTrainer

    baseline = resident_mib()
    args = PPOConfig(
        **common_options(job),
        per_device_train_batch_size=job["micro_batch"],
        gradient_accumulation_steps=job["accumulation"],
        num_mini_batches=job["mini_batches"],
    )
    by_rule = job["task"] == "upper_half"
    if by_rule:
        reward = upper_share(job["shape"]["vocab_size"] // 2)
    else:
        reward = f"{job['models']}/reward_adapter" if job["reward_adapter"] else load("reward", job)
    trainer = PPOTrainer(
        model=load("policy", job),
        reward_funcs=reward,
        value_model=load("reward", job) if by_rule else job["value_model"],
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        peft_config=peft,
    )
    return trainer, args.steps_per_rollout, baseline, ("reward", "kl")


def trl(job: Job, tokenizer: PreTrainedTokenizerFast, prompts: list[str], peft: LoraConfig | None) -> tuple:
    """TRL's trainer, as `ours`.

    Its `gradient_accumulation_steps` counts micro-batches up to an optimizer step wherever a mini-batch ends. So a
    mini-batch of its config is one micro-batch here, and the optimizer steps are those of `ours`, with TRL unchanged.
    """
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    baseline = resident_mib()
    args = PPOConfig(
        **common_options(job),
        per_device_train_batch_size=job["micro_batch"] * job["mini_batches"],
        gradient_accumulation_steps=job["accumulation"],
        num_mini_batches=job["mini_batches"] * job["accumulation"],
        num_sample_generations=0,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=load("policy", job),
        ref_model=None,
        reward_model=ShareReward(job) if job["task"] == "upper_half" else load("reward", job),
        value_model=load("reward", job),
        train_dataset=Dataset.from_dict({"input_ids": tokenizer(prompts)["input_ids"]}),
        peft_config=peft,
    )
    return trainer, 1, baseline, ("objective/scores", "objective/kl")


def resident_mib() -> float:
    """Memory in use before the models: resident, or 0 on a GPU, whose peak counts what PyTorch allocates there."""
    return 0.0 if torch.cuda.is_available() else psutil.Process().memory_info().rss / 2**20


def keep_responses() -> list[Tensor]:
    """Has TRL's PPO put the token ids of its responses in a list; their lengths are in no log of it."""
    from trl.experimental.ppo import ppo_trainer

    generate, kept = ppo_trainer.batch_generation, []

    def batch_generation(model: nn.Module, queries: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        sequences, logits = generate(model, queries, *options)
        kept.append(sequences[:, queries.size(1) :])
        return sequences, logits

    ppo_trainer.batch_generation = batch_generation
    return kept


def train(job: Job) -> Job:
    """Trains and returns what was measured: seconds of each update, peak memory, lengths, scores, KL."""
    if job["attention"] is None:  # on a CPU the fused kernel is the slower one in bf16
        in_bf16 = job["bf16"] or job["dtype"] == "bfloat16"
        job["attention"] = "eager" if in_bf16 and not torch.cuda.is_available() else "sdpa"
    tokenizer = AutoTokenizer.from_pretrained(f"{job['models']}/policy")
    prompts = json.loads(Path(job["models"], "prompts.json").read_text())
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if job["lora"] else None
    make = {"ours": ours, "trl": trl}[job["trainer"]]
    trainer, steps, baseline, (score, kl) = make(job, tokenizer, prompts, adapter)
    kept = keep_responses() if job["trainer"] == "trl" else []
    trainer.add_callback(clock := Clock(steps))
    optimizer_steps: list[None] = []
    register_optimizer_step_post_hook(lambda *_: optimizer_steps.append(None))
    trainer.train()

    history = [entry for entry in trainer.state.log_history if score in entry]
    lengths = [(tokens != PAD).sum(dim=1).float().mean().item() for tokens in kept]
    lengths = lengths or [entry["response_length"] for entry in history]
    phases = {name for entry in history for name in entry if name.startswith("seconds/")}
    return {
        "seconds": [later - earlier for earlier, later in zip(clock.times, clock.times[1:])],
        "memory_mib": peak_memory_mib() - baseline,
        "optimizer_steps": len(optimizer_steps),
        "response_length": sum(lengths) / len(lengths),
        "score": [entry[score] for entry in history],
        "kl": [entry[kl] for entry in history],
        "phases": {name: [entry[name] for entry in history] for name in sorted(phases)},
        "attention": job["attention"],
        "autocast": trainer.accelerator.mixed_precision,
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": commit(),
    }


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps({"build": build, "train": train}[job.pop("do")](job)))
