"""AdaLoRA's budget schedule in a Trainer, which by itself never calls it: without this, all ranks stay where they began.

Paper: Zhang et al. 2023, Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv 2303.10512, algorithm 1.
"""

import types
from pathlib import Path

import torch
from peft import AdaLoraModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from recipes.core.errors import UserError

STATE = "adalora.safetensors"
AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # PEFT's smoothed sensitivity and uncertainty


class AllocateRanks(TrainerCallback):
    """Calls `update_and_allocate` after each optimizer step, and keeps its averages in every checkpoint.

    What PEFT leaves open, and what is done about it here:
    - A checkpoint in the middle of the schedule would hold tensors of another shape than the model that resumes from
      it. The masked ranks are zeros, so checkpoints hold them; the saved adapter at the end does not.
    - The averages are in no checkpoint: a resumed run would start them anew.
    - The orthogonality penalty is part of the loss in evaluation too: it is left out there.
    - A model without a task type leaves the penalty out in training: refused.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.tuner = tuner(model)
        self.config = self.tuner.peft_config[self.tuner.trainable_adapter_name]
        self.pattern = None
        self.tuner.forward = types.MethodType(forward_without_penalty_in_evaluation, self.tuner)
        if state.global_step:
            self._restore(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / STATE)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.config.rank_pattern = self.pattern
        self.tuner.update_and_allocate(state.global_step + 1)
        self.pattern, self.config.rank_pattern = self.config.rank_pattern, None

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            allocator = self.tuner.rankallocator
            tensors = {
                f"{average}:{name}": tensor.contiguous()
                for average in AVERAGES
                for name, tensor in getattr(allocator, average).items()
            }
            tensors |= {f"pattern:{name}": torch.tensor(kept) for name, kept in (self.pattern or {}).items()}
            tensors["step"] = torch.tensor(state.global_step)
            save_file(tensors, Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / STATE)

    def _restore(self, file: Path) -> None:
        allocator, device = self.tuner.rankallocator, next(self.tuner.parameters()).device
        pattern = {}
        for key, tensor in load_file(file, device=str(device)).items():
            kind, _, name = key.partition(":")
            if kind == "pattern":
                pattern[name] = tensor.tolist()
            elif name:
                getattr(allocator, kind)[name] = tensor
                allocator.ipt[name] = torch.zeros_like(tensor)
        self.pattern = pattern or None

    def on_train_end(self, args, state, control, **kwargs):
        if self.pattern is not None:
            # what the weights say, not the schedule's last word: they may be those of an earlier, better checkpoint
            self.config.rank_pattern = {
                name: (parameter.detach() != 0).view(-1).tolist()
                for name, parameter in self.tuner.model.named_parameters()
                if name in self.pattern
            }


def tuner(model: PeftModel) -> AdaLoraModel:
    """The AdaLoRA tuner of a PEFT model.

    Raises:
        UserError: it has another method, or no task type.
    """
    if type(model) is PeftModel:
        raise UserError("adalora: PEFT adds its orthogonality penalty to the loss of a model with a task type only")
    found = getattr(model, "base_model", None)
    if not isinstance(found, AdaLoraModel):
        raise UserError("adalora: the model has no AdaLoRA adapter whose ranks could be allocated")
    return found


def forward_without_penalty_in_evaluation(self: AdaLoraModel, *args, **kwargs):
    return AdaLoraModel.forward(self, *args, **kwargs) if self.training else self.model(*args, **kwargs)


def ranks(model: PeftModel) -> dict[str, int]:
    """How many ranks each adapted matrix has left, by its module's name."""
    found = tuner(model)
    ending = f".lora_E.{found.trainable_adapter_name}"
    return {
        name.removesuffix(ending): int((parameter != 0).sum())
        for name, parameter in found.model.named_parameters()
        if name.endswith(ending)
    }
