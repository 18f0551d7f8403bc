"""The planner held against what can be measured here, and against what others have published.

`measure` trains small models through the recipes' own scripts and the profiles of configs/launch, two to four processes on
this machine's CPU, and sets each process's peak memory and traffic beside the plan for the same config. `page` writes
docs/planner.md: that table, one of the published runs of scripts/bench/plan_published.yaml, and the plans for models that
nobody here can train.

Run: python -m scripts.bench.plan measure [--cases NAME …]
     python -m scripts.bench.plan page
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from recipes.core.catalog import ROOT
from recipes.core.errors import UserError, did_you_mean, report_user_errors
from recipes.core.files import read_json, write_json, write_text

MEASURED = ROOT / "results" / "bench" / "plan.json"
VOCABULARY, MIB = 8192, 2**20
LLAMA = {"model_type": "llama", "max_position_embeddings": 512}
SMALL = LLAMA | {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8, "num_attention_heads": 10}
TINY = LLAMA | {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
STEPS = 4


@dataclass(frozen=True)
class Case:
    """One config under one profile; without a profile one process, without accelerate."""

    what: str
    profile: str | None
    processes: int
    recipe: str = "pretraining/causal"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.recipe}, {self.what}"


LONG = {"max_length": 256, "per_device_train_batch_size": 4}
LORA = {"peft": {"method": "lora", "r": 16, "target_modules": "all-linear"}}
REDUCED = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
SFT = {"max_length": 256, "per_device_train_batch_size": 2}
PPO = {"reward_funcs": ["{data}/scorer"], "response_length": 64, "num_ppo_epochs": 1}
OVERHEAD = Case("hardly any model", None, 1, settings={"model_config": TINY})
CASES = [
    Case("one process", None, 1),
    Case("ddp", "ddp", 2),
    Case("zero1", "zero1", 2),
    Case("zero2", "zero2", 2),
    Case("zero2, 4 processes", "zero2", 4),
    Case("zero3", "zero3", 2),
    Case("zero3, 4 processes", "zero3", 4),
    Case("fsdp2", "fsdp2", 2),
    Case("fsdp2, 4 processes", "fsdp2", 4),
    Case("ddp, 2 micro-batches", "ddp", 2, settings={"gradient_accumulation_steps": 2}),
    Case("fsdp2, 2 micro-batches", "fsdp2", 2, settings={"gradient_accumulation_steps": 2}),
    Case("fsdp2, 2 micro-batches, each reduced", "fsdp2", 2, settings={"gradient_accumulation_steps": 2} | REDUCED),
    Case("ddp, 1,024 tokens", "ddp", 2, settings=LONG),
    Case("zero3, 1,024 tokens", "zero3", 2, settings=LONG),
    Case("ddp, 1,024 tokens, checkpointing", "ddp", 2, settings=LONG | {"activation_checkpointing": True}),
    Case("ddp, 1,024 tokens, eager attention", "ddp", 2, settings=LONG | {"attn_implementation": "eager"}),
    Case("ddp, bf16", "ddp", 2, settings={"bf16": True}),
    Case("zero2, bf16", "zero2", 2, settings={"bf16": True}),
    Case("zero3, bf16", "zero3", 2, settings={"bf16": True}),
    Case("fsdp2, bf16", "fsdp2", 2, settings={"bf16": True}),
    Case("zero2", "zero2", 2, "finetuning/sft", SFT),
    Case("LoRA, ddp", "ddp", 2, "finetuning/sft", SFT | LORA),
    Case("LoRA, fsdp2", "fsdp2", 2, "finetuning/sft", SFT | LORA),
    Case("zero2", "zero2", 2, "rlhf/reward", {"max_length": 256, "per_device_train_batch_size": 2}),
    Case("value separate, ddp", "ddp", 2, "rlhf/ppo", PPO | {"value_model": "separate"}),
    Case("value separate, zero3", "zero3", 2, "rlhf/ppo", PPO | {"value_model": "separate"}),
    Case("value separate, fsdp2", "fsdp2", 2, "rlhf/ppo", PPO | {"value_model": "separate"}),
    Case("value shared, zero2", "zero2", 2, "rlhf/ppo", PPO | {"value_model": "shared"}),
]


# ----------------------------------------------------------------------------------------------------------- measuring
def prepare(folder: Path) -> None:
    """A tokenizer of words, texts of random words as long as a row, and small models, in `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    rng = random.Random(0)

    def text(length: int) -> str:
        return " ".join(f"w{rng.randrange(2, VOCABULARY)}" for _ in range(length))

    files = {
        "text": lambda: {"text": text(300)},
        "answers": lambda: {"prompt": text(64), "completion": text(191)},  # 256 tokens with the end
        "pairs": lambda: {"prompt": text(64), "chosen": text(191), "rejected": text(191)},
        "prompts": lambda: {"prompt": text(64)},
    }
    for name, row in files.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row()) + "\n" for _ in range(200)))
    torch.manual_seed(0)
    settings = {key: value for key, value in SMALL.items() if key != "model_type"}
    config = LlamaConfig(**settings, vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1, num_labels=1)
    for name, cls in (("model", LlamaForCausalLM), ("scorer", LlamaForSequenceClassification)):
        cls(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def config_of(case: Case, data: Path) -> dict[str, Any]:
    """The case's config, on the data in this folder."""
    rows = {"pretraining/causal": "text", "finetuning/sft": "answers", "rlhf/reward": "pairs", "rlhf/ppo": "prompts"}
    config = {
        "dataset_name": f"{data}/{rows[case.recipe]}.jsonl",
        "dataset_test_split": "test" if case.recipe != "rlhf/ppo" else None,
        "output_dir": f"{data}/run",
        "overwrite": "always",
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "activation_checkpointing": False,
    }
    if case.recipe == "pretraining/causal":
        config |= {"model_config": SMALL, "tokenizer_name_or_path": f"{data}/model", "max_length": 128}
    else:
        config |= {"model_name_or_path": f"{data}/{'scorer' if case.recipe == 'rlhf/reward' else 'model'}"}
    if case.recipe != "rlhf/ppo":
        config |= {"test_split_size": 0.01}
    config |= case.settings
    return json.loads(json.dumps(config).replace("{data}", str(data)))


def measure(case: Case, data: Path) -> dict[str, Any]:
    """Trains the case and returns what its hungriest process took: peak MiB over its imports, and bytes sent in a step.

    Raises:
        UserError: the run failed; its output goes to stderr.
    """
    file = data / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(case, data)))
    out = data / "measured"
    for old in data.glob("measured.*"):
        old.unlink()
    # Every larger piece of memory is the kernel's and goes back to it, so that what is resident is what is alive.
    heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    worker = ["-m", "scripts.bench.plan_worker", case.recipe, str(out), "--config", str(file)]
    launch = ["-m", "accelerate.commands.launch", "--config_file", f"configs/launch/{case.profile}.yaml"]
    launch = [*launch, "--num_processes", str(case.processes)] if case.profile else []
    done = subprocess.run(
        [sys.executable, *launch, *worker],
        cwd=ROOT,
        env=os.environ | heap | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        raise UserError(f"'{case.name}' failed with exit status {done.returncode}; its output stands above")
    found = [json.loads(path.read_text()) for path in sorted(data.glob("measured.*"))]
    return {
        "mib": max((max(step["peak"] for step in one["steps"]) - one["baseline"]) / MIB for one in found),
        "sent_mb": max(_per_step(one["steps"]) for one in found) / 1e6,
    }


def _per_step(steps: list[dict[str, int]]) -> float:
    return (steps[-1]["sent"] - steps[0]["sent"]) / (len(steps) - 1)


def predict(case: Case, data: Path, overhead_mib: float) -> dict[str, Any]:
    """What the planner says for the case on this machine: MiB at the highest, where, and bytes sent in a step."""
    from recipes.__main__ import command_of
    from recipes.core.catalog import Recipe
    from recipes.planner import hardware, reading
    from recipes.planner.communication import GLOO, traffic
    from recipes.planner.layouts import Layout
    from recipes.planner.memory import memory

    file = data / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(case, data)))
    resolved = command_of(Recipe(case.recipe)).parse(["--config", str(file)])
    workload = reading.workload_of(resolved, prompt_tokens=64)
    layout = Layout(case.profile or "ddp", case.processes)
    cluster = hardware.cluster("h100-80gb", case.processes, 1, overhead_gib=overhead_mib / 1024)
    cluster = replace(cluster, on_cpus=True)
    found = memory(workload, layout, cluster)
    sent = sum(message.sent(GLOO) for message in traffic(workload, layout, cluster))
    return {"mib": found.total / MIB, "moment": found.moment, "sent_mb": sent / 1e6}


def measure_all(names: list[str]) -> None:
    """Measures the cases of these names, all unless named, and merges them into the committed figures."""
    from recipes.core.results import commit, hardware, versions

    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            raise UserError(f"no case '{name}'{did_you_mean(name, known)}")
    record = read_json(MEASURED) or {"rows": {}}
    record["rows"] = {name: row for name, row in record["rows"].items() if name in known}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        prepare(data)
        overhead = record["overhead_mib"] = measure(OVERHEAD, data)["mib"]
        print(f"{OVERHEAD.what}: {overhead:.0f} MiB", flush=True)
        for name in names or known:
            found = record["rows"][name] = measure(known[name], data)
            planned = predict(known[name], data, overhead)
            error = planned["mib"] / found["mib"] - 1
            print(f"{name}: {found['mib']:.0f} MiB, planned {planned['mib']:.0f} ({error:+.1%}); ", end="")
            print(f"{found['sent_mb']:.1f} MB a step, planned {planned['sent_mb']:.1f}", flush=True)
            record |= {"hardware": hardware(), "versions": versions(), "commit": commit()}
            write_json(MEASURED, record)


def predictions(overhead_mib: float) -> dict[str, dict[str, Any]]:
    """The plan for every case, by name; measures nothing."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        return {case.name: predict(case, Path(folder), overhead_mib) for case in CASES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="train small models here and compare")
    measuring.add_argument("--cases", nargs="+", default=[], help="names of cases; default: all")
    commands.add_parser("page", help="write docs/planner.md")
    options = parser.parse_args()
    with report_user_errors():
        if options.command == "measure":
            measure_all(options.cases)
        else:
            from scripts.bench.plan_page import write_page

            write_page()


if __name__ == "__main__":
    main()
