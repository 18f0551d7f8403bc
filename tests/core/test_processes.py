"""How many processes are started, and what a killed one left in the way of the next."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recipes.__main__ import processes_to_start, run, run_inputs
from recipes.core.catalog import ROOT
from recipes.core.errors import ALONE_AFTER, UserError, report_user_errors
from recipes.core.processes import connect_processes, discard_abandoned_builds
from recipes.core.recipe import ddp_timeout


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


INPUTS = ["tokenization/train/quickstart", "pretraining/causal/quickstart", "finetuning/sft/quickstart"]


@pytest.fixture
def commands(monkeypatch):
    """What is run of `python -m recipes run …`, all of which succeeds but for what `commands.failing` names."""

    class Commands(list):
        failing = None

    commands = Commands()

    def process(command):
        commands.append(command[4:])
        return subprocess.CompletedProcess(command, 2 if commands.failing in command else 0)

    monkeypatch.setattr(subprocess, "run", process)
    return commands


def test_what_a_config_starts_from_is_run_before_it_each_in_a_process_of_its_own(commands, tmp_path):
    run_inputs("rlhf/reward/quickstart", ["--seed", "1", "--runs_dir", str(tmp_path)])
    assert commands == [[name, "--runs_dir", str(tmp_path)] for name in INPUTS]


def test_an_input_that_fails_ends_the_command(commands, tmp_path, capsys):
    commands.failing = INPUTS[2]
    with pytest.raises(SystemExit, match="2"):
        run_inputs("rlhf/reward/quickstart", ["--runs_dir", str(tmp_path)])
    assert capsys.readouterr().err.startswith(
        "error: finetuning/sft/quickstart, from which rlhf/reward/quickstart starts, failed"
    )


def test_a_finished_input_is_left_as_it_is_unless_all_that_changed_is_made_anew(commands, tmp_path):
    (tmp_path / INPUTS[1]).mkdir(parents=True)
    (tmp_path / INPUTS[1] / "result.json").write_text("{}")
    run_inputs("rlhf/reward/quickstart", ["--runs_dir", str(tmp_path)])
    assert [command[0] for command in commands] == [INPUTS[0], INPUTS[2]]
    commands.clear()
    run_inputs("rlhf/reward/quickstart", ["--runs_dir", str(tmp_path), "--overwrite", "changed"])
    assert commands == [[name, "--runs_dir", str(tmp_path), "--overwrite", "changed"] for name in INPUTS]


def test_inputs_are_those_of_the_command_line(commands, tmp_path):
    flags = ["--model_name_or_path", "runs/pretraining/causal/llama2", "--runs_dir", str(tmp_path)]
    run_inputs("finetuning/sft/quickstart", flags)
    assert [command[0] for command in commands] == [INPUTS[0], "pretraining/causal/llama2"]


def test_a_signal_to_end_reaches_all_that_was_started(tmp_path):
    """A shell that waits for a child of its own, as the launcher waits for its processes."""
    child = f"echo started > {tmp_path}/started; sleep 600 & echo $! > {tmp_path}/pid; wait"
    code = f"from recipes.__main__ import supervised; raise SystemExit(supervised(['bash', '-c', {child!r}]) != 0)"
    program = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    program.send_signal(signal.SIGTERM)
    assert program.wait(timeout=60) == 1
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def wait_until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_that_fails_alone_says_so(monkeypatch, capsys):
    waited = []
    monkeypatch.setattr("recipes.core.errors.time.sleep", waited.append)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"), report_user_errors():
        raise UserError("this went wrong")
    assert capsys.readouterr().err == "error in process 1: this went wrong\n"
    assert waited == [ALONE_AFTER]


def test_the_time_that_processes_wait_is_the_config_s(tmp_path):
    (tmp_path / "config.yaml").write_text("ddp_timeout: 7200\n")
    given = ["--config", str(tmp_path / "config.yaml")]
    assert ddp_timeout(given) == 7200
    assert ddp_timeout([*given, "--ddp_timeout", "60"]) == 60
    assert ddp_timeout([]) == 1800


def test_what_is_one_process_is_not_started_as_several(main, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["recipes.core.recipe"], "connect_processes", lambda timeout: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        config = str(ROOT / "configs/tokenization/explain/quickstart.yaml")
        main("tokenization/explain")(["--config", config, "--output_dir", str(tmp_path / "run")])
    assert "tokenization/explain is one process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launch", "processes", "message"),
    [
        ("multi-node-zero3", None, "each machine starts its own processes: accelerate launch"),
        ("cpu", 4, "--launch cpu is one process, not 4"),
    ],
)
def test_a_launch_that_would_be_another_is_refused(launch, processes, message):
    with pytest.raises(UserError, match=message):
        run("finetuning/sft/quickstart", launch, processes, [])
