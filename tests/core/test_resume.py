"""Killed by SIGKILL at any moment, the same command goes on and ends as an undisturbed run: same log, same weights."""

import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from recipes.core import results

METHODS = ["rlhf/ppo", "rlhf/dpo", "rlhf/kto", "rlhf/rloo", "rlhf/grpo"]
TASKS = [
    f"finetuning/{task}"
    for task in ("classification", "token_classification", "question_answering", "sequence_to_sequence")
]
DENOISERS = [f"pretraining/{name}" for name in ("masked", "denoising", "translation")]
OBJECTIVES = [f"pretraining/{name}" for name in ("span_corruption", "text_to_text", "unified", "blank_infilling")]
RECIPES = ["pretraining/causal", *DENOISERS, *OBJECTIVES, "finetuning/sft", *TASKS, "rlhf/reward", *METHODS]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step_4(_) -> None:
    """Between the checkpoints of steps 2 and 4, after the gradients of step 4."""
    from transformers import Trainer

    step = Trainer.training_step

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 3:
            die()
        return loss

    Trainer.training_step = training_step


def kill_in_writing_checkpoint_4(_) -> None:
    """Its last file is written in part, and its manifest not at all."""
    from recipes.core import checkpoints

    seal = checkpoints.seal

    def half_write(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-4":
            file = checkpoint / "optimizer.pt"
            os.truncate(file, file.stat().st_size // 2)
            die()
        seal(checkpoint)

    checkpoints.seal = half_write


def kill_after_checkpoint_4(_) -> None:
    from recipes.core import checkpoints

    seal = checkpoints.seal

    def seal_and_die(checkpoint: Path) -> None:
        seal(checkpoint)
        if checkpoint.name == "checkpoint-4":
            die()

    checkpoints.seal = seal_and_die


def kill_in_saving_the_model(folder: Path) -> None:
    """After the last step, one of the model's files is in its place."""
    replace = os.replace

    def replace_and_die(source, target) -> None:
        replace(source, target)
        if Path(source).parent == folder / ".model":
            die()

    os.replace = replace_and_die


KILLS = [kill_in_step_4, kill_in_writing_checkpoint_4, kill_after_checkpoint_4, kill_in_saving_the_model]


def run(recipe: str, argv: list[str], folder: Path, kill) -> None:
    """In a process of its own: the user's command, killed by itself at one moment."""
    gc.freeze()  # what was imported before the fork need not be looked through
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "printed.txt", "a") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    results.draw_curves = lambda *_: None
    if kill:
        kill(folder)
    module = __import__("recipes." + recipe.replace("/", "."), fromlist=["main"])
    module.main(argv)


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has imported the recipes, and has trained nothing."""
    context = multiprocessing.get_context("forkserver")
    modules = ["recipes." + recipe.replace("/", ".") for recipe in RECIPES]
    context.set_forkserver_preload([*modules, "recipes.core.monitor", "transformers.models.llama.modeling_llama"])
    return context


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_again_and_again_it_ends_as_if_undisturbed(recipe, processes, job, log_of, tmp_path):
    def start(folder: Path, kill=None):
        process = processes.Process(target=run, args=(recipe, job(recipe, folder), folder, kill))
        process.start()
        return process

    def printed(folder: Path) -> str:
        return (folder.parent / "printed.txt").read_text(errors="replace")

    undisturbed, killed = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    beside = start(undisturbed)
    for kill in KILLS:
        process = start(killed, kill)
        process.join()
        assert process.exitcode == -signal.SIGKILL, printed(killed)
        assert not (killed / "result.json").exists()
    for process, folder in ((start(killed), killed), (beside, undisturbed)):
        process.join()
        assert process.exitcode == 0, printed(folder)

    told = printed(killed)
    assert told.count("resuming from") == 4
    for step, times in ((2, 2), (4, 1), (6, 1)):
        assert told.count(f"resuming from {killed}/checkpoint-{step}") == times
    assert f"{killed}/checkpoint-4 is half-written" in told

    lines = log_of(undisturbed)
    assert [line["step"] for line in lines if "loss" in line] == [2, 3, 4, 6], (
        "every third step, and at each checkpoint"
    )
    assert all("grad_norm" in line for line in lines if "loss" in line)
    assert log_of(killed) == lines
    for name in ("model.safetensors", "checkpoint-6/model.safetensors"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert {path.name for path in killed.iterdir()} == {path.name for path in undisturbed.iterdir()}
    ends = [json.loads((folder / "result.json").read_text()) for folder in (killed, undisturbed)]
    for key in ("metrics", "baselines", "seed", "steps"):
        assert ends[0][key] == ends[1][key], key
    assert ends[0].get("tokens") == ends[1].get("tokens")


class KillAfter:
    """Kills the process some seconds after it began to train, wherever it is then."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, _) -> None:
        timer = threading.Timer(self.seconds, die)
        timer.daemon = True
        timer.start()


@pytest.mark.slow
def test_ppo_killed_at_twenty_random_moments(processes, job, tmp_path):
    """In sampling, scoring, optimisation, saving, as it comes; every run that gets to its end has the same weights."""
    options = ("--max_steps", "48", "--save_steps", "5", "--num_ppo_epochs", "2", "--num_mini_batches", "2")

    def start(folder: Path, kill=None) -> int:
        process = processes.Process(target=run, args=("rlhf/ppo", job("rlhf/ppo", folder, *options), folder, kill))
        process.start()
        process.join()
        return process.exitcode

    undisturbed, killed = tmp_path / "undisturbed" / "run", tmp_path / "killed" / "run"
    began = time.monotonic()
    assert start(undisturbed) == 0
    seconds, numbers, kills = time.monotonic() - began, random.Random(0), 0
    while kills < 20:
        code = start(killed, KillAfter(numbers.uniform(0.1, 0.5) * seconds))
        assert code in (0, -signal.SIGKILL), (killed.parent / "printed.txt").read_text(errors="replace")[-2000:]
        kills += code != 0
        if code == 0:
            assert (killed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
            shutil.rmtree(killed)
    assert start(killed) == 0
    assert (killed / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    told = (killed.parent / "printed.txt").read_text(errors="replace")
    print(f"{seconds:.1f} s undisturbed; {kills} kills, {told.count('resuming from')} resumptions")
    assert told.count("resuming from") >= 10
