"""The command behind `make parity`, shortened: two strategies that whole models know and one that splits layers."""

import json
import os
import subprocess
import sys

import pytest

from scripts.parity import largest_deviation, table


def test_strategies_log_the_losses_of_one_process(root, tmp_path):
    options = ["--recipes", "finetuning/sft", "--profiles", "ddp", "zero2", "--splits", "tensor", "--steps", "3"]
    command = [sys.executable, "-m", "scripts.parity", *options, "--output_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = json.loads((tmp_path / "parity.json").read_text())["finetuning/sft"]
    assert list(logs) == ["one process", "ddp", "zero2", "tensor"]
    assert [len(log) for log in logs.values()] == [3, 3, 3, 3]
    losses = [step["loss"] for step in logs["one process"]]
    assert losses[0] > losses[-1] > 0, "the job that is compared learns something"
    for log in logs.values():
        assert largest_deviation(logs["one process"], log) < 1e-4
    assert (tmp_path / "parity.md").read_text() == table({"finetuning/sft": logs})


def test_a_deviation_is_seen_wherever_it_is():
    one = [{"loss": 2.0, "grad_norm": 1.0}, {"loss": 1.5, "grad_norm": 0.9}]
    assert largest_deviation(one, [dict(step) for step in one]) == 0
    assert largest_deviation(one, [one[0], {"loss": 1.5, "grad_norm": 0.95}]) == pytest.approx(0.05)
    assert largest_deviation(one, one[:1]) == float("inf")
    assert largest_deviation(one, [one[0], {"loss": 1.5}]) == float("inf")
    assert largest_deviation([], []) == float("inf")
