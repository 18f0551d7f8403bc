"""Two processes killed at any moment: the same command goes on and ends with the weights of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

KILLS = 20
TOLERANCE = 1e-5


@pytest.mark.slow
def test_ppo_of_two_processes_killed_at_twenty_random_moments(job, root, tmp_path):
    options = ("--max_steps", "48", "--save_steps", "5", "--num_ppo_epochs", "2", "--num_mini_batches", "2")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/launch/ddp.yaml"]

    def start(folder, kill_after: float | None = None) -> int:
        """The exit status of the launcher; every process of the run is ended, whoever started it."""
        folder.parent.mkdir(exist_ok=True)
        with open(folder.parent / "printed.txt", "a") as printed:
            command = [*launch, "-m", "recipes.rlhf.ppo", *job("rlhf/ppo", folder, *options)]
            process = subprocess.Popen(command, cwd=root, stdout=printed, stderr=printed, start_new_session=True)
            try:
                return process.wait(kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return process.wait()

    def weights(folder):
        return load_file(folder / "model.safetensors")

    def same(folder) -> bool:
        found = weights(folder)
        return all((found[name] - tensor).abs().max() <= TOLERANCE for name, tensor in expected.items())

    undisturbed, killed = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    began = time.monotonic()
    assert start(undisturbed) == 0, (undisturbed.parent / "printed.txt").read_text()[-3000:]
    seconds, numbers, kills = time.monotonic() - began, random.Random(0), 0
    expected = weights(undisturbed)
    while kills < KILLS:
        code = start(killed, numbers.uniform(0.5, 1.0) * seconds)
        told = (killed.parent / "printed.txt").read_text(errors="replace")
        assert code in (0, -signal.SIGKILL), told[-3000:]
        kills += code != 0
        if code == 0:
            assert same(killed)
            shutil.rmtree(killed)
    assert start(killed) == 0
    assert same(killed)
    told = (killed.parent / "printed.txt").read_text(errors="replace")
    print(f"{seconds:.1f} s undisturbed; {kills} kills, {told.count('resuming from')} resumptions")
    assert told.count("resuming from") >= KILLS // 2
