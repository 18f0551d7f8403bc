"""Data parallelism for people: loss curves that lie on each other, how far they are apart, and the time of buckets."""

from pathlib import Path
from typing import Any

from recipes.core.files import write_atomically


def draw(
    losses: dict[str, list[float]],
    one: str,
    tolerance: float,
    timings: dict[int, dict[str, list]],
    caps: list[float],
    path: Path,
) -> None:
    """Three plots beside each other.

    Args:
        losses: loss of each step, by what trained.
        one: the first name among them, which the others are held against.
        timings: what `gradient_averaging.step_seconds` found, by the number of processes.
        caps: sizes of the buckets in MiB, in the order of the timings.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for index, (name, curve) in enumerate(losses.items()):
        color = "lightgrey" if name == one else f"C{index - 1}"
        width = 2 * (len(losses) - index) - 1  # the lines lie on each other: each is thinner than the one below it
        left.plot(curve, color=color, linewidth=width, label=name)
        if name != one:
            apart = [abs(a - b) for a, b in zip(losses[one], curve)]
            middle.plot(apart, color=color, linewidth=width / 2, label=f"{name}, at most {max(apart):.1e}")
    left.set(title="Losses with the same global batch", xlabel="optimiser step", ylabel="loss, nats a byte")
    middle.axhline(tolerance, color="black", linestyle=":", label=f"allowed, {tolerance:g}")
    middle.set_yscale("symlog", linthresh=1e-7)
    middle.set_ylim(0, 100 * tolerance)
    middle.set(title=f"How far from {one}", xlabel="optimiser step", ylabel="difference of the losses")
    _draw_buckets(right, timings, caps)
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _draw_buckets(axes: Any, timings: dict[int, dict[str, list]], caps: list[float]) -> None:
    places = range(len(caps))
    for index, (size, found) in enumerate(timings.items()):
        milliseconds = [1e3 * each for each in found["seconds"]]
        axes.plot(places, milliseconds, "-o", color=f"C{index}", label=f"{size} processes")
        axes.axhline(1e3 * found["apart"], color=f"C{index}", linestyle=":", label=f"{size}, nothing averaged")
    buckets = next(iter(timings.values()))["buckets"]
    axes.set_xticks(places, [f"{cap:g}\n{count}" for cap, count in zip(caps, buckets)])
    axes.set_ylim(bottom=0)
    axes.set(
        title="Forward, backward and averaging",
        xlabel="size of a bucket, MiB (0: one a parameter)\nnumber of buckets",
        ylabel="milliseconds a step",
    )
