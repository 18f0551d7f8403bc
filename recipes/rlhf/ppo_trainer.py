"""PPO for language models as a `transformers.Trainer`, to be read next to the papers.

Papers: Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593.
        Ouyang et al. 2022, Training language models to follow instructions with human feedback, arXiv 2203.02155.
        Huang et al. 2024, The N+ Implementation Details of RLHF with PPO, arXiv 2403.17031.

The Trainer asks for the micro-batches of one optimizer step at a time (`get_batch_samples`). Every `steps_per_rollout`
steps that question starts a rollout: sample a response to each prompt, score it, work out advantages. The steps that
follow take their mini-batches from it (`compute_loss`). Accumulation, clipping, schedules, callbacks, checkpoints,
DeepSpeed and FSDP stay the Trainer's own. The formulas are in `ppo_math`, the models are made in `ppo_roles`, a rollout's
responses come from `ppo_rollout`, pretraining texts from `ppo_pretraining`, saving and resuming is in `ppo_checkpoints`.

Three choices make a run repeatable. Each sample is drawn with random numbers of its own, made from (seed, rollout, its
number in the rollout), so that neither batching nor the number of processes changes it. Each process holds the whole
rollout once it is made (token ids and a few numbers per token), so that whitening and shuffling see all of it. And the
rollout in use is part of the checkpoint, so that a run killed between two optimizer steps goes on exactly.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftConfig, PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import identity

from recipes.core.errors import UserError
from recipes.core.weights import whole_weights
from recipes.rlhf import ppo_math
from recipes.rlhf.heap import give_back_before_backward, keep_freed_memory
from recipes.rlhf.ppo_checkpoints import PPOCheckpoints
from recipes.rlhf.ppo_config import PPOConfig
from recipes.rlhf.ppo_data import (
    RolloutSampler,
    check_rollout_size,
    select,
    tokenize_prompts,
)
from recipes.rlhf.ppo_guards import check_bounds, optimizer_bytes, preflight, weight_bytes
from recipes.rlhf.ppo_pretraining import PretrainingTexts
from recipes.rlhf.ppo_rewards import RewardFunc, Rewards
from recipes.rlhf.ppo_roles import cast_roles
from recipes.rlhf.ppo_rollout import SEQUENCE, ResponseSampler
from recipes.rlhf.trunk import without_adapter

logger = get_logger(__name__)

PER_TOKEN = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "ratio", "approx_kl", "drift")
STATS = (
    "loss",
    *PER_TOKEN,
    "ptx_loss",
)  # of an optimizer step; drift, the mean |ratio - 1|, is looked at and not logged
APPROX_KL, DRIFT = STATS.index("approx_kl"), STATS.index("drift")
PROMPTS, SAMPLING, SHUFFLING, EVALUATION, PRETRAINING = range(5)  # what a stream of random numbers is for


class PPOTrainer(PPOCheckpoints):
    """Proximal policy optimisation of a causal language model against rewards for its responses.

    Args:
        model: The policy: a causal language model, its path, or a `PeftModel`, whose base is then the reference.
        reward_funcs: One or a list of sequence classification models with one label, and of Python functions
            `f(prompts, completions, completion_ids, **columns) -> list[float]` (take `**kwargs` for what is not used).
            The path of an adapter with a score head, trained on the policy's base, is loaded onto that base.
        args: Options.
        train_dataset: Prompts in a column `prompt`: strings, or conversations as lists of messages. Other columns are
            passed on to the Python functions.
        eval_dataset: Prompts for `evaluate`, which samples a response to each.
        processing_class: The policy's tokenizer; by default the one saved with the model.
        reward_processing_classes: The tokenizer of each reward model, None where it is the policy's. With a tokenizer
            of its own, a model scores the text of prompt and response, through its own chat template.
        value_model: "separate" (the default), a copy of the first reward model that shares the policy's vocabulary,
            else the policy's trunk under a new head that starts at 0; "shared", such a head on the trunk of the policy
            itself; "adapter", such a head on the policy's frozen base under an adapter of its own (needs `peft_config`; it
            starts as a copy of the first reward adapter); or a sequence classification model with one label, or its path.
        ref_model: Reference of the KL penalty; by default the policy as it is before training. For a PEFT policy that
            is the policy with its adapters off, and nothing is copied.
        peft_config: Trains an adapter on the policy in place of its weights.
        ptx_dataset: Texts in a column `text`, whose language modelling loss times `ptx_coef` joins the policy's (PPO-ptx,
            Ouyang et al. 2022, eq. 2); as `{"train": …, "test": …}` the test texts are measured in every evaluation.
        callbacks, optimizers: As in `transformers.Trainer`.

    Raises:
        UserError: An option, a model or the data does not fit, or the loss or its gradient is not finite, after which
            nothing is saved; the message says what to change.
    """

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole mini-batch

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        reward_funcs: RewardFunc | list[RewardFunc],
        args: PPOConfig,
        train_dataset: Dataset,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None = None,
        value_model: str | PreTrainedModel = "separate",
        ref_model: PreTrainedModel | None = None,
        peft_config: PeftConfig | None = None,
        ptx_dataset: Dataset | dict[str, Dataset] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
    ):
        if args.n_gpu > 1:
            raise UserError(f"one process sees {args.n_gpu} GPUs: start one process for each with accelerate launch")
        if args.value_head_learning_rate is not None and optimizers[0] is not None:
            raise UserError("value_head_learning_rate: the optimizer that was passed has its own rates; leave one out")
        if isinstance(model, str):
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        tokenizer = processing_class or AutoTokenizer.from_pretrained(model.config._name_or_path)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        if tokenizer.pad_token is None:
            raise UserError("the tokenizer has neither a padding nor an EOS token: set tokenizer.pad_token")
        stop_token_id = args.stop_token_id
        if stop_token_id is None and args.stop_token == "eos":
            stop_token_id = tokenizer.eos_token_id
            if stop_token_id is None:
                raise UserError("the tokenizer has no EOS token: set stop_token_id, or stop_token to None")

        # prompts
        self.args, self.processing_class = args, tokenizer
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
        train_dataset = self._tokenize(train_dataset, "train_dataset")
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._tokenize(data, f"eval_dataset {name}") for name, data in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._tokenize(eval_dataset, "eval_dataset")
        self.texts = PretrainingTexts(ptx_dataset, tokenizer, args)
        self.rollout_size = check_rollout_size(args, len(train_dataset))
        self.local_rollout_size = self.rollout_size // args.world_size
        if args.total_episodes is not None:
            args.max_steps = math.ceil(args.total_episodes / self.rollout_size) * args.steps_per_rollout

        # models
        self.rewards = Rewards(reward_funcs, reward_processing_classes, args, model, tokenizer, stop_token_id)
        self.rewards.check_context(max(map(len, train_dataset["prompt_ids"])) + args.response_length)
        roles = cast_roles(model, value_model, ref_model, peft_config, self.rewards, args)

        super().__init__(
            model=roles.trained,
            args=args,
            data_collator=identity,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.ref_model = self._freeze(roles.reference) if roles.reference is not None else None
        self.rewards.freeze(self._freeze)
        policy = self.model.policy
        self.sampler = ResponseSampler(args, tokenizer, self.accelerator, self.rewards, policy, self.ref_model)
        if args.kl_stop is not None and self.is_deepspeed_enabled:
            raise UserError("kl_stop skips optimizer steps, which DeepSpeed cannot: leave it out")
        self.kl_coef, self.stopped = args.kl_coef, False
        self.score_moments = torch.zeros(3, dtype=torch.float64, device=args.device)
        self._rollout: dict[str, Tensor] = {}
        self._rollout_metrics: dict[str, float] = {}
        self._rollout_start = time.monotonic()
        self._steps_taken = 0
        self._rollout_stats, self._step_stats = torch.zeros(2, len(STATS), device=args.device)
        self._metrics: dict[str, list[float]] = defaultdict(list)

    @property
    def reward_funcs(self) -> list:
        return self.rewards.funcs

    def _freeze(self, model: nn.Module) -> nn.Module:
        model.requires_grad_(False).eval()
        if self.args.offload_frozen:
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                raise UserError("offload_frozen is for whole models, which DeepSpeed and FSDP split up: leave it out")
            return model.cpu()
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(model, self.accelerator)
        return model.to(self.args.device)

    # ---- prompts ----

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt", "prompt_ids"]  # what `remove_unused_columns` leaves

    def _tokenize(self, dataset: Dataset, name: str) -> Dataset:
        return tokenize_prompts(dataset, name, self.processing_class, self.args, self.context)

    def _generator(self, *key: int) -> torch.Generator:
        """Random numbers that are a function of the seed and the key alone."""
        state = np.random.SeedSequence((self.args.seed, *key)).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(state))

    def _epoch_order(self) -> Tensor:
        epoch_steps = len(self.train_dataset) // self.rollout_size * self.args.steps_per_rollout
        generator = self._generator(PROMPTS, self.state.global_step // epoch_steps)
        return torch.randperm(len(self.train_dataset), generator=generator)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        repeats = self.args.steps_per_rollout * self.args.gradient_accumulation_steps
        return RolloutSampler(len(self.train_dataset), self.rollout_size, repeats, self._epoch_order)

    def get_train_dataloader(self) -> DataLoader:
        return self._get_dataloader(
            self.train_dataset, "Training", self.local_rollout_size, self._get_train_sampler, is_training=True
        )

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        if isinstance(eval_dataset, Dataset) and "prompt_ids" not in eval_dataset.column_names:
            eval_dataset = self._tokenize(eval_dataset, "eval_dataset")
        return super().get_eval_dataloader(eval_dataset)

    # ---- rollout ----

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device) -> tuple[list[dict], Tensor]:
        """The micro-batches of the next optimizer step, and the response tokens of its mini-batch on all processes."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        number, step = divmod(self.state.global_step, self.args.steps_per_rollout)
        if step == 0:
            self._make_rollout(batches[0], number)
        epoch, index = divmod(step, self.args.num_mini_batches)
        order = torch.randperm(self.rollout_size, generator=self._generator(SHUFFLING, number, epoch))
        mini_batch = order.to(self.args.device).view(self.args.num_mini_batches, self.args.world_size, -1)[index]
        micro_batches = mini_batch[self.args.process_index].split(self.args.per_device_train_batch_size)
        num_tokens = self._rollout["response_mask"][mini_batch].sum()
        inputs = [select(self._rollout, rows) for rows in micro_batches]
        if self.texts.mixed:
            self._add_pretraining(inputs)
        return inputs, num_tokens

    def _add_pretraining(self, inputs: list[dict[str, Tensor]]) -> None:
        """To each micro-batch as many texts of the pretraining data as it has responses, drawn for this very step."""
        args, generator = self.args, self._generator(PRETRAINING, self.state.global_step)
        shape = (args.world_size, self.local_rollout_size // args.num_mini_batches)
        numbers, tokens = self.texts.draw(shape, args.process_index, generator)
        for micro_batch, part in zip(inputs, numbers.split(args.per_device_train_batch_size), strict=True):
            micro_batch["ptx"] = self.texts.batch([self.texts.train[number] for number in part.tolist()])
            micro_batch["ptx_tokens"] = tokens

    def _prepare_inputs(self, inputs: dict) -> dict:
        return inputs  # they are on the device, and must not be cast to DeepSpeed's half precision

    def _make_rollout(self, examples: list[dict], number: int) -> None:
        """Samples and scores one response per prompt, and works out all that the optimizer steps need."""
        args, self._rollout_start, self.stopped = self.args, time.monotonic(), False
        self.sampler.seconds.clear()
        # for reward functions that draw random numbers: the same ones after a resume, and after an evaluation
        set_seed(self._generator(SAMPLING, number, args.process_index).initial_seed() % 2**32)
        first = args.process_index * self.local_rollout_size
        keys = [(SAMPLING, number, row) for row in range(first, first + len(examples))]
        self.model_wrapped.eval()
        self.sampler.take_weights()
        batch = self._sample(self.model_wrapped, examples, keys)
        batch = {name: self._gather(name, tensor) for name, tensor in batch.items()}

        mask, values = batch["response_mask"], batch["values"]
        if args.normalize_rewards:
            self.score_moments = ppo_math.joined_moments(self.score_moments, self.rewards.weighted(batch))
        scores = self.rewards.total(batch, self.score_moments if args.normalize_rewards else None)
        kl = torch.zeros_like(values)
        if "ref_logprobs" in batch:
            kl = ppo_math.kl_penalty(batch["logprobs"], batch["ref_logprobs"], args.kl_estimator)
        rewards = ppo_math.token_rewards(scores, kl, mask, self.kl_coef)
        if args.whiten_rewards:
            rewards = ppo_math.masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = ppo_math.gae(rewards, values, mask, args.gamma, args.lam)
        self._rollout = {name: batch[name] for name in (*SEQUENCE, "logprobs", "values")}
        self._rollout |= {"advantages": ppo_math.masked_whiten(advantages, mask), "returns": returns}

        self._rollout_stats.zero_()
        self._steps_taken = 0
        columns = self.sampler.metrics(batch)
        self._rollout_metrics = {name: column.mean().item() for name, column in columns.items()}
        self._rollout_metrics |= {
            "reward_std": columns["reward"].std().item(),
            "entropy": ppo_math.masked_mean(batch["entropy"], mask).item(),
            "explained_variance": ppo_math.explained_variance(values, returns, mask).item(),
            "episodes": (number + 1) * self.rollout_size,
        }
        if number == 0:
            self._print_preflight(batch)
        check_bounds(self._rollout_metrics, args, self.state.global_step)
        if args.kl_target is not None:
            self._rollout_metrics["kl_coef"] = self.kl_coef
            self.kl_coef = ppo_math.adapted_kl_coef(
                self.kl_coef, self._rollout_metrics["kl"], args.kl_target, self.rollout_size, args.kl_horizon
            )

    def _print_preflight(self, batch: dict[str, Tensor]) -> None:
        if not self.accelerator.is_main_process:
            return
        both = self.accelerator.unwrap_model(self.model)
        memory = {
            "policy": weight_bytes(both.policy),
            "value": weight_bytes(both.value),
            "reference": weight_bytes(self.ref_model),
            "rewards": weight_bytes(*self.rewards.funcs),
            "optimizer": optimizer_bytes(both),
        }
        policy = without_adapter(both.policy).config._name_or_path
        sources, cut = self.rewards.sources, self.args.prompt_length
        print(preflight(batch, self._rollout_metrics, policy, sources, memory, cut))

    def _gather(self, name: str, tensor: Tensor) -> Tensor:
        """The rows of all processes in the order of the rollout, padded to one length."""
        if name != "scores":
            tensor = self.accelerator.pad_across_processes(tensor, dim=1, pad_first=name.startswith("prompt_"))
        return self.accelerator.gather(tensor)

    def _sample(
        self, model: nn.Module, examples: list[dict], keys: list[tuple[int, ...]], with_value: bool = True
    ) -> dict[str, Tensor]:
        """`ResponseSampler.sample`, each response drawn with the random numbers of its key."""
        length = self.args.response_length
        uniforms = torch.stack([torch.rand(length, generator=self._generator(*key)) for key in keys])
        return self.sampler.sample(model, examples, uniforms, self.state.max_steps > 0, with_value)

    # ---- optimisation ----

    def train(self, *args, **kwargs) -> TrainOutput:
        # PEFT casts what enters an adapter to its float32, and autocast casts that back, for every linear layer
        keep_freed_memory()
        with disable_input_dtype_casting(self.model, active=self.args.bf16):
            return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers' own, in which the value's head has a group for `value_head_learning_rate`."""
        rate = self.args.value_head_learning_rate
        if rate is None or self.optimizer is not None:  # it may have been made by an earlier call
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        head = [*(self.model if model is None else model).value.head.parameters()]
        for group in optimizer.param_groups:
            group["params"] = [weight for weight in group["params"] if all(weight is not part for part in head)]
        optimizer.add_param_group({"params": head, "lr": rate, "weight_decay": self.args.weight_decay})
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        """Policy loss + vf_coef * value loss - entropy_coef * entropy, summed over the tokens of this micro-batch.

        It is divided by the tokens of the mini-batch on all processes, and multiplied by the number of processes, over
        which DDP, DeepSpeed and FSDP average: however a mini-batch is split, its gradient is the same.
        """
        args, mask = self.args, inputs["response_mask"]
        if self.stopped:  # a loss that reaches no parameter: their gradients stay None, and Adam leaves them alone
            if self.accelerator.sync_gradients:
                self._end_step(skipped=True)
            return torch.zeros((), device=args.device, requires_grad=True)
        sequence = {name: inputs[name] for name in SEQUENCE}
        ptx = inputs.get("ptx")
        outputs = model(**sequence, temperature=args.temperature, with_entropy=args.entropy_coef > 0, ptx=ptx)
        give_back_before_backward(self.accelerator.unwrap_model(self.model).policy.get_output_embeddings())
        logprobs, values, old = outputs["logprobs"] * mask, outputs["values"] * mask, inputs
        policy, ratio, clipped = ppo_math.policy_loss(
            logprobs, old["logprobs"], old["advantages"], args.cliprange, args.dual_clip
        )
        value, value_clipped = ppo_math.value_loss(values, old["values"], old["returns"], args.cliprange_value)
        loss = policy + args.vf_coef * value
        if args.entropy_coef > 0:
            loss = loss - args.entropy_coef * outputs["entropy"]
        approx_kl = 0.5 * (logprobs - old["logprobs"]) ** 2
        columns = (loss, policy, value, clipped, value_clipped, ratio, approx_kl, (ratio - 1).abs())
        total, *per_token = [(column * mask).sum() / num_items_in_batch for column in columns]
        ptx_loss = -outputs["ptx_logprobs"].sum() / inputs["ptx_tokens"] if ptx else torch.zeros_like(total)
        total = total + args.ptx_coef * ptx_loss
        stats = torch.stack([total, *per_token, ptx_loss])

        self._step_stats += stats.detach()
        if self.accelerator.sync_gradients:  # the last micro-batch of the optimizer step
            self._end_step()
        return total * self.accelerator.num_processes

    def _end_step(self, skipped: bool = False) -> None:
        step = self.state.global_step % self.args.steps_per_rollout
        if not skipped:
            self._take_step(step)
        if step == self.args.steps_per_rollout - 1:
            self._end_rollout()

    def _take_step(self, step: int) -> None:
        stats = self.accelerator.reduce(self._step_stats.clone(), reduction="sum")
        self._step_stats.zero_()
        self._require_finite("loss", stats[0])
        self._metrics["loss"].append(stats[0].item())
        self._steps_taken += 1
        dtype = self.accelerator.unwrap_model(self.model).policy.dtype
        exact = self.accelerator.mixed_precision == "no" and dtype == torch.float32
        if step == 0 and stats[DRIFT] > (1e-3 if exact else 2e-2):
            logger.warning(
                f"Before its first update the policy is not the one that made the rollout: mean |ratio - 1| is "
                f"{stats[DRIFT]:.1e}. Something in it is random, or depends on the batch it runs in."
            )
        self._rollout_stats += stats
        self.stopped = self.args.kl_stop is not None and stats[APPROX_KL].item() > self.args.kl_stop

    def _end_rollout(self) -> None:
        means = (self._rollout_stats / self._steps_taken).tolist()
        metrics = self._rollout_metrics | dict(zip(STATS[1:DRIFT], means[1:DRIFT], strict=True))
        if self.texts.mixed:
            metrics["ptx_loss"] = means[-1]
        if self.args.kl_stop is not None:
            metrics["steps_taken"] = self._steps_taken
        seconds = time.monotonic() - self._rollout_start
        metrics["episodes_per_second"] = self.rollout_size / seconds
        metrics["tokens_per_second"] = self._rollout["response_mask"].sum().item() / seconds
        metrics |= {f"seconds/{name}": spent for name, spent in self.sampler.seconds.items()}
        metrics["seconds/optimisation"] = seconds - sum(self.sampler.seconds.values())
        for name, number in metrics.items():
            self._metrics[name].append(number)

    def _get_grad_norm(self, model: nn.Module, grad_norm=None):
        if grad_norm is None and not (self.is_deepspeed_enabled or self.is_fsdp_enabled or self.args.fp16):
            # the Trainer takes the norm by clipping to infinity, which multiplies every gradient by 1
            grad_norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is not None and not self.args.fp16:  # fp16 meets overflows and skips their steps by itself
            self._require_finite("gradient", grad_norm)
        return grad_norm

    def _require_finite(self, what: str, number: Tensor | float) -> None:
        if not math.isfinite(number):
            raise UserError(
                f"the {what} is not finite at optimizer step {self.state.global_step + 1}, and nothing is saved after "
                "it: lower learning_rate or look at the rewards, and resume from the last checkpoint"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:  # which is replaced by the same mean, kept through a resume
            logs |= {name: sum(numbers) / len(numbers) for name, numbers in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Means over one response to each prompt; prompt r is answered with the same random numbers every time."""
        untrained = self.state.max_steps == 0  # so nothing has prepared the model for this process, or sharded it
        if untrained:
            self.model.to(self.args.device)
        self.model_wrapped.eval()
        self.sampler.take_weights()
        self.callback_handler.eval_dataloader = dataloader
        tables, first = [], self.args.process_index * self.args.eval_batch_size
        with whole_weights(self.model) if untrained else nullcontext():
            for examples in dataloader:
                keys = [(EVALUATION, row) for row in range(first, first + len(examples))]
                columns = self.sampler.metrics(self._sample(self.model_wrapped, examples, keys, with_value=False))
                tables.append(self.accelerator.gather_for_metrics(torch.stack(list(columns.values()), dim=1)))
                first += self.args.eval_batch_size * self.args.world_size
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            if self.texts.test:
                lm_loss = self.texts.held_out_loss(self._text_logprobs, self.args.eval_batch_size)
        table = torch.cat(tables)
        metrics = {f"{metric_key_prefix}_{name}": mean for name, mean in zip(columns, table.mean(dim=0).tolist())}
        if self.texts.test:
            metrics[f"{metric_key_prefix}_lm_loss"] = lm_loss
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(table))

    def _text_logprobs(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            return self.model_wrapped(**batch, temperature=1.0, with_value=False)["logprobs"]
