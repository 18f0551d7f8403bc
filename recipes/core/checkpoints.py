"""Checkpoints that can be trusted: a list of files and sizes, written last, says that one is whole."""

import os
import shutil
import sys
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recipes.core.files import read_json, write_json

MANIFEST, LAYOUT = "complete.json", "layout.json"


class SealCheckpoints(TrainerCallback):
    """Writes the manifest once every process has saved its part."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            write_json(checkpoint / LAYOUT, layout_of(self.trainer))
            seal(checkpoint)
        self.trainer.accelerator.wait_for_everyone()


def stop_at_max_steps(trainer: Trainer) -> None:
    """Let a run that resumes from its last step take no further one; Trainer would, in the middle of an epoch."""
    run_epoch = trainer._run_epoch

    def run_epoch_unless_done(*args, **kwargs):
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
        else:
            run_epoch(*args, **kwargs)

    trainer._run_epoch = run_epoch_unless_done


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.name != MANIFEST)
    return {str(file.relative_to(checkpoint)): file.stat().st_size for file in files}


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole by listing its files with their sizes in bytes."""
    write_json(checkpoint / MANIFEST, _sizes(checkpoint))


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of the manifest is there with its size."""
    manifest = read_json(checkpoint / MANIFEST)
    return bool(manifest) and manifest.items() <= _sizes(checkpoint).items()


def layout_of(trainer: Trainer) -> dict[str, str | int]:
    """How this run's weights and optimizer states lie over the processes, which is how a checkpoint has them."""
    strategy = "data parallel"
    if trainer.is_deepspeed_enabled:
        strategy = f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    elif trainer.is_fsdp_enabled:
        strategy = "FSDP"
    return {"strategy": strategy, "processes": trainer.accelerator.num_processes}


def last_good_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint, or None; names on stderr the half-written ones that it passes over."""
    steps = {
        int(folder.name.rpartition("-")[2]): folder
        for folder in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.name.rpartition("-")[2].isdigit()
    }
    for _, folder in sorted(steps.items(), reverse=True):
        if is_whole(folder):
            return folder
        if os.environ.get("RANK", "0") == "0":
            print(f"note: {folder} is half-written; using the one before", file=sys.stderr)
    return None


def discard_half_written(output_dir: Path) -> None:
    """Remove checkpoints that were never sealed, so that Trainer's rotation cannot count them."""
    for folder in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not is_whole(folder):
            shutil.rmtree(folder)
