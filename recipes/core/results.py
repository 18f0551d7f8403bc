"""What a run leaves for programs and people: `result.json` and `curves.png`."""

import importlib.metadata
import math
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

from recipes.core.catalog import ROOT
from recipes.core.files import write_atomically

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "tokenizers",
)


def versions() -> dict[str, str]:
    """Python's version and that of each library that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of this checkout, marked `-dirty` if tracked files differ from it; None outside git."""
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, Any]:
    """What the figures were measured on: processor, cores, memory in GiB, accelerators, processes."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text().split("\n\n")[0].splitlines())
        facts = {name.strip(): value.strip() for name, _, value in pairs}
        processor = facts.get("model name", processor)
        if {"cpu family", "model"} <= facts.keys():  # virtual machines name all of a maker's generations alike
            processor += f" (family {facts['cpu family']}, model {facts['model']})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": memory and round(memory, 1),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def peak_memory_mib() -> float:
    """Peak of the accelerator's allocated memory where there is one, else of this process's resident memory."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 1024 if platform.system() == "Linux" else 1  # Linux counts KiB, macOS bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def draw_curves(history: list[dict[str, float]], title: str, path: Path) -> None:
    """One small plot for each logged quantity against the optimiser step; held-out points over training's line.

    Args:
        history: `trainer.state.log_history`.
    """
    skipped = {"epoch", "step", "total_flos", "num_tokens", "num_input_tokens_seen", "episodes"}
    timing = ("runtime", "_per_second", "train_loss")
    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for entry in history:
        for key, value in entry.items():
            name = key.removeprefix("eval_")
            if (
                name in skipped
                or key.endswith(timing)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
            ):
                continue
            kind = "held out" if key.startswith("eval_") else "training"
            series.setdefault(name, {}).setdefault(kind, []).append((entry["step"], value))
    # A quantity that never changes (a constant learning rate, a zero penalty) says nothing on a plot.
    series = {
        name: kinds for name, kinds in series.items() if len({y for points in kinds.values() for _, y in points}) > 1
    }
    if not series:
        return

    from matplotlib.figure import Figure

    columns = min(4, len(series))
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.5 * rows + 0.4), layout="constrained")
    for index, (name, kinds) in enumerate(series.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        for kind, points in kinds.items():
            style = (
                {"marker": "o", "color": "tab:orange"}
                if kind == "held out"
                else {"color": "tab:blue", "linewidth": 1.3}
            )
            axes.plot(*zip(*points), label=kind, **style)
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
        if len(kinds) > 1:
            axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel("optimiser step", fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
