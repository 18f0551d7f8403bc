"""Committed results: what `runs/` measured goes to `results/`, and the table in its README is built from there."""

import shutil
from pathlib import Path
from typing import Any

from recipes.core.catalog import ROOT, configs
from recipes.core.errors import UserError
from recipes.core.files import read_json, write_atomically, write_json, write_text

RESULTS = ROOT / "results"
HEADER = """<!-- built by `make results`, do not edit -->
# What was measured

Each row by the command beside it; the files hold settings, versions, commit and hardware. In brackets the baseline that
a figure is to be held against.

"""
KEPT = ("curves.png", "plot.png", "table.md", "explain.md", "frontier.png", "calibration.png", "samples.md")
TOLERANCE = 0.05  # of the committed figure, or absolute where it is below 1: other processors round differently


def publish(runs_dir: Path) -> list[str]:
    """Copy the results of every finished run, of `make rlhf` and of several seeds; returns the names of the runs."""
    names = []
    for config in configs():
        result = read_json(runs_dir / config.name / "result.json")
        if result:
            write_json(RESULTS / f"{config.name}.json", result)
            for name in KEPT:
                if (source := runs_dir / config.name / name).exists():
                    _keep(source, RESULTS / config.name / name)
            names.append(config.name)
    for folder in sorted(runs_dir.glob("*-seeds")):
        seeds = read_json(folder / "result.json")
        if seeds:
            write_json(RESULTS / "rlhf" / f"seeds-{seeds['variant']}.json", seeds)
    chain = read_json(runs_dir / "rlhf" / "result.json")
    if chain:
        _keep(runs_dir / "rlhf" / "report.md", RESULTS / "rlhf" / f"report-{chain['variant']}.md")
    return names


def _keep(source: Path, target: Path) -> None:
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def committed() -> dict[str, dict[str, Any]]:
    """Every committed result of a config that exists, by name, in the order of the catalog."""
    found = {config.name: read_json(RESULTS / f"{config.name}.json") for config in configs()}
    return {name: result for name, result in found.items() if result}


def check(runs_dir: Path) -> list[str]:
    """Compare finished runs with the committed results; returns a line for each figure that is off.

    Raises:
        UserError: nothing to compare.
    """
    pairs = {name: (result, read_json(runs_dir / name / "result.json")) for name, result in committed().items()}
    pairs = {name: pair for name, pair in pairs.items() if pair[1]}
    if not pairs:
        raise UserError(f"no run in {runs_dir} has a committed result to be held against; run one first")
    off = []
    for name, (old, new) in pairs.items():
        for key, expected in _numbers(old["metrics"]).items():
            found = _numbers(new["metrics"]).get(key)
            if _is_a_time(key):
                continue
            if found is None or abs(found - expected) > TOLERANCE * max(1.0, abs(expected)):
                off.append(f"{name}: {key} is {found}, committed {expected}")
    return off


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}


def _is_a_time(key: str) -> bool:
    """Whether a figure is read off a clock, and so another one on every machine."""
    return "milliseconds" in key


def table() -> str:
    """One row a committed result: its figures beside their baselines, time, memory, and the command."""
    rows = ["| config | measured (baseline) | seconds | MiB | command |", "| --- | --- | ---: | ---: | --- |"]
    for name, result in committed().items():
        baselines = result["baselines"]
        figures = [
            f"{key.replace('_', ' ')} {_short(value)}" + (f" ({_short(baselines[key])})" if key in baselines else "")
            for key, value in _numbers(result["metrics"]).items()
        ]
        figures += [
            f"{key.replace('_', ' ')}: {_short(value)}"
            for key, value in baselines.items()
            if key not in result["metrics"]
        ]
        link = f"[{name}]({name}.json)"
        command = f"`python -m recipes run {name}`"
        rows.append(
            f"| {link} | {', '.join(figures)} | {result['seconds']:.0f} | {result['peak_memory_mib']:.0f} | {command} |"
        )
    return "\n".join(rows)


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def write_table() -> None:
    """Write all committed results as one table, `results/README.md`."""
    write_text(RESULTS / "README.md", f"{HEADER}{table()}\n")
