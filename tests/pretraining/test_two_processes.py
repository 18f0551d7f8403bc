"""Two real processes learn what one learns: same losses, same gradients, same held-out figures."""

import json
import os
import subprocess
import sys

import pytest

DENOISERS = [f"pretraining/{name}" for name in ("masked", "denoising", "translation")]
OBJECTIVES = [f"pretraining/{name}" for name in ("span_corruption", "text_to_text", "unified", "blank_infilling")]
CASES = ["pretraining/causal", *(pytest.param(recipe, marks=pytest.mark.slow) for recipe in OBJECTIVES)]


@pytest.fixture
def run(job, without_dropout, root):
    """run(recipe, folder, processes, *options) trains under `configs/launch/ddp.yaml` where there are several."""

    def of_processes(recipe, folder, processes, *options):
        options = ["--per_device_train_batch_size", str(4 // processes), "--logging_steps", "1", *options]
        launched = ["accelerate.commands.launch", "--config_file", "configs/launch/ddp.yaml", "-m"]
        command = [sys.executable, "-m", *(launched if processes > 1 else []), "recipes." + recipe.replace("/", ".")]
        command += job(recipe, folder, *options, *without_dropout(recipe))
        done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    return of_processes


@pytest.mark.parametrize("recipe", CASES)
def test_two_processes_learn_what_one_learns(recipe, run, log_of, tmp_path):
    def learned(processes: int, *options: str) -> tuple[list, dict]:
        folder = tmp_path / str(processes)
        rest = ["--save_strategy", "no", "--num_samples", "0", "--per_device_eval_batch_size", "4"]
        run(recipe, folder, processes, *rest, *options)
        steps = [(line["loss"], line["grad_norm"]) for line in log_of(folder) if "grad_norm" in line]
        result = json.loads((folder / "result.json").read_text())
        numbers = {name: value for name, value in result["metrics"].items() if isinstance(value, float)}
        return steps, numbers | result["baselines"]

    steps, figures = learned(1)
    other_steps, other_figures = learned(2, "--dataloader_num_workers", "2")
    assert len(steps) == 6
    for one, other in zip(steps, other_steps, strict=True):
        assert other == pytest.approx(one, rel=2e-4)
    # Held-out rows that do not fill both processes' last batch are filled up and left out again, to within a row's share.
    assert other_figures == pytest.approx(figures, rel=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", DENOISERS)
def test_two_processes_log_the_losses_of_one(recipe, run, log_of, tmp_path):
    """Objectives whose loss has two parts, each with a count of its own, in evaluations too."""
    for processes in (1, 2):
        run(recipe, tmp_path / str(processes), processes, "--learning_rate", "1e-3")
    one, two = (
        [line for line in log_of(tmp_path / str(processes)) if "loss" in line or "eval_loss" in line]
        for processes in (1, 2)
    )
    assert len(one) == len(two) > 5
    for line, other in zip(one, two):
        assert line.keys() == other.keys()
        for name in line:
            assert other[name] == pytest.approx(line[name], abs=1e-4), (line["step"], name)
