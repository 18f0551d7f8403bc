"""The causal recipe's time beside that of a plain PyTorch loop of the same model (`causal_plain`), turn by turn.

Each turn is a process of its own. The recipe's time is that of its training, from Trainer's first batch to its last update,
with its log and its checks; checkpoints are left out, since the loop writes none. Whichever of two neighbours runs first may
be the slower one, so the figure is the geometric mean of two medians of their ratio: of rounds that the recipe began, and
of those that the loop began.

Run: python -m scripts.bench.causal --steps 1000 --rounds 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from recipes.core.catalog import ROOT
from recipes.core.errors import report_user_errors
from recipes.core.files import check_writable, write_json
from recipes.core.results import commit, hardware, versions


def recipe_seconds(config: str, steps: int) -> float:
    """Seconds that the recipe's training takes."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        flags = ["--max_steps", str(steps), "--save_strategy", "no", "--num_samples", "0", "--max_test_samples", "1"]
        command = [sys.executable, "-m", "recipes.pretraining.causal", "--config", config, "--output_dir", str(run)]
        subprocess.run([*command, *flags], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        result = json.loads((run / "result.json").read_text())
        rows = steps * result["settings"]["per_device_train_batch_size"]
        return rows / result["samples_per_second"]


def plain_seconds(config: str, steps: int) -> float:
    command = [sys.executable, "-m", "scripts.bench.causal_plain", "--config", config, "--steps", str(steps)]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])["seconds"]


def throughput(rounds: list[dict[str, float]]) -> float:
    """The recipe's share of the loop's throughput, either one's turn at being first weighing the same."""
    begun = {first: [] for first in ("recipe", "plain")}
    for each in rounds:
        begun[next(iter(each))].append(each["throughput_of_plain"])
    return statistics.geometric_mean(statistics.median(ratios) for ratios in begun.values() if ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/pretraining/causal/shakespeare-char.yaml")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("results/bench/causal.json"))
    options = parser.parse_args()
    with report_user_errors():
        check_writable(options.output.parent)
    rounds = []
    for number in range(options.rounds):
        turns = [("plain", plain_seconds), ("recipe", recipe_seconds)]
        measured = {name: take(options.config, options.steps) for name, take in turns[:: 1 if number % 2 else -1]}
        rounds.append(measured | {"throughput_of_plain": measured["plain"] / measured["recipe"]})
        print(", ".join(f"{name} {value:.3f}" for name, value in rounds[-1].items()), flush=True)
    share = throughput(rounds)
    print(f"the recipe has {share:.1%} of the plain loop's throughput ({len(rounds)} rounds)")
    facts = {"config": options.config, "steps": options.steps, "throughput_of_plain": share, "rounds": rounds}
    write_json(options.output, facts | {"versions": versions(), "commit": commit(), "hardware": hardware()})


if __name__ == "__main__":
    main()
