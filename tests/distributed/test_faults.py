"""What can go wrong between processes, with real ones: each ends soon, says why, and goes on when it is started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow
RECIPE = "finetuning/sft"


@pytest.fixture
def start(job, root, tmp_path):
    """`start(profile, "--key", "value", …)`: the launcher of a small run in `tmp_path/run`, and what it prints."""

    def launch(profile: str, *options: str, launcher: tuple[str, ...] = ()) -> tuple[subprocess.Popen, Path]:
        said = tmp_path / "printed.txt"
        config = ["--config_file", f"configs/launch/{profile}.yaml", *launcher]
        module = ["-m", "recipes.finetuning.sft", *job(RECIPE, tmp_path / "run", *options)]
        command = [sys.executable, "-m", "accelerate.commands.launch", *config, *module]
        with said.open("w") as printed:
            return subprocess.Popen(command, cwd=root, stdout=printed, stderr=printed), said

    return launch


def end(process: subprocess.Popen, said: Path, seconds: float = 180) -> str:
    """What it printed, once it has ended well."""
    assert process.wait(seconds) == 0, said.read_text()[-3000:]
    return said.read_text()


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    began = time.monotonic()
    while not path.exists():
        assert process.poll() is None and time.monotonic() - began < seconds
        time.sleep(0.05)


@pytest.mark.parametrize("profile", ["ddp", "zero2"])
def test_a_rank_that_is_killed_ends_all_and_the_same_command_goes_on(start, tmp_path, profile):
    options = ("--max_steps", "60", "--save_steps", "5")
    process, said = start(profile, *options)
    wait_for(tmp_path / "run" / "checkpoint-5" / "complete.json", process)
    below = psutil.Process(process.pid).children(recursive=True)
    ranks = {child.environ().get("RANK"): child for child in below}
    ranks["1"].send_signal(signal.SIGKILL)
    assert process.wait(60) != 0
    _, alive = psutil.wait_procs(below, timeout=5)
    assert not alive, "a process of the run outlives it"
    assert "SIGKILL" in said.read_text() or "-9" in said.read_text()

    process, said = start(profile, *options)
    told = end(process, said)
    assert f"resuming from {tmp_path}/run/checkpoint-" in told
    assert (tmp_path / "run" / "result.json").exists()


def test_a_last_batch_that_is_uneven(start):
    """32 rows in batches of 2 times 5: the last holds two rows, and a rank would get none."""
    process, said = start("ddp", "--max_steps", "-1", "--num_train_epochs", "1", "--per_device_train_batch_size", "5")
    end(process, said)


def test_a_rank_that_runs_out_of_data(start):
    """One row for two ranks."""
    process, said = start("ddp", "--max_train_samples", "1", "--max_steps", "2")
    end(process, said)


def test_a_port_in_use(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process, said = start("ddp", launcher=("--main_process_port", str(taken.getsockname()[1])))
        assert "already in use" in end(process, said)


def test_a_checkpoint_with_a_missing_shard_is_refused_and_the_one_before_used(start, tmp_path):
    process, said = start("zero2", "--save_total_limit", "3")
    end(process, said)
    run = tmp_path / "run"
    for name in ("result.json", "model.safetensors"):
        os.remove(run / name)
    shards = sorted((run / "checkpoint-6").rglob("*rank_1*optim_states.pt"))
    assert len(shards) == 1
    shards[0].unlink()
    process, said = start("zero2", "--save_total_limit", "3")
    told = end(process, said)
    assert f"{run}/checkpoint-6 is half-written" in told
    assert f"resuming from {run}/checkpoint-4" in told
    assert (run / "result.json").exists()


def test_two_machines_of_a_slurm_job(job, root, tmp_path):
    """What SLURM starts on each machine, started twice on this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = Path(job(RECIPE, tmp_path / "run")[1])
    settings = {line.partition(":")[0]: line.partition(": ")[2] for line in config.read_text().splitlines()}
    options = [word for key in ("dataset_name", "model_name_or_path") for word in (f"--{key}", settings[key])]
    options += ["--max_steps", "4", "--max_length", "64", "--bf16", "false", "--output_dir", str(tmp_path / "run")]
    options += ["--per_device_train_batch_size", "4", "--save_steps", "4", "--dataset_test_split", "null"]
    options += ["--attn_implementation", "eager", "--eval_on_start", "false"]
    nodes = []
    for node in range(2):
        environment = os.environ | {
            "PYTHON": sys.executable,
            "PROFILE": "multi-node",
            "SLURM_NNODES": "2",
            "SLURM_NODEID": str(node),
            "SLURM_GPUS_ON_NODE": "1",
            "MAIN_PROCESS_IP": "127.0.0.1",
            "MAIN_PROCESS_PORT": str(port),
        }
        command = ["scripts/slurm/node.sh", "finetuning/sft/quickstart", *options]
        nodes.append(
            subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    for node in nodes:
        printed, _ = node.communicate(timeout=180)
        assert node.returncode == 0, printed.decode()[-3000:]
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("script", ["train.sbatch", "node.sh"])
def test_the_batch_scripts_are_valid_shell(root, script):
    subprocess.run(["bash", "-n", f"scripts/slurm/{script}"], cwd=root, check=True)
