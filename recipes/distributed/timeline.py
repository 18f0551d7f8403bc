"""Who was busy when: spans of work by a clock that all processes of a machine share."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recipes.distributed.processes import device

Span = tuple[str, float, float]  # what, from when, until when, in seconds


class Timeline:
    """The spans of one process, in the order they ended.

    with timeline("forward"):
        loss = model(rows)
    """

    def __init__(self):
        self.spans: list[Span] = []

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        if device().type == "cuda":  # its kernels run on after the call returned
            torch.cuda.synchronize()
        self.spans.append((what, began, time.monotonic()))


def utilisation(timelines: list[list[Span]]) -> float:
    """Share of all processes' time, from the first span to the last, in which they work."""
    spans = [span for timeline in timelines for span in timeline]
    whole = max(end for _, _, end in spans) - min(begin for _, begin, _ in spans)
    return sum(end - begin for _, begin, end in spans) / whole / len(timelines)


def share_with_several(timelines: list[list[Span]]) -> float:
    """Share of the time with any work in which more than one process works; a process has one span at a time."""
    changes = sorted(
        (moment, change)
        for timeline in timelines
        for _, begin, end in timeline
        for moment, change in ((begin, 1), (end, -1))
    )
    busy = several = 0.0
    working, since = 0, changes[0][0]
    for moment, change in changes:
        busy += (moment - since) * (working > 0)
        several += (moment - since) * (working > 1)
        working, since = working + change, moment
    return several / busy


def draw(axes: Any, timelines: dict[str, list[Span]], colors: dict[str, str]) -> None:
    """A row for each process, the first on top, and a bar for each span, from the first span on.

    Args:
        axes: matplotlib's.
        timelines: by the process's name.
        colors: by what a span is.
    """
    origin = min(begin for spans in timelines.values() for _, begin, _ in spans)
    for row, spans in enumerate(timelines.values()):
        for what, begin, end in spans:
            axes.barh(row, 1e3 * (end - begin), 0.8, 1e3 * (begin - origin), color=colors[what], label=what)
    axes.set_yticks(range(len(timelines)), timelines)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.grid(axis="x", alpha=0.25)
