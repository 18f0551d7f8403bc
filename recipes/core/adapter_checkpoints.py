"""Checkpoints from which an adapter resumes as if undisturbed.

PEFT saves what a finished adapter needs and no more: of a reparameterised prompt only the prompt, of AdaLoRA's matrices
only the ranks that are left. Training cannot go on from that: P-tuning would even take the prompt for its encoder's
input, without an error. Such checkpoints carry every trained parameter beside PEFT's files.
"""

import json
from pathlib import Path

from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

FILE = "trained.safetensors"
IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what AdaLoRA's allocator remembers of each parameter


def keep_whole_adapter(trainer: Trainer) -> None:
    """Have a trainer save and load all that is trained, where PEFT's own files do not hold it."""
    model = trainer.model
    if not isinstance(model, PeftModel) or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    config = model.active_peft_config
    if not (config.is_prompt_learning or config.peft_type == "ADALORA"):
        return
    trainer.add_callback(SaveTrained(model))
    load_from_checkpoint = trainer._load_from_checkpoint

    def load_trained(checkpoint: str, *args, **kwargs) -> None:
        file = Path(checkpoint) / FILE
        if file.exists():
            fill(model, file)
        else:
            load_from_checkpoint(checkpoint, *args, **kwargs)

    trainer._load_from_checkpoint = load_trained


class SaveTrained(TrainerCallback):
    """Writes FILE into each checkpoint; added before the callback that seals it."""

    def __init__(self, model: PeftModel):
        self.model = model

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            save(self.model, Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / FILE)


def save(model: PeftModel, file: Path) -> None:
    """Write every trained parameter, and what AdaLoRA's allocator holds."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    pattern = None
    if allocator := getattr(model.base_model, "rankallocator", None):
        pattern = model.active_peft_config.rank_pattern
        for kind in IMPORTANCES:
            tensors |= {f"{kind}:{name}": value.cpu().contiguous() for name, value in getattr(allocator, kind).items()}
    save_file(tensors, file, {"rank_pattern": json.dumps(pattern)})


def fill(model: PeftModel, file: Path) -> None:
    """Put back what `save` wrote.

    Raises:
        KeyError: the file is of another adapter.
    """
    tensors = load_file(file)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(tensors.pop(name))
    if allocator := getattr(model.base_model, "rankallocator", None):
        for kind in IMPORTANCES:
            found = {key.partition(":")[2]: value for key, value in tensors.items() if key.startswith(f"{kind}:")}
            setattr(allocator, kind, {name: value.to(model.device) for name, value in found.items()})
        with safe_open(file, "pt") as opened:
            model.active_peft_config.rank_pattern = json.loads(opened.metadata()["rank_pattern"])
