"""Memory of sharded states for people: each strategy beside its formula, as rows, as a table and as bars."""

from pathlib import Path
from typing import Any

from recipes.core.files import write_atomically
from recipes.distributed.sharded_memory import KINDS, formula, master_copy

NAMES = {"zero0": "ZeRO-0", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2"}


def rows(ranks: dict[int, list[dict]], strategies: list[str], precisions: list[str]) -> list[dict[str, Any]]:
    """One row for each precision, world and strategy: bytes a parameter on the rank that holds most, and the errors.

    Args:
        ranks: what `sharded_memory.measure` found on each rank, by the number of processes.
    """
    found = []
    for precision in precisions:
        for size, each_rank in ranks.items():
            for strategy in strategies:
                of = [rank[precision][strategy] for rank in each_rank]
                fullest = max(of, key=lambda held: sum(held[kind] for kind in KINDS))
                count = fullest["model_parameters"]
                per_parameter = {key: fullest[key] / count for key in (*KINDS, "gathered", "in_step", "other")}
                measured = sum(per_parameter[kind] for kind in KINDS)
                expected = formula(strategy, precision, size)
                copied = sum(expected.values()) + master_copy(strategy, precision, size)
                found.append(
                    {
                        "precision": precision,
                        "processes": size,
                        "strategy": strategy,
                        "model_parameters": count,
                        **per_parameter,
                        "measured": measured,
                        "formula": expected,
                        "error": measured / sum(expected.values()) - 1,
                        "master_copy": master_copy(strategy, precision, size),
                        "error_with_master_copy": measured / copied - 1,
                    }
                )
    return found


def to_markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"# Bytes a rank holds for each of {rows[0]['model_parameters']:,} parameters",
        "",
        "Measured: storages of the real tensors, on the rank that holds most, the most of each kind at any moment of the",
        "second step's backward pass; the formula's figure in brackets. In full precision DeepSpeed keeps a master copy of",
        "the rank's part from ZeRO-1 on (4/p), which the paper does not need: the last error is against the formula with",
        "this copy. What remains is a bucket of gradients on its way, and padding. Beside it, no part of the formula:",
        "parameters gathered for a layer at work; all states when the optimizer begins its step, for which DeepSpeed makes",
        "4-byte gradients; all other tensors after the backward pass.",
        "",
        "| precision | p | strategy | parameters | gradients | optimizer | together | formula | error | error with copy "
        "| gathered | in the step | other |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        kinds = " | ".join(f"{row[kind]:.2f} ({row['formula'][kind]:g})" for kind in KINDS)
        lines.append(
            f"| {row['precision']} | {row['processes']} | {NAMES[row['strategy']]} | {kinds} | {row['measured']:.2f} | "
            f"{sum(row['formula'].values()):g} | {row['error']:+.1%} | {row['error_with_master_copy']:+.1%} | "
            f"{row['gathered']:.2f} | {row['in_step']:.2f} | {row['other']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each strategy, stacked by kind, with a line where the formula stands; one plot a precision and world."""
    from matplotlib.figure import Figure

    precisions, sizes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("precision", "processes"))
    figure = Figure(figsize=(1.5 + 4.5 * len(sizes), 1 + 3.2 * len(precisions)), layout="constrained")
    grid = figure.subplots(len(precisions), len(sizes), sharey=True, squeeze=False)
    words = {"full": "fp32", "mixed": "bf16 with fp32 master weights"}
    for precision, line in zip(precisions, grid):
        for size, axes in zip(sizes, line):
            shown = [row for row in rows if (row["precision"], row["processes"]) == (precision, size)]
            _draw_bars(axes, shown)
            axes.set_title(f"{words[precision]}, {size} processes")
        line[0].set_ylabel("bytes a parameter on a rank")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle("Model states on one rank: real tensors and the formulas of the ZeRO paper")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _draw_bars(axes: Any, shown: list[dict[str, Any]]) -> None:
    places, bottom = range(len(shown)), [0.0] * len(shown)
    for kind in KINDS:
        heights = [row[kind] for row in shown]
        axes.bar(places, heights, 0.6, bottom, label=kind)
        bottom = [below + height for below, height in zip(bottom, heights)]
    for index, row in enumerate(shown):
        expected, copy = sum(row["formula"].values()), row["master_copy"]
        span = (index - 0.42, index + 0.42)
        axes.hlines(expected, *span, color="black", linewidth=2, label="formula" if not index else None)
        if copy:
            axes.hlines(expected + copy, *span, color="black", linewidth=1.2, linestyle=":")
        axes.annotate(f"{row['error']:+.1%}", (index, max(row["measured"], expected + copy)), (0, 3), ha="center",
                      textcoords="offset points", fontsize=8)  # fmt: skip
    if any(row["master_copy"] for row in shown):
        axes.plot([], [], color="black", linewidth=1.2, linestyle=":", label="and DeepSpeed's fp32 copy")
    axes.set_xticks(places, [NAMES[row["strategy"]] for row in shown])
    axes.set_ylim(0, 18)
    axes.grid(axis="y", alpha=0.25)
