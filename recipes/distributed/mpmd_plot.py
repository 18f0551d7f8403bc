"""SPMD and MPMD for people: what each form learns, and who is at work when."""

import statistics
from pathlib import Path
from typing import Any

from recipes.core.files import write_atomically
from recipes.distributed import timeline

COLORS = {"generate": "tab:blue", "learn": "tab:orange"}
TITLES = {
    "SPMD": "SPMD: every rank generates and learns",
    "MPMD": "MPMD: each waits for the other",
    "MPMD behind": "MPMD with older weights: both at work",
}
SHOWN = 6  # updates, from the middle of the run


def draw(forms: dict[str, dict[str, Any]], timelines: dict[str, list[list[timeline.Span]]], path: Path) -> None:
    """Left the learning curves, with the range over seeds; right a few updates of each form on one scale of time.

    Args:
        forms: `rewards` of each update by seed, `seconds_per_update` and `utilisation`, by the form's name.
        timelines: of both processes, by the form's name.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[2, 3])
    _draw_curves(left.subplots(), forms)
    panels = right.subplots(len(timelines), 1, sharex=True)
    for axes, (name, both) in zip(panels, timelines.items()):
        rows = ("rank 0", "rank 1") if name == "SPMD" else ("rollout", "learner")
        timeline.draw(axes, {row: _few(spans) for row, spans in zip(rows, both)}, COLORS)
        form = forms[name]
        said = f"{1e3 * form['seconds_per_update']:.0f} ms an update, {form['utilisation']:.0%} of both processes busy"
        axes.set_title(f"{TITLES[name]} ({said})", fontsize=10)
        axes.label_outer()
    handles, labels = panels[0].get_legend_handles_labels()
    named = dict(zip(labels, handles))
    right.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _few(spans: list[timeline.Span]) -> list[timeline.Span]:
    """SHOWN updates from the middle, of a process with one or two spans an update."""
    count = SHOWN * len({what for what, _, _ in spans})
    begin = len(spans) // 2 // count * count if len(spans) >= 2 * count else 0
    return spans[begin : begin + count]


def _draw_curves(axes: Any, forms: dict[str, dict[str, Any]]) -> None:
    for index, (name, form) in enumerate(forms.items()):
        by_update = list(zip(*form["rewards"]))
        style = {"linewidth": 5, "alpha": 0.35} if name == "SPMD" else {"linewidth": 1.5}
        axes.plot([statistics.mean(each) for each in by_update], color=f"C{index + 2}", label=name, **style)
        axes.fill_between(
            range(len(by_update)), [*map(min, by_update)], [*map(max, by_update)], color=f"C{index + 2}", alpha=0.1
        )
    axes.set(
        title=f"Learning curves, mean and range of {len(by_update[0])} seeds",
        xlabel="update",
        ylabel="reward: share of lower-case letters",
    )
    axes.grid(alpha=0.25)
    axes.legend()
