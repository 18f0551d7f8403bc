"""What the tensor-parallel runs show: deviations from one process, memory and traffic of a rank against the formulas."""

from pathlib import Path
from typing import Any

from recipes.core import UserError
from recipes.core.files import write_atomically
from recipes.distributed.deviation import deviation, largest_deviation
from recipes.distributed.small_llama import SmallLlamaTask
from recipes.distributed.split_linear import join
from recipes.distributed.tensor_step import BY_HAND, BY_LIBRARY, parameter_formula, traffic_formula

MIB = 2**20
PARTS = ("loss", "logits", "gradients")


def check_gpus(processes: list[int]) -> None:
    """Raise a UserError where transformers' plan would ask for GPUs that are not there."""
    import torch

    gpus = torch.cuda.device_count()
    if 0 < gpus < max(processes):
        raise UserError(
            f"'processes': transformers' plan gives each process its own GPU and this machine has {gpus}; set "
            f"'processes' to at most {gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES="
        )


def figures(task: SmallLlamaTask, worlds: dict[int, list[dict[str, dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One row for each plan and world: deviations, MiB of parameters and MiB sent a step by the fullest rank."""
    rows = []
    for plan in (BY_HAND, BY_LIBRARY):
        one = worlds[1][0][plan]
        for processes, ranks in worlds.items():
            ranks = [rank[plan] for rank in ranks]
            gradients = ranks[0]["gradients"]  # the library's are whole on every rank
            if plan == BY_HAND and processes > 1:
                gradients = {name: join(name, [rank["gradients"][name] for rank in ranks]) for name in gradients}
            rows.append(
                {
                    "plan": plan,
                    "processes": processes,
                    "loss_deviation": max((rank["loss"] - one["loss"]).abs().item() for rank in ranks),
                    "logits_deviation": max(deviation(one["logits"], rank["logits"]) for rank in ranks),
                    "gradients_deviation": largest_deviation(one["gradients"], gradients),
                    "parameters_mib": max(rank["parameter_bytes"] for rank in ranks) / MIB,
                    "parameters_formula_mib": parameter_formula(task, plan, processes) / MIB,
                    "sent_mib": max(rank["sent_bytes"] for rank in ranks) / MIB,
                    "sent_formula_mib": traffic_formula(task, plan, processes) / MIB,
                    "calls": ranks[0]["calls"],
                }
            )
    return rows


def summary(figures: list[dict[str, Any]]) -> dict[str, float]:
    """The largest deviation of each kind, from one process and from the formulas."""
    several = [row for row in figures if row["processes"] > 1]
    found = {f"{part}_deviation": max(row[f"{part}_deviation"] for row in several) for part in PARTS}
    for part in ("parameters", "sent"):
        found[f"{part}_over_formula"] = max(
            (row[f"{part}_mib"] / row[f"{part}_formula_mib"] for row in several), key=lambda ratio: abs(ratio - 1)
        )
    return found


def table(figures: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Tensor parallelism against one process",
        "",
        "One forward and backward in fp32. The loss differs by so many nats; logits and gradients by so much of their",
        "largest value. Parameters and bytes sent (each collective a ring) are one rank's, beside what the formula says.",
        "",
        "| plan | processes | loss | logits | gradients | parameters, MiB | formula | sent a step, MiB | formula "
        "| collectives |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in figures:
        apart = [f"{row[f'{part}_deviation']:.1e}" if row["processes"] > 1 else "–" for part in PARTS]
        measured = [
            f"{row[key]:.2f}" for key in ("parameters_mib", "parameters_formula_mib", "sent_mib", "sent_formula_mib")
        ]
        calls = ", ".join(f"{count} {name}" for name, count in row["calls"].items()) or "none"
        lines.append(f"| {' | '.join([row['plan'], str(row['processes']), *apart, *measured, calls])} |")
    return "\n".join(lines) + "\n"


def draw(figures: list[dict[str, Any]], path: Path) -> None:
    """Parameters and traffic of a rank for each number of processes: measured as bars, the formula as a line across."""
    from matplotlib.figure import Figure

    counts = sorted({row["processes"] for row in figures})
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = {
        "parameters": ("What a rank holds", "parameters, MiB"),
        "sent": ("What a rank sends in a step, forward and backward", "sent round rings, MiB"),
    }
    for axes, (part, (title, label)) in zip(figure.subplots(1, 2), panels.items()):
        for plan, shift, color in ((BY_HAND, -0.2, "tab:blue"), (BY_LIBRARY, 0.2, "tab:orange")):
            rows = {row["processes"]: row for row in figures if row["plan"] == plan}
            places = [index + shift for index in range(len(counts))]
            measured = [rows[count][f"{part}_mib"] for count in counts]
            bars = axes.bar(places, measured, 0.38, color=color, alpha=0.75, label=f"{plan}, measured")
            axes.bar_label(bars, fmt="{:.3g}", fontsize=8, padding=2)
            for place, count in zip(places, counts):
                expected = rows[count][f"{part}_formula_mib"]
                axes.plot([place - 0.19, place + 0.19], [expected] * 2, color="black", linewidth=2)
        axes.plot([], [], color="black", linewidth=2, label="formula")
        axes.set_xticks(range(len(counts)), counts)
        axes.set(title=title, xlabel="processes", ylabel=label)
        axes.margins(y=0.25)
        axes.grid(alpha=0.25, axis="y")
        axes.legend(fontsize=8, loc="upper right" if part == "parameters" else "upper left")
    figure.suptitle("Tensor parallelism of a LLaMA: less to hold, more to send")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
