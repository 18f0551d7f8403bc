"""Writes docs/planner.md: the planner's errors, measured here and against published runs, and its plans for large models."""

import io
import json
import statistics
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import MptConfig

from recipes.core.catalog import CONFIGS, ROOT
from recipes.core.files import read_json, write_text
from recipes.planner import hardware
from recipes.planner.architecture import Adapter, Architecture
from recipes.planner.hardware import GIB, Cluster
from recipes.planner.layouts import Layout
from recipes.planner.memory import memory
from recipes.planner.reading import find_architecture
from recipes.planner.speed import speed
from recipes.planner.workload import Workload
from scripts.bench.plan import CASES, MEASURED, predictions

PAGE, TEMPLATE = ROOT / "docs" / "planner.md", Path(__file__).with_name("plan_page.md")
PUBLISHED = Path(__file__).with_name("plan_published.yaml")
FACTOR = 1.5  # off by more than this needs a reason
SCALES = {
    size: ["plan", f"pretraining/causal/llama-{size}", "--gpus", gpus, "--gpu", "h100-80gb", "--tokens", tokens]
    for size, gpus, tokens in (("7b", "8", "140e9"), ("70b", "64", "1.4e12"), ("405b", "1024", "8.1e12"))
}


@dataclass(frozen=True)
class Row:
    """A published figure beside the planner's, both in the unit of their table."""

    what: str
    published: float
    predicted: float
    source: str
    remarks: str
    explained: bool

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1

    @property
    def far_off(self) -> bool:
        return max(self.predicted / self.published, self.published / self.predicted) > FACTOR


def run_of(run: dict[str, Any]) -> tuple[Workload, Layout, Cluster]:
    """A run of published.yaml.

    Its keys: `model` (a name of architectures.yaml) or `config` (fields of an MPT's); `gpu`, `gpus`, `sharding`;
    `sequences` and `length` of a micro-batch, `accumulation`; `weights` (their dtype), `bf16` (autocast, or DeepSpeed's),
    `quantised`, `lora` and its dtype `lora_in`; `checkpointing`, `attention`, `optimizer`, `loss`, `sync_each_batch` as in
    `Workload`.
    """
    if "config" in run:
        architecture = Architecture("MPT", MptConfig(vocab_size=50368, max_seq_len=run["length"], **run["config"]))
    else:
        architecture = find_architecture(run["model"])
    adapter = None
    if "lora" in run:
        in_float32 = run.get("lora_in", "float32") == "float32" and "quantised" not in run
        adapter = Adapter(json.dumps({"method": "lora", **run["lora"]}), in_float32)
    workload = Workload(
        name="",
        architecture=architecture,
        adapter=adapter,
        weights=getattr(torch, run["weights"]),
        quantised=run.get("quantised"),
        sync_each_batch=run.get("sync_each_batch", False),
        **{key: run[key] for key in ("sequences", "length", "accumulation", "bf16", "checkpointing")},
        **{key: run[key] for key in ("attention", "optimizer", "loss")},
    )
    return workload, Layout(run["sharding"], run["gpus"]), hardware.cluster(run["gpu"], run["gpus"])


def published() -> dict[str, list[Row]]:
    """The rows of each table: memory in GiB of a GPU, and tokens a second of a GPU."""
    known = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    tables: dict[str, list[Row]] = {"memory": [], "speed": []}
    for group in known["groups"]:
        for entry in group["rows"]:
            run, entry = known["defaults"] | group["run"] | entry.get("run", {}), group | entry
            workload, layout, cluster = run_of(run)
            if "tokens" in entry:
                figure, predicted = entry["tokens"], speed(workload, layout, cluster).tokens_a_second / cluster.gpus
            else:
                figure = entry["gib"] if "gib" in entry else entry["gb"] * 1e9 / GIB
                found = memory(workload, layout, cluster)
                predicted = (found.total - (0 if entry.get("counts") == "device" else found.overhead)) / GIB
            where = f"{layout.name}, {cluster.gpus:,} × {cluster.gpu.name}" if cluster.gpus > 1 else cluster.gpu.name
            if cluster.gpus == 1 and layout.sharding != "ddp":
                where = f"{layout.sharding}, {where}"
            what = f"{entry['name']}, {where}, {run['sequences']} × {run['length']:,} tokens"
            what += ", checkpointing" if run["checkpointing"] else ""
            assumed = f"assumed: {entry['assumed']}" if "assumed" in entry else ""
            remarks = "; ".join(text for text in (entry.get("reason"), assumed) if text)
            row = Row(what, figure, predicted, entry["source"], remarks, "reason" in entry)
            tables["speed" if "tokens" in entry else "memory"].append(row)
    return tables


def published_table(rows: list[Row], unit: str, digits: int) -> str:
    """One line a row, with its error, and the reason for a large one."""
    lines = [f"| run | {unit} | planned | error | |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        address, _, note = row.source.partition(" (")
        source = f"[source]({address})" + (f" ({note}" if note else "") if address.startswith("http") else row.source
        lines.append(
            f"| {row.what} | {row.published:,.{digits}f} | {row.predicted:,.{digits}f} | {row.error:+.0%} "
            f"| {source}{'; ' + row.remarks if row.remarks else ''} |"
        )
    return "\n".join(lines)


def median_error(errors: list[float]) -> str:
    return f"{statistics.median(map(abs, errors)):.1%}"


def measured_table(record: dict[str, Any], planned: dict[str, dict[str, Any]]) -> tuple[str, list[float], list[float]]:
    """One line a case that was measured here, and the errors of memory and of traffic."""
    lines = [
        "| case | processes | peak MiB | planned | error | highest at | MB sent a step | planned | error |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    memory_errors, sent_errors = [], []
    for case in CASES:
        if case.name not in record["rows"]:
            continue
        found, plan = record["rows"][case.name], planned[case.name]
        memory_errors.append(plan["mib"] / found["mib"] - 1)
        sent = "– | – | –"
        if case.processes > 1:
            sent_errors.append(plan["sent_mb"] / found["sent_mb"] - 1)
            sent = f"{found['sent_mb']:.1f} | {plan['sent_mb']:.1f} | {sent_errors[-1]:+.1%}"
        lines.append(
            f"| `{case.recipe}`, {case.what} | {case.processes} | {found['mib']:.0f} | {plan['mib']:.0f} "
            f"| {memory_errors[-1]:+.1%} | {plan['moment']} | {sent} |"
        )
    return "\n".join(lines), memory_errors, sent_errors


def output_of(words: list[str]) -> str:
    """What the program prints for these words."""
    from recipes.__main__ import dispatch

    with redirect_stdout(io.StringIO()) as printed:
        dispatch(words)
    return printed.getvalue().strip()


def write_page() -> None:
    """Fills the page's template."""
    record, tables = read_json(MEASURED), published()
    machine = record["hardware"]
    measured, memory_errors, sent_errors = measured_table(record, predictions(record["overhead_mib"]))
    fields = {
        "measured": measured,
        "measured_memory": median_error(memory_errors),
        "measured_sent": median_error(sent_errors),
        "overhead": f"{record['overhead_mib']:.0f}",
        "cases": str(len(memory_errors)),
        "machine": f"{machine['processor']}, {machine['cores']} cores",
        "memory": published_table(tables["memory"], "GiB", 1),
        "speed": published_table(tables["speed"], "tokens/s a GPU", 0),
        **{f"{kind}_error": median_error([row.error for row in found]) for kind, found in tables.items()},
        **{f"{kind}_rows": str(len(found)) for kind, found in tables.items()},
    }
    for name, words in SCALES.items():
        fields[f"config_{name}"] = (CONFIGS / f"{words[1]}.yaml").read_text(encoding="utf-8").strip()
        words = [*words, "--plot", f"results/bench/plan-{name}.png"]
        fields[f"plan_{name}"] = f"$ python -m recipes {' '.join(words)}\n{output_of(words)}"
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, text in fields.items():
        page = page.replace("{{" + name + "}}", text)
    write_text(PAGE, page)
    for name in ("measured_memory", "measured_sent", "memory_error", "speed_error"):
        print(f"median {name.replace('_', ' ')}: {fields[name]}")
    unexplained = [row.what for found in tables.values() for row in found if row.far_off and not row.explained]
    print(f"{PAGE}" + "".join(f"\nno reason for: {what}" for what in unexplained))
