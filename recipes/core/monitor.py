"""What is watched while a run trains: the log on disk, and a loss that stays finite."""

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from recipes.core.errors import UserError
from recipes.core.files import write_text
from recipes.core.peft_block import adapted, adapter_parameters

if TYPE_CHECKING:
    from recipes.core.run import Run

TRL_TOKENS = "_total_train_tokens"  # TRL's count of the tokens seen, which starts at 0 again on a resume


class RunLog(TrainerCallback, ExportableState):
    """`log.jsonl`: one line a log entry. On a resume the lines after the checkpoint give way to the new ones."""

    def __init__(self, run: "Run", trainer: Trainer):
        self.run, self.trainer = run, trainer
        self.path = run.output_dir / "log.jsonl"

    def state(self) -> dict[str, Any]:
        seconds = self.run.earlier_seconds + time.monotonic() - self.run.began
        return {"args": {}, "attributes": {"seconds": seconds, "tokens": getattr(self.trainer, TRL_TOKENS, 0)}}

    def on_step_end(self, args, state, control, **kwargs):
        # The losses summed since the last line would not survive a resume.
        control.should_log |= control.should_save

    on_epoch_end = on_step_end

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in state.log_history))

    def on_log(self, args, state, control, **kwargs):
        entry = state.log_history[-1]
        if state.is_world_process_zero and "train_runtime" not in entry:  # that one sums up this process alone
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")


def stop_on_non_finite_loss(trainer: Trainer, output_dir: Path) -> None:
    """Stop training at the first loss that is NaN or infinite, before it reaches the weights of a checkpoint.

    Trainer itself only hides such a loss from its log (`logging_nan_inf_filter`) and goes on.
    """
    training_step = trainer.training_step

    def checked_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = training_step(*args, **kwargs)
        broken = ~loss.detach().isfinite()
        if trainer.accelerator.num_processes > 1:  # all of them stop, and the first one speaks
            broken = trainer.accelerator.reduce(broken.float(), "sum") > 0
        if broken:
            print(file=sys.stderr)  # ends the line of the progress bar
            number = "not finite in another process" if math.isfinite(loss.item()) else loss.item()
            raise UserError(
                f"the loss is {number} at step {trainer.state.global_step + 1}; the last good checkpoint in "
                f"{output_dir} is kept; lower learning_rate or max_grad_norm, or train in a wider dtype"
            )
        return loss

    trainer.training_step = checked_step


def stop_without_gradient(trainer: Trainer) -> None:
    """Stop a run whose adapter gets no gradient in its first step: it would end as it began, with a loss that looks well.

    A frozen layer before it, a cache that is turned off or a prompt that a model does not read can cut an adapter off.
    Where answers are sampled a gradient of zeros is right as long as all of them get the same reward.
    """
    model = adapted(trainer)
    if model is not None and not trainer.is_deepspeed_enabled and not trainer.is_fsdp_enabled:
        trainer.add_callback(_FirstGradient(model, may_be_zero=hasattr(trainer, "reward_funcs")))


class _FirstGradient(TrainerCallback):
    def __init__(self, model: PeftModel, may_be_zero: bool):
        self.model, self.may_be_zero, self.looked = model, may_be_zero, False

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.looked:
            return
        self.looked = True
        trained = adapter_parameters(self.model)
        if trained and not any(p.grad is not None and (self.may_be_zero or p.grad.any()) for p in trained.values()):
            method = self.model.active_peft_config.peft_type.value.lower()
            raise UserError(
                f"peft: no gradient reaches the {method} adapter in the first step; it would not be trained"
            )
