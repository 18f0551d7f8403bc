"""Two real processes under `configs/launch/ddp.yaml` log the losses of one, for objectives whose loss has two parts."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pretraining/masked", "pretraining/denoising", "pretraining/translation"])
def test_two_processes_log_the_losses_of_one(recipe, job, log_of, root, tmp_path):
    def curve(processes: int) -> list[dict[str, float]]:
        folder = tmp_path / f"of-{processes}"
        flags = [
            "--per_device_train_batch_size",
            str(4 // processes),
            "--learning_rate",
            "1e-3",
            "--logging_steps",
            "1",
        ]
        profile = ["-m", "accelerate.commands.launch", "--config_file", "configs/launch/ddp.yaml"]
        command = [sys.executable, *(profile if processes > 1 else []), "-m", "recipes." + recipe.replace("/", ".")]
        done = subprocess.run(
            [*command, *job(recipe, folder, *flags)],
            cwd=root,
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [line for line in log_of(folder) if "loss" in line or "eval_loss" in line]

    one, two = curve(1), curve(2)
    assert len(one) == len(two) > 5
    for line, other in zip(one, two):
        assert line.keys() == other.keys()
        for name in line:
            assert other[name] == pytest.approx(line[name], abs=1e-4), (line["step"], name)
