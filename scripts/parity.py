"""Parity: one training job under every launch profile, and how far its losses are from those of one process.

Each row is the user's own command with real processes: the same weights, data, seed and global batch, in
fp32. What differs between the rows is the order in which numbers are added up, and nothing else.

Run: python -m scripts.parity
     python -m scripts.parity --recipes rlhf/ppo --profiles ddp zero3
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipes.core.catalog import LAUNCH, ROOT
from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, write_json, write_text, write_yaml

PROCESSES, GLOBAL_BATCH, TOLERANCE = 2, 8, 1e-4
PROFILES = ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2")
SPLITS = ("tensor", "pipeline")
COMPARED = ("loss", "grad_norm", "accuracy", "policy_loss", "value_loss", "reward", "kl")
MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
TRAINING = {
    "max_train_samples": 160,
    "logging_steps": 1,
    "save_strategy": "no",
    "activation_checkpointing": False,
    "bf16": False,
    "learning_rate": 1e-3,
    "seed": 0,
}
JOBS: dict[str, dict[str, Any]] = {
    "finetuning/sft": {"dataset_name": "embedded/instructions", "max_length": 64, **TRAINING},
    "rlhf/reward": {
        "dataset_name": "embedded/preferences",
        "max_test_samples": 16,
        "max_length": 64,
        **TRAINING,
    },
    "rlhf/ppo": {
        "dataset_name": "embedded/prompts",
        "dataset_test_split": None,
        "reward_funcs": ["recipes.embedded.instructions:gold_reward"],
        "response_length": 8,
        "num_ppo_epochs": 2,
        "temperature": 1.0,
        "missing_eos_penalty": 1.0,
        **TRAINING,
    },
}


def make_models(folder: Path) -> None:
    """A small tokenizer of the embedded texts, and from one seed a model and a scorer that read it, in `folder`."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, set_seed

    command = [sys.executable, "-m", "recipes.tokenization.train", "--config"]
    command += ["configs/tokenization/train/quickstart.yaml", "--vocab_size", "400", "--overwrite", "changed"]
    subprocess.run([*command, "--output_dir", str(folder / "tokenizer")], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(**MODEL, **special, vocab_size=len(tokenizer), num_labels=1)
    set_seed(0)
    for name, cls in (("model", LlamaForCausalLM), ("scorer", LlamaForSequenceClassification)):
        cls(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def train(module: str, settings: dict[str, Any], profile: str | None, folder: Path) -> list[dict[str, float]]:
    """What a recipe logs at each step under a profile (None: one process), with two processes and the same global batch.

    Raises:
        UserError: the run failed; its output goes to stderr.
    """
    processes = PROCESSES if profile else 1
    settings = settings | {"output_dir": str(folder), "per_device_train_batch_size": GLOBAL_BATCH // processes}
    settings = settings | {"overwrite": "always"}
    config = folder.with_suffix(".yaml")
    write_yaml(config, settings)
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / f"{profile}.yaml")]
    launch += ["--num_processes", str(PROCESSES)]
    command = [sys.executable, *(launch if profile else []), "-m", module, "--config", str(config)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise UserError(f"{module} under {profile or 'one process'} ended with exit status {done.returncode}")
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: entry[key] for key in COMPARED if key in entry} for entry in entries if "loss" in entry]


def largest_deviation(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Over all steps and quantities; infinite where the two did not log the same things."""
    if (
        not one
        or len(one) != len(other)
        or not all(a.keys() >= b.keys() >= {"loss", "grad_norm"} for a, b in zip(one, other))
    ):
        return float("inf")
    return max(abs(a[key] - b[key]) for a, b in zip(one, other) for key in b)


def table(runs: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Losses and gradient norms of the first, middle and last step as Markdown, the deviation in the last column."""
    steps = len(next(iter(next(iter(runs.values())).values())))
    shown = sorted({0, steps // 2, steps - 1})
    heads = [f"{name}, step {step + 1}" for name in ("loss", "gradient norm") for step in shown]
    lines = [f"| recipe | strategy | {' | '.join(heads)} | largest deviation |"]
    lines.append("| --- | --- |" + " ---: |" * (len(heads) + 1))
    for recipe, strategies in runs.items():
        one = strategies["one process"]
        for strategy, log in strategies.items():
            figures = [f"{log[step][key]:.6f}" for key in ("loss", "grad_norm") for step in shown if step < len(log)]
            deviation = "–" if log is one else f"{largest_deviation(one, log):.1e}"
            lines.append(f"| {recipe} | {strategy} | {' | '.join(figures)} | {deviation} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--recipes", nargs="+", choices=JOBS, default=list(JOBS), help="what is trained")
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES), help="how it is launched")
    parser.add_argument("--splits", nargs="*", choices=SPLITS, default=list(SPLITS), help="how an SFT model is split")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each run")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/parity"), help="where runs and table go")
    options = parser.parse_args()
    with report_user_errors():
        if options.steps < 1:
            raise UserError(f"--steps must be at least 1, not {options.steps}")
        check_writable(options.output_dir)
        make_models(options.output_dir)
        runs: dict[str, dict[str, list[dict[str, float]]]] = {}
        for recipe in options.recipes:
            runs[recipe] = {}
            start = options.output_dir / ("scorer" if recipe == "rlhf/reward" else "model")
            settings = JOBS[recipe] | {"model_name_or_path": str(start), "max_steps": options.steps}
            for profile in (None, *options.profiles):
                folder = options.output_dir / recipe / (profile or "one")
                log = train(f"recipes.{recipe.replace('/', '.')}", settings, profile, folder)
                runs[recipe][profile or "one process"] = log
                deviation = largest_deviation(runs[recipe]["one process"], log)
                print(f"{recipe} {profile or 'one process'}: largest deviation {deviation:.1e}", flush=True)
            if recipe == "finetuning/sft" and options.splits:
                from scripts import parity_split  # imports all of trl and torch

                batches = parity_split.batches_of(options.output_dir / recipe / "one.yaml")
                for split in options.splits:
                    log = runs[recipe][split] = parity_split.run(split, start, batches, PROCESSES)
                    deviation = largest_deviation(runs[recipe]["one process"], log)
                    print(f"{recipe} {split}: largest deviation {deviation:.1e}", flush=True)
        write_text(options.output_dir / "parity.md", table(runs))
        write_json(options.output_dir / "parity.json", runs)
        print(table(runs))
        off = {
            f"{recipe} under {strategy}": deviation
            for recipe, strategies in runs.items()
            for strategy, log in strategies.items()
            if (deviation := largest_deviation(strategies["one process"], log)) > TOLERANCE
        }
        if off:
            raise UserError(f"further than {TOLERANCE} from one process: {off}")


if __name__ == "__main__":
    main()
