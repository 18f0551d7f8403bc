"""The losses of two real processes are those of one, under the profiles of configs/launch (fp32, gloo)."""

import json
import os
import subprocess
import sys

import pytest

STEPS = 4
TOLERANCE = 1e-4  # reductions in another order, nothing else
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
KEYS = ("loss", "grad_norm", "accuracy", "policy_loss", "value_loss", "reward", "kl")
TRAINING = {
    "max_steps": STEPS,
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": "false",
    "activation_checkpointing": "false",
    "learning_rate": "1e-3",
    "max_grad_norm": 1.0,
}


def rows(recipe: str) -> list[dict]:
    said = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 3]) for i in range(48)]
    ask = [[{"role": "user", "content": text}] for text in said]
    reply = [[{"role": "assistant", "content": text}] for text in said]
    if recipe == "finetuning/sft":
        return [{"prompt": p, "completion": c} for p, c in zip(ask, reply)]
    if recipe == "rlhf/reward":
        return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(ask, reply, reply[1:] + reply[:1])]
    return [{"prompt": p} for p in ask]


@pytest.fixture
def losses(tiny, tmp_path, root):
    """`losses(recipe, launch, processes)`: what the recipe logs at each step, from the user's own command."""

    def run(recipe: str, launch: str | None, processes: int, **options) -> list[dict[str, float]]:
        data, out = tmp_path / "data.jsonl", tmp_path / f"{launch}"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows(recipe)))
        keys = {
            "model_name_or_path": tiny / ("scorer" if recipe == "rlhf/reward" else "model"),
            "dataset_name": data,
            "dataset_test_split": "null",
            "output_dir": out,
            "per_device_train_batch_size": 8 // processes,
            **TRAINING,
        }
        if recipe == "rlhf/reward":
            keys |= {"dataset_test_split": "test", "test_split_size": 0.25}
        if recipe == "rlhf/ppo":
            keys |= {
                "reward_funcs": f"[{tiny / 'scorer'}]",
                "response_length": 8,
                "num_ppo_epochs": 2,
                "logging_steps": 2,
            }
        keys |= options
        config = tmp_path / "config.yaml"
        config.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        module = ["-m", f"recipes.{recipe.replace('/', '.')}", "--config", str(config)]
        profile = ["-m", "accelerate.commands.launch", "--config_file", f"configs/launch/{launch}.yaml"]
        command = [sys.executable, *(profile if launch else []), *module]
        done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [{key: entry[key] for key in KEYS if key in entry} for entry in entries if "loss" in entry]

    return run


def same(expected: list[dict], found: list[dict]) -> None:
    assert len(expected) == len(found) > 0
    for step, (one, other) in enumerate(zip(expected, found), 1):
        assert one.keys() == other.keys()
        for key in one:
            assert other[key] == pytest.approx(one[key], abs=TOLERANCE), (step, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "launch"),
    [
        ("finetuning/sft", "ddp"),
        ("finetuning/sft", "zero2"),
        ("finetuning/sft", "zero3"),
        ("rlhf/reward", "ddp"),
    ],
)
def test_two_processes_log_the_losses_of_one(losses, recipe, launch):
    same(losses(recipe, None, 1), losses(recipe, launch, 2))


@pytest.mark.slow
@pytest.mark.parametrize("value_model", ["separate", "shared", "adapter"])
def test_two_processes_make_the_ppo_of_one(losses, value_model):
    """Five updates of two optimizer steps each."""
    options = {"value_model": value_model, "max_steps": 10}
    if value_model == "adapter":
        options["peft"] = "{method: lora, r: 4, target_modules: all-linear}"
    one = losses("rlhf/ppo", None, 1, **options)
    failed = []
    for launch in ("ddp", "zero2", "zero3", "fsdp2"):
        try:
            same(one, losses("rlhf/ppo", launch, 2, **options))
        except AssertionError as error:
            failed.append(f"{launch}: {error}")
    assert not failed
