"""A checkpoint that is saved under one strategy goes on under another, to the weights of a run that never changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

RECIPE, GLOBAL_BATCH, TOLERANCE = "finetuning/sft", 8, 1e-4
MOVES = [("zero3", 2, None, 1), (None, 1, "zero3", 2), ("zero2", 2, "ddp", 2), ("zero3", 2, "zero2", 2)]


@pytest.fixture
def train(job, root):
    """`train(folder, profile, processes)`: what a run of six steps with that launch prints."""

    def run(folder: Path, profile: str | None, processes: int, status: int = 0) -> str:
        launch = ["-m", "accelerate.commands.launch", "--config_file", f"configs/launch/{profile}.yaml"]
        launch += ["--num_processes", str(processes)]
        size = ("--per_device_train_batch_size", str(GLOBAL_BATCH // processes))
        options = (*size, "--learning_rate", "1e-3", "--save_total_limit", "3", "--logging_steps", "1")
        module = ["-m", "recipes.finetuning.sft", *job(RECIPE, folder, *options)]
        command = [sys.executable, *(launch if profile else []), *module]
        done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=300)
        assert (done.returncode == 0) == (status == 0), done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


def cut_back(folder: Path) -> None:
    """The run as if it had been killed after its checkpoint of step 4."""
    for name in ("result.json", "model.safetensors"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoint-6")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "from_processes", "after", "to_processes"), MOVES)
def test_a_run_goes_on_under_another_strategy(train, tmp_path, before, from_processes, after, to_processes):
    moved, undisturbed = tmp_path / "moved", tmp_path / "undisturbed"
    train(undisturbed, None, 1)
    train(moved, before, from_processes)
    cut_back(moved)
    told = train(moved, after, to_processes)
    assert f"resuming from {moved}/checkpoint-4" in told
    one, other = (load_file(folder / "model.safetensors") for folder in (undisturbed, moved))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert (other[name] - tensor).abs().max() < TOLERANCE, name
    AutoModelForCausalLM.from_pretrained(moved)
    assert not [path.name for path in moved.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_fsdp_stays_fsdp(train, tmp_path):
    train(tmp_path / "run", "fsdp2", 2)
    cut_back(tmp_path / "run")
    told = train(tmp_path / "run", "ddp", 2, status=1)
    assert "checkpoint-4 was saved under FSDP with 2 processes and this run is under data parallel" in told
    assert not (tmp_path / "run" / "result.json").exists()
