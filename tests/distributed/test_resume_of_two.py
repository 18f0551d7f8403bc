"""Two processes killed at any moment: the same command goes on and ends with the weights of an undisturbed run."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

KILLS = 20
STEPS = 48
TOLERANCE = 1e-5


def reached(folder: Path) -> int:
    """The last step in a run's log."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    whole = [line for line in lines if line.endswith("}")]  # the last one may be being written
    return json.loads(whole[-1])["step"] if whole else 0


def kill_all(launcher: int) -> None:
    """Kill a launcher and its processes, each of which has a session of its own."""
    parent = psutil.Process(launcher)
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.mark.slow
def test_ppo_of_two_processes_killed_at_twenty_random_moments(job, root, tmp_path):
    options = ("--max_steps", str(STEPS), "--save_steps", "5", "--num_ppo_epochs", "2", "--num_mini_batches", "2")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/launch/ddp.yaml"]

    def start(folder: Path, kill_at: int | None = None, wait: float = 0.0) -> int:
        """The exit status of the launcher; with `kill_at` every process is killed so many seconds after that step."""
        folder.parent.mkdir(exist_ok=True)
        with open(folder.parent / "printed.txt", "a") as printed:
            command = [*launch, "-m", "recipes.rlhf.ppo", *job("rlhf/ppo", folder, *options)]
            process = subprocess.Popen(command, cwd=root, stdout=printed, stderr=printed)
            while kill_at is not None and process.poll() is None:
                if reached(folder) >= kill_at:
                    time.sleep(wait)
                    kill_all(process.pid)
                    break
                time.sleep(0.01)
            return process.wait()

    def weights(folder: Path):
        return load_file(folder / "model.safetensors")

    def same(folder: Path) -> bool:
        found = weights(folder)
        return all((found[name] - tensor).abs().max() <= TOLERANCE for name, tensor in expected.items())

    undisturbed, killed = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    assert start(undisturbed) == 0, (undisturbed.parent / "printed.txt").read_text()[-3000:]
    expected, numbers, kills = weights(undisturbed), random.Random(0), 0
    while kills < KILLS:
        at = min(STEPS, reached(killed) + numbers.randint(1, STEPS // 4))
        code = start(killed, at, numbers.uniform(0.0, 0.5))
        told = (killed.parent / "printed.txt").read_text(errors="replace")
        assert code in (0, -signal.SIGKILL), told[-3000:]
        kills += code != 0
        if code == 0 or at == STEPS:  # at the end it may be killed for ever
            assert start(killed) == 0
            assert same(killed)
            shutil.rmtree(killed)
    assert start(killed) == 0
    assert same(killed)
    told = (killed.parent / "printed.txt").read_text(errors="replace")
    print(f"{kills} kills, {told.count('resuming from')} resumptions")
    assert told.count("resuming from") >= KILLS // 2
