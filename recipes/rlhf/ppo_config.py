"""Options of PPO: TRL's names and meanings, where TRL 1.12's PPO had them."""

from dataclasses import dataclass, field
from typing import Literal

from trl.trainer.base_config import _BaseConfig

from recipes.core.errors import UserError

WITHOUT_EFFECT = {  # options of transformers that a rollout leaves no place for
    "data_seed": "seed draws the order of the prompts",
    "label_smoothing_factor": "there are no labels",
    "neftune_noise_alpha": "noise in the embeddings would count as a change of the policy",
    "train_sampling_strategy": "prompts come in random order",
}


@dataclass
class PPOConfig(_BaseConfig):
    """`transformers.TrainingArguments` plus the options of PPO.

    One rollout takes `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` prompts per process
    and serves `num_mini_batches * num_ppo_epochs` optimizer steps; `max_steps`, `save_steps`, `eval_steps` and the
    learning-rate schedule count optimizer steps.

    Departures from TRL 1.12: `num_mini_batches` multiplies the rollout where TRL divided the batch, so that an optimizer
    step takes what `transformers` calls a batch; `stop_token` defaults to `eos`, `gradient_checkpointing` to off,
    `logging_steps` to once per rollout; `stop_token_id` replaces `stop_token`. From `transformers` the defaults of
    `learning_rate`, `adam_epsilon`, `logging_steps`, `remove_unused_columns` and, through TRL, `bf16` differ.
    """

    learning_rate: float = field(default=3e-6, metadata={"help": "Initial learning rate of AdamW."})
    adam_epsilon: float = field(
        default=1e-5, metadata={"help": "Epsilon of AdamW, as in the first PPO for language models (TRL's PPO: 1e-8)."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Alias of `activation_checkpointing`, which trades time for memory; off."}
    )
    logging_steps: float | None = field(
        default=None,
        metadata={
            "help": "Optimizer steps between two logs; below 1, a share of all steps. Default: once per rollout."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop all columns but the prompt; Python rewards then do not see the others."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Number of processes that tokenize the prompts."}
    )

    # rollout
    total_episodes: int | None = field(
        default=None,
        metadata={"help": "Number of responses to train on, rounded up to whole rollouts; instead of `max_steps`."},
    )
    num_mini_batches: int = field(
        default=1, metadata={"help": "Optimizer steps in one pass over a rollout; the rollout grows with it."}
    )
    prompt_length: int | None = field(
        default=None, metadata={"help": "Keep only the first tokens of each prompt, plain text: continue its opening."}
    )
    response_length: int = field(default=53, metadata={"help": "Most tokens that a response may have."})
    temperature: float = field(
        default=0.7, metadata={"help": "Temperature of sampling and of every log-probability that is computed."}
    )
    stop_token: Literal["eos"] | None = field(
        default="eos",
        metadata={
            "help": "`eos`: a response ends at the tokenizer's EOS. None: it always has `response_length` tokens."
        },
    )
    stop_token_id: int | None = field(
        default=None, metadata={"help": "Id of the token that ends a response, in place of `stop_token`."}
    )
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Responses per process that are generated and scored at a time."}
    )
    ds3_gather_for_generation: bool = field(
        default=True,
        metadata={"help": "ZeRO-3: gather the weights for generation. Off: slower, for models beyond one device."},
    )

    use_vllm: bool = field(
        default=False, metadata={"help": "Sample responses with vLLM, on GPUs; they are then not repeatable."}
    )
    vllm_mode: Literal["colocate", "server"] = field(
        default="colocate",
        metadata={"help": "colocate: an engine on each training GPU. server: one that `vllm serve` has started."},
    )
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "Address of the server, e.g. http://localhost:8000."}
    )
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs that one colocated engine spans."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of a GPU's memory that a colocated engine takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Most tokens of prompt and response in vLLM; default: the model's context."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Free the colocated engine's memory while the policy is optimised."}
    )

    offload_frozen: bool = field(
        default=False,
        metadata={"help": "Keep reference and reward models in the host's memory while they are not used."},
    )

    # reward
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weight of each reward function, 1 if unset. Weight 0: only logged, not trained on."},
    )
    reward_clip: float | None = field(
        default=None, metadata={"help": "Clip the weighted sum of the rewards to [-reward_clip, reward_clip]."}
    )
    normalize_rewards: bool = field(
        default=False,
        metadata={
            "help": "Scale the scores by the mean and standard deviation of all scores so far, before clipping."
        },
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Taken off the score of a response without stop token; a positive number."}
    )
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Scale the token rewards to variance 1, keeping their mean."}
    )
    kl_coef: float = field(
        default=0.05, metadata={"help": "Weight of the per-token KL to the reference; 0: no reference is held."}
    )
    kl_estimator: Literal["k1", "k3"] = field(
        default="k1",
        metadata={"help": "Estimator of the KL: k1 is log p - log q, k3 has lower variance and is never negative."},
    )
    kl_target: float | None = field(
        default=None, metadata={"help": "Adapt `kl_coef` until the mean KL of a response is this many nats."}
    )
    kl_horizon: int = field(
        default=10000, metadata={"help": "Episodes over which an adaptive `kl_coef` may change by a fifth."}
    )

    # update
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over a rollout."})
    cliprange: float = field(
        default=0.2, metadata={"help": "Range of the policy ratio around 1 outside which the loss is flat."}
    )
    cliprange_value: float = field(
        default=0.2, metadata={"help": "Range around the rollout's value outside which the value loss is flat."}
    )
    dual_clip: float | None = field(
        default=None,
        metadata={"help": "Bound, above 1, on the ratio's weight where the advantage is negative; 3 in its paper."},
    )
    kl_stop: float | None = field(
        default=None,
        metadata={
            "help": "Skip the steps left on a rollout once the policy has moved this far from it, in nats a token."
        },
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    value_head_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the value's head, on the same schedule; one that begins at 0 wants more than trained "
            "weights. Default: learning_rate."
        },
    )
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of the entropy bonus; 0: none."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalised advantage estimation."})
    ptx_coef: float = field(
        default=0.0,
        metadata={"help": "Weight of the language modelling loss on `ptx_dataset` (PPO-ptx); 27.8 in its paper."},
    )
    ptx_length: int = field(default=128, metadata={"help": "Most tokens of a text of `ptx_dataset`."})

    # guards
    max_kl: float | None = field(
        default=None, metadata={"help": "Stop when the mean KL of a rollout's responses is above this, in nats."}
    )
    min_eos_share: float | None = field(
        default=None, metadata={"help": "Stop when fewer of a rollout's responses end with the stop token."}
    )

    def __post_init__(self) -> None:
        for name, low in {
            "num_mini_batches": 1,
            "num_ppo_epochs": 1,
            "response_length": 1,
            "prompt_length": 1,
            "local_rollout_forward_batch_size": 1,
            "kl_horizon": 1,
            "vllm_tensor_parallel_size": 1,
            "kl_coef": 0,
            "vf_coef": 0,
            "entropy_coef": 0,
            "ptx_coef": 0,
            "ptx_length": 2,
        }.items():
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise UserError(f"{name} must be at least {low}, not {getattr(self, name)}")
        positive = ("temperature", "cliprange", "cliprange_value", "reward_clip", "missing_eos_penalty", "kl_target")
        for name in (*positive, "kl_stop", "max_kl", "value_head_learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise UserError(f"dual_clip must be above 1, not {self.dual_clip}: 3 is usual")
        for name in ("gamma", "lam", *(["min_eos_share"] if self.min_eos_share is not None else [])):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.stop_token not in ("eos", None):
            raise UserError(
                f"stop_token must be 'eos' or None, not {self.stop_token!r}; for a token use stop_token_id"
            )
        if self.kl_estimator not in ("k1", "k3"):
            raise UserError(f"kl_estimator must be 'k1' or 'k3', not {self.kl_estimator!r}")
        if self.missing_eos_penalty is not None and self.stop_token is None and self.stop_token_id is None:
            raise UserError("missing_eos_penalty needs a stop token: set stop_token: eos or stop_token_id")
        if self.min_eos_share is not None and self.stop_token is None and self.stop_token_id is None:
            raise UserError("min_eos_share needs a stop token: set stop_token: eos or stop_token_id")
        if self.max_kl is not None and self.kl_coef == 0:
            raise UserError("max_kl needs a reference, which kl_coef 0 leaves out: set a small kl_coef, e.g. 1e-6")
        if self.kl_target is not None and self.kl_coef == 0:
            raise UserError("kl_target adapts kl_coef, which is 0: start from a kl_coef above 0, e.g. 0.05")
        if self.vllm_mode == "server" and self.use_vllm and self.vllm_server_base_url is None:
            raise UserError("vllm_mode server needs vllm_server_base_url, e.g. http://localhost:8000")
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            share = self.vllm_gpu_memory_utilization
            raise UserError(f"vllm_gpu_memory_utilization must lie above 0 and be at most 1, not {share}")
        if self.total_episodes is not None and self.max_steps > 0:
            raise UserError("total_episodes and max_steps both set the length of training: give one of them")
        if self.auto_find_batch_size:
            raise UserError("auto_find_batch_size would change the size of a rollout: turn it off")
        if self.kl_stop is not None and self.fp16:
            raise UserError("kl_stop skips optimizer steps, whose gradients fp16 would scale: take bf16")
        for name, why in WITHOUT_EFFECT.items():
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise UserError(f"{name} has no effect in PPO: {why}; leave it out")
        chooses = self.load_best_model_at_end or self.save_strategy == "best"
        if self.metric_for_best_model is None and (chooses or self.lr_scheduler_type == "reduce_lr_on_plateau"):
            self.metric_for_best_model = "reward"  # there is no loss on held-out prompts
        if self.logging_steps is None:
            self.logging_steps = self.steps_per_rollout
        super().__post_init__()
        for name in ("dispatch_batches", "split_batches"):
            if getattr(self.accelerator_config, name):
                raise UserError(f"accelerator_config: {name} is for tensors, and prompts are none: leave it out")

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps that one rollout serves."""
        return self.num_mini_batches * self.num_ppo_epochs
