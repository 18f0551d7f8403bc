"""A small job for every recipe that trains: 40 rows, six steps, a checkpoint every second step."""

import json
from pathlib import Path

import pytest
import yaml

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    """Drawing takes longer than these runs; the curves of the one run that a fixture makes are looked at."""
    monkeypatch.setattr("recipes.core.results.draw_curves", lambda *_: None)


@pytest.fixture(scope="session")
def job(tiny, tmp_path_factory):
    """`job("finetuning/sft", "runs")`: the command line of a run whose folder is `runs/job`."""
    folder = tmp_path_factory.mktemp("job")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {first} {second}"}],
            "completion": [{"role": "assistant", "content": f"{first} and {second}"}],
            "chosen": [{"role": "assistant", "content": f"{first} and {second}"}],
            "rejected": [{"role": "assistant", "content": f"{second} please"}],
            "text": f"say {first} {second} and then {second} {first} please thank you",
        }
        for first in WORDS
        for second in WORDS[:4]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_name": str(folder / "rows.jsonl"),
        "test_split_size": 0.2,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",  # a step too many would change the weights
        "logging_steps": 3,  # not in step with the checkpoints
        "save_steps": 2,
        "bf16": False,
        "seed": 3,
    }
    trained = {"model_name_or_path": str(tiny / "model"), "max_length": 64}
    scratch = {"model_config": json.loads((tiny / "model" / "config.json").read_text()), "max_length": 16}
    for key in ("architectures", "transformers_version", "dtype", "id2label", "label2id"):
        scratch["model_config"].pop(key, None)
    groups = {  # answers come two to a prompt and serve two steps; an epoch is over after four steps
        "model_name_or_path": str(tiny / "model"),
        "reward_funcs": [str(tiny / "scorer")],
        "max_completion_length": 8,
        "beta": 0.1,
        "num_generations": 2,
        "steps_per_generation": 2,
        "missing_eos_penalty": 1.0,
        "max_train_samples": 8,
        "eval_on_start": True,
        "dataset_columns": {"prompt": "prompt"},
    }
    jobs = {
        "pretraining/causal": {**scratch, "tokenizer_name_or_path": str(tiny / "tokenizer")},
        "finetuning/sft": {**trained, "eval_on_start": True},
        "rlhf/reward": trained,
        "rlhf/dpo": {**trained, "eval_on_start": True},
        "rlhf/kto": {**trained, "eval_on_start": True, "dataset_columns": {"prompt": "prompt"}},
        "rlhf/rloo": groups,
        "rlhf/grpo": groups,
        "rlhf/ppo": {
            "model_name_or_path": str(tiny / "model"),
            "reward_funcs": [str(tiny / "scorer")],
            "response_length": 8,
            "num_ppo_epochs": 3,  # the checkpoints of steps 2 and 4 stand inside a rollout
            "dataset_columns": {"prompt": "prompt"},
        },
    }

    def command_line(recipe: str, output_dir: Path, *more: str) -> list[str]:
        config = folder / recipe / "job.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump({**jobs[recipe], **common}))
        return ["--config", str(config), "--output_dir", str(output_dir), *more]

    return command_line


TIMINGS = ("runtime", "_per_second", "preparation_time", "step_time")


@pytest.fixture(scope="session")
def log_of():
    """`log_of(folder)`: the lines of a run's log, without what depends on the clock."""

    def lines(folder: Path) -> list[dict]:
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [
            {
                key: value
                for key, value in entry.items()
                if not key.endswith(TIMINGS) and not key.startswith("seconds/")
            }
            for entry in entries
        ]

    return lines
