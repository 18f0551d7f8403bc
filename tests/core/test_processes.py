"""How many processes are started, and what a killed one left in the way of the next."""

import subprocess

import pytest
import torch

from recipes.__main__ import processes_to_start, run_inputs
from recipes.core.errors import UserError
from recipes.core.processes import connect_processes, discard_abandoned_builds


@pytest.fixture
def two_accelerators(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


def test_one_process_is_started_for_each_accelerator(two_accelerators):
    assert processes_to_start(None) == 2
    assert processes_to_start(1) == 1
    with pytest.raises(UserError, match="--num_processes 3 is more than this machine's 2 accelerators"):
        processes_to_start(3)


def test_without_accelerators_the_profile_says_how_many(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert processes_to_start(None) is None
    assert processes_to_start(4) == 4
    with pytest.raises(UserError, match="at least 1, not 0"):
        processes_to_start(0)


def test_more_processes_than_accelerators_are_refused(two_accelerators, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes were started on a machine with 2 accelerators"):
        connect_processes()


def test_a_build_lock_is_removed_when_nobody_holds_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    held, abandoned = tmp_path / "held" / "lock", tmp_path / "abandoned" / "lock"
    for lock in (held, abandoned):
        lock.parent.mkdir()
        lock.touch()
    with held.open():
        discard_abandoned_builds()
        assert held.exists()
        assert not abandoned.exists()
    assert str(abandoned) in capsys.readouterr().err
    discard_abandoned_builds()
    assert not held.exists()


@pytest.mark.parametrize("failing", [None, "finetuning/sft/quickstart"])
def test_what_a_config_starts_from_is_run_before_it_each_in_a_process_of_its_own(failing, monkeypatch, capsys):
    commands = []

    def process(command):
        commands.append(command[4:])
        return subprocess.CompletedProcess(command, 2 if failing in command else 0)

    monkeypatch.setattr(subprocess, "run", process)
    if failing:
        with pytest.raises(SystemExit, match="2"):
            run_inputs("rlhf/reward/quickstart", [])
        assert capsys.readouterr().err.startswith(
            f"error: {failing}, from which rlhf/reward/quickstart starts, failed"
        )
    else:
        run_inputs("rlhf/reward/quickstart", ["--seed", "1", "--runs_dir", "elsewhere"])
    names = ["tokenization/train/quickstart", "pretraining/causal/quickstart", "finetuning/sft/quickstart"]
    folder = [] if failing else ["--runs_dir", "elsewhere"]
    assert commands == [[name, "--overwrite", "changed", *folder] for name in names]
