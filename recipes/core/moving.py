"""Checkpoints that move from one strategy to another.

The form in between is that of data parallel training: `model.safetensors` with whole float32 weights, and `optimizer.pt`
with AdamW's moments in the order of the Trainer's optimizer. What ZeRO saved in parts is put together by DeepSpeed's own
converter to universal checkpoints; a whole checkpoint is handed to ZeRO parameter by parameter.
"""

import argparse
import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer

from recipes.core.checkpoints import LAYOUT, MANIFEST, layout_of, seal
from recipes.core.errors import UserError
from recipes.core.files import read_json, write_json

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"
MOMENTS = ("exp_avg", "exp_avg_sq")


def move(checkpoint: Path, trainer: Trainer, is_main_process: bool) -> None:
    """Make a checkpoint of another layout one that this run can resume from; every process calls it.

    Raises:
        UserError: one of the two strategies is not among those that checkpoints can move between, or the checkpoint
            is not that of one whole model (an adapter's, or PPO's of policy and value), or its optimizer is not AdamW.
    """
    held, wanted = read_json(checkpoint / LAYOUT), layout_of(trainer)
    trainer.accelerator.wait_for_everyone()  # all have read it before one changes it
    if held is None or held == wanted or held["strategy"] == wanted["strategy"] in ("data parallel", "FSDP"):
        return
    adam = str(trainer.args.optim.value).startswith("adamw_torch")  # whose moments are what is moved
    whole_model = (checkpoint / WEIGHTS).exists() and not hasattr(trainer.model, "policy")
    if not whole_model or not adam or "FSDP" in (held["strategy"], wanted["strategy"]):
        raise UserError(
            f"{checkpoint} was saved under {held['strategy']} with {held['processes']} processes and this run is under "
            f"{wanted['strategy']} with {wanted['processes']}: launch it as before, or start anew with --overwrite always"
        )
    if held["strategy"].startswith("ZeRO") and is_main_process:
        make_whole(checkpoint, trainer)
        print(f"{checkpoint}: made whole from {held['strategy']} with {held['processes']} processes")
    trainer.accelerator.wait_for_everyone()
    if wanted["strategy"].startswith("ZeRO"):
        hand_over(checkpoint, trainer)


def optimizer_order(trainer: Trainer) -> list[str]:
    """Names of the trained parameters in the order of the Trainer's optimizer: first those with weight decay."""
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    return [name for name in names if name in decayed] + [name for name in names if name not in decayed]


def make_whole(checkpoint: Path, trainer: Trainer) -> None:
    """Replace a ZeRO checkpoint by the one that data parallel training would have saved at this step."""
    from deepspeed.checkpoint import ds_to_universal

    new, old = (checkpoint.with_name(f".{kind}-{checkpoint.name}") for kind in ("whole", "parts"))
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(
        checkpoint, new, ignore=shutil.ignore_patterns("global_step*", "latest", "zero_to_fp32.py", MANIFEST)
    )
    parts = checkpoint / (checkpoint / "latest").read_text().strip()
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, prefix=".universal-") as folder:
        options = argparse.Namespace(
            input_folder=str(parts),
            output_folder=folder,
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(options)

        def read(name: str, state: str) -> Tensor:
            saved = torch.load(Path(folder, "zero", name, f"{state}.pt"), weights_only=False)
            return (saved["param"] if isinstance(saved, dict) else saved).view(shapes[name])  # ZeRO-3's are bare

        weights = load_file(checkpoint / WEIGHTS)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        names = optimizer_order(trainer)
        step = torch.tensor(float((read_json(checkpoint / "trainer_state.json") or {})["global_step"]))
        states = {index: {"step": step.clone()} for index in range(len(names))}
        for index, name in enumerate(names):
            weights[name] = read(name, "fp32")
            states[index] |= {moment: read(name, moment) for moment in MOMENTS}
    save_file(weights, new / WEIGHTS, metadata={"format": "pt"})
    trainer.create_optimizer()
    plain = trainer.optimizer.state_dict()
    trainer.optimizer = None  # the Trainer makes it again when it knows how the model is wrapped
    torch.save(plain | {"state": states}, new / OPTIMIZER)
    write_json(new / LAYOUT, {"strategy": "data parallel", "processes": 1})
    seal(new)
    os.replace(checkpoint, old)
    os.replace(new, checkpoint)
    shutil.rmtree(old)


def hand_over(checkpoint: Path, trainer: Trainer) -> None:
    """Have the Trainer, when it would load ZeRO's parts, fill the engine from a whole checkpoint."""
    from transformers import trainer as transformers_trainer

    load_parts = transformers_trainer.deepspeed_load_checkpoint

    def load_whole(engine, path: str, load_module_strict: bool = True) -> None:
        if Path(path) != checkpoint:
            return load_parts(engine, path, load_module_strict)
        fill(engine, trainer, load_file(checkpoint / WEIGHTS), torch.load(checkpoint / OPTIMIZER, weights_only=True))

    transformers_trainer.deepspeed_load_checkpoint = load_whole


@torch.no_grad()
def fill(engine, trainer: Trainer, weights: dict[str, Tensor], optimizer: dict) -> None:
    """Give a DeepSpeed engine whole weights and AdamW's states: those it computes with and those it updates."""
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    index = {name: number for number, name in enumerate(optimizer_order(trainer))}
    parameters = dict(trainer.model.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0):
        for name, parameter in parameters.items():
            if parameter.numel() == weights[name].numel():  # everywhere, and on the first process under ZeRO-3
                parameter.copy_(weights[name])
    # AdamW has no moments before its first step: make them, for ZeRO's flat pieces of the weights
    zero, step = engine.optimizer, next(iter(optimizer["state"].values()))["step"]
    pieces = getattr(zero, "fp32_partitioned_groups_flat", None) or zero.single_partition_of_fp32_groups
    for piece in pieces:
        zero.optimizer.state[piece] = {"step": step.clone(), **{m: torch.zeros_like(piece) for m in MOMENTS}}
    if hasattr(zero, "single_partition_of_fp32_groups"):
        zero._lazy_init_hp_params_optimizer_state()  # which DeepSpeed does after the first step
    for name, number in index.items():
        safe_set_full_fp32_param(parameters[name], weights[name].to(parameters[name].device))
        for moment in MOMENTS:
            safe_set_full_optimizer_state(
                parameters[name], optimizer["state"][number][moment].to(parameters[name].device), moment
            )
