"""What the expert-parallel runs show: deviations from one process, balance of the experts' load, table and plot."""

from pathlib import Path
from typing import Any

import torch

from recipes.core.files import write_atomically
from recipes.distributed.deviation import largest_deviation
from recipes.distributed.experts import EXPERT_WEIGHTS


def whole(steps: list[dict[str, Any]]) -> dict[str, dict[str, torch.Tensor]]:
    """The results of all ranks as one process would have them: output (G, S, M), auxiliary loss, each gradient."""
    gradients = {
        name: torch.cat([step["gradients"][name] for step in steps]) if name.endswith(EXPERT_WEIGHTS) else gradient
        for name, gradient in steps[0]["gradients"].items()
    }
    return {
        "output": {"": torch.cat([step["output"] for step in steps])},
        "loss": {"": steps[0]["loss"]},
        "auxiliary loss": {"": steps[0]["auxiliary_loss"]},
        "gradients": gradients,
    }


def deviations(one: list[dict[str, Any]], several: list[dict[str, Any]]) -> dict[str, float]:
    """Largest difference of each part, over the largest absolute value of what is compared."""
    expected, found = whole(one), whole(several)
    return {part: largest_deviation(tensors, found[part]) for part, tensors in expected.items()}


def balance(trained: dict[str, Any]) -> dict[str, float]:
    """Held-out loss in nats a byte, share of tokens that reach no expert, and how uneven the experts' load is."""
    load = torch.tensor(trained["load"])
    return {
        "held_out_loss": trained["held_out_loss"],
        "overflowed_tokens": trained["overflowed"],
        "busiest_expert_over_mean": (load.max() / load.mean()).item(),
        "load_variation": (load.std(correction=0) / load.mean()).item(),
    }


def table(steps: dict[int, list[dict[str, Any]]], deviations: dict[int, dict[str, float]]) -> str:
    """Each world's deviations from one process and what a rank holds, as Markdown."""
    parts = list(next(iter(deviations.values())))
    lines = [
        "# Expert parallelism against one process",
        "",
        "Largest difference over the largest value of what is compared, after one forward and backward in fp32.",
        "",
        f"| processes | {' | '.join(parts)} | parameters a rank, KiB |",
        "| ---: |" + " ---: |" * (len(parts) + 1),
    ]
    for count, ranks in steps.items():
        found = [f"{deviations[count][part]:.1e}" if count in deviations else "–" for part in parts]
        lines.append(f"| {count} | {' | '.join(found)} | {ranks[0]['parameter_bytes'] / 1024:,.0f} |")
    return "\n".join(lines) + "\n"


def draw(balanced: dict[str, Any], free: dict[str, Any], factors: list[float], processes: int, path: Path) -> None:
    """Load of each expert, and tokens that reach no expert against the capacity factor, with and without the loss."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    runs = {"without auxiliary loss": (free, "tab:orange"), "with auxiliary loss": (balanced, "tab:blue")}
    experts = len(balanced["load"])
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for shift, (label, (trained, color)) in zip((-0.2, 0.2), runs.items()):
        left.bar([index + shift for index in range(experts)], trained["load"], 0.4, label=label, color=color)
        right.plot(factors, trained["overflow"], marker="o", label=label, color=color)
    least = [max(0.0, 1 - 2 * factor) for factor in factors]  # fewer places than tokens
    right.plot(factors, least, color="black", linestyle="--", linewidth=1, label="least possible: 1 - 2·factor")
    left.axhline(1 / experts, color="black", linestyle="--", linewidth=1, label=f"even: 1/{experts}")
    for boundary in range(1, processes):
        left.axvline(boundary * experts / processes - 0.5, color="grey", linewidth=0.8, linestyle=":")
    here = experts // processes
    left.set_xticks(range(experts), [f"{index}\nrank {index // here}" for index in range(experts)], fontsize=8)
    left.set(title="Who is asked: first choices of held-out tokens", xlabel="expert", ylabel="share of tokens")
    right.set(
        title="Who is turned away: tokens that reach no expert",
        xlabel="capacity factor (1: two choices of each token fit)",
        ylabel="share of tokens",
        ylim=(0, None),
    )
    for axes in (left, right):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(alpha=0.25, axis="y")
        axes.legend(fontsize=8)
    figure.suptitle(f"GShard's auxiliary loss and the load of {experts} experts on {processes} processes")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))
