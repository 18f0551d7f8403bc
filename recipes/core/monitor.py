"""What is watched while a run trains: the log on disk, and a loss that stays finite."""

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from recipes.core.errors import UserError
from recipes.core.files import write_text

if TYPE_CHECKING:
    from recipes.core.run import Run


class RunLog(TrainerCallback, ExportableState):
    """`log.jsonl`: one line a log entry. On a resume the lines after the checkpoint give way to the new ones."""

    def __init__(self, run: "Run"):
        self.run = run
        self.path = run.output_dir / "log.jsonl"

    def state(self) -> dict[str, Any]:
        seconds = self.run.earlier_seconds + time.monotonic() - self.run.began
        return {"args": {}, "attributes": {"seconds": seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in state.log_history))

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as log:
                log.write(json.dumps(state.log_history[-1]) + "\n")


def stop_on_non_finite_loss(trainer: Trainer, output_dir: Path) -> None:
    """Stop training at the first loss that is NaN or infinite, before it reaches the weights of a checkpoint.

    Trainer itself only hides such a loss from its log (`logging_nan_inf_filter`) and goes on.
    """
    training_step = trainer.training_step

    def checked_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the loss is {loss.item()} at step {trainer.state.global_step + 1}; the last good checkpoint in "
                f"{output_dir} is kept; lower learning_rate or max_grad_norm, or train in a wider dtype"
            )
        return loss

    trainer.training_step = checked_step
