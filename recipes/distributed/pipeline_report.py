"""What the pipelines show: deviations from one process, bubble and memory against the formulas, and their timelines."""

from pathlib import Path
from typing import Any

from recipes.core.files import write_atomically
from recipes.distributed.pipeline_step import SCHEDULES, Outcome, bubble_formula, in_flight_formula, runs

COLORS = {"forward": "#7fb3d5", "backward": "#f5b041"}


def summary(figures: list[dict[str, Any]]) -> dict[str, float]:
    """The largest deviations from one process, from the bubble's formula, and from the count of live micro-batches."""
    return {
        "loss_deviation": max(row["loss_deviation"] for row in figures),
        "gradient_deviation": max(row["gradient_deviation"] for row in figures),
        "bubble_minus_formula": max((row["bubble"] - row["bubble_formula"] for row in figures), key=abs),
        "in_flight_minus_formula": max((row["in_flight"] - row["in_flight_formula"] for row in figures), key=abs),
        "overruns": sum(row["overruns"] for row in figures),
    }


def stretched(forward_ms: float | None) -> str:
    """How the time of the stages came about, for a caption."""
    return (
        f"each forward stretched to {forward_ms:g} ms, each backward to twice that" if forward_ms else "at full speed"
    )


def table(figures: list[dict[str, Any]], forward_ms: float | None) -> str:
    """The rows as Markdown."""
    lines = [
        "# Pipeline parallelism against one process",
        "",
        "One step in fp32. The loss differs by so many nats, gradients by so much of their largest value. The bubble is",
        f"the share of all stages' time in which nothing was computed ({stretched(forward_ms)});",
        "the memory is that of the first stage, in micro-batches whose activations it keeps at once and in their bytes.",
        "",
        "| stages | schedule | micro-batches | loss | gradients | bubble | formula | kept at once | formula | MiB |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in figures:
        lines.append(
            f"| {row['stages']} | {row['schedule']} | {row['micro_batches']} | {row['loss_deviation']:.1e} "
            f"| {row['gradient_deviation']:.1e} | {row['bubble']:.1%} | {row['bubble_formula']:.1%} "
            f"| {row['in_flight']} | {row['in_flight_formula']} | {row['activations_mib']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw(
    figures: list[dict[str, Any]], pipelines: dict[int, list[list[Outcome]]], forward_ms: float | None, path: Path
) -> None:
    """The timelines of the longest pipeline's fullest steps, and bubble and memory against the micro-batches."""
    from matplotlib.figure import Figure

    stages, ranks = max(pipelines.items())
    micro_batches = max(row["micro_batches"] for row in figures)
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    panels = figure.subplot_mosaic(
        [["GPipe", "GPipe"], ["1F1B", "1F1B"], ["bubble", "memory"]], height_ratios=[3, 3, 5]
    )
    for name in SCHEDULES:
        _draw_timeline(panels[name], name, micro_batches, ranks)
    panels["1F1B"].sharex(panels["GPipe"])
    panels["1F1B"].set_xlabel("time, ms")
    panels["GPipe"].legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    _draw_bubble(panels["bubble"], figures)
    _draw_memory(panels["memory"], figures, stages)
    figure.suptitle(f"One training step of a LLaMA cut into {stages} stages, a process each, {stretched(forward_ms)}")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def _draw_timeline(axes: Any, name: str, micro_batches: int, ranks: list[list[Outcome]]) -> None:
    """A row a stage, a box for each micro-batch's forward and backward, in milliseconds from the first."""
    outcomes = [
        next(found for found in rank if (found.schedule, found.micro_batches) == (name, micro_batches))
        for rank in ranks
    ]
    spans = [outcome.spans[-1] for outcome in outcomes]
    start = min(span.began for row in spans for span in row)
    for stage, row in enumerate(spans):
        for span in row:
            left, width = 1000 * (span.began - start), 1000 * (span.ended - span.began)
            label = span.kind if (stage, span.micro_batch) == (0, 0) else None
            axes.barh(stage, width, left=left, height=0.86, color=COLORS[span.kind], edgecolor="white", label=label)
            axes.text(left + width / 2, stage, str(span.micro_batch + 1), ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(ranks)), [f"stage {stage + 1}" for stage in range(len(ranks))])
    axes.invert_yaxis()
    axes.set_facecolor("#f2f2f2")
    axes.set_title(f"{name}: {micro_batches} numbered micro-batches; grey is the bubble", fontsize=10)


def _draw_bubble(axes: Any, figures: list[dict[str, Any]]) -> None:
    """Measured bubbles on the formula's curves, one for each number of stages."""
    from matplotlib import colormaps

    counts = sorted({row["micro_batches"] for row in figures})
    for stages, color in zip(sorted({row["stages"] for row in figures}), colormaps["tab10"].colors):
        curve = range(counts[0], counts[-1] + 1)
        expected = [100 * bubble_formula(stages, count) for count in curve]
        axes.plot(curve, expected, color=color, linewidth=1, label=f"{stages} stages: (p-1)/(m+p-1)")
        for name, marker in (("GPipe", "o"), ("1F1B", "x")):
            rows = [row for row in figures if (row["stages"], row["schedule"]) == (stages, name)]
            axes.plot(
                [row["micro_batches"] for row in rows],
                [100 * row["bubble"] for row in rows],
                marker=marker,
                markersize=8,
                fillstyle="none",
                linestyle="",
                color=color,
                label=f"{stages} stages: {name}, measured",
            )
    axes.set_xticks(counts)
    axes.set(title="The bubble", xlabel="micro-batches m", ylabel="idle share of all stages' time, %", ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)


def _draw_memory(axes: Any, figures: list[dict[str, Any]], stages: int) -> None:
    """Peak of the first stage's live activations in units of one micro-batch's, measured in bytes."""
    counts = sorted({row["micro_batches"] for row in figures})
    for name, color, marker in (("GPipe", "tab:brown", "o"), ("1F1B", "tab:green", "x")):
        rows = [row for row in figures if (row["stages"], row["schedule"]) == (stages, name)]
        curve = [count for count in range(counts[0], counts[-1] + 1) if runs(name, stages, count)]
        formula = "m" if name == "GPipe" else "min(m, p)"
        axes.plot(
            curve,
            [in_flight_formula(name, stages, count) for count in curve],
            color=color,
            linewidth=1,
            label=f"{name}: {formula}",
        )
        axes.plot(
            [row["micro_batches"] for row in rows],
            [row["activations_over_one_micro_batch"] for row in rows],
            color=color,
            marker=marker,
            markersize=8,
            fillstyle="none",
            linestyle="",
            label=f"{name}, measured",
        )
    axes.set_xticks(counts)
    axes.set(
        title=f"Memory of the first of {stages} stages",
        xlabel="micro-batches m",
        ylabel="peak of live activations, in micro-batches",
        ylim=(0, None),
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
