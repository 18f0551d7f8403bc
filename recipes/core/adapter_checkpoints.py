"""Checkpoints from which a prompt or a stack of adapters resumes as if undisturbed.

PEFT saves what a finished prompt needs and no more: the prompt, without the network that makes it. Training cannot go on
from that: P-tuning would take the prompt for its encoder's input, without an error, and prefix-tuning's shapes differ.
Of several adapters Trainer goes on with the first, whichever was trained. Such checkpoints carry every trained parameter
beside PEFT's files.
"""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recipes.core.peft_block import adapted

FILE = "trained.safetensors"


def keep_all_that_is_trained(trainer: Trainer) -> None:
    """Have a trainer save and load all that is trained, where PEFT's own files do not hold it."""
    model = adapted(trainer)
    if model is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    stacked = len(model.peft_config) > 1 and model.active_peft_config.peft_type == "BOTTLENECK"
    if not (model.active_peft_config.is_prompt_learning or stacked):
        return
    trainer.add_callback(SaveTrained(trainer.model))
    load_from_checkpoint = trainer._load_from_checkpoint

    def load_trained(checkpoint: str, *args, **kwargs) -> None:
        file = Path(checkpoint) / FILE
        if file.exists():
            tensors = load_file(file)
            for name, parameter in trainer.model.named_parameters():
                if parameter.requires_grad:
                    parameter.data.copy_(tensors[name])
        else:
            load_from_checkpoint(checkpoint, *args, **kwargs)

    trainer._load_from_checkpoint = load_trained
    trainer._load_best_model = lambda: load_trained(trainer.state.best_model_checkpoint)


class SaveTrained(TrainerCallback):
    """Writes FILE into each checkpoint; added before the callback that seals it."""

    def __init__(self, model: nn.Module):
        self.model = model

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            trained = {
                name: p.detach().cpu().contiguous() for name, p in self.model.named_parameters() if p.requires_grad
            }
            save_file(trained, Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / FILE)
