"""What the meshes show: which process holds what, as a picture and a table, and how far they are from one process."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.core.files import write_atomically
from recipes.distributed.mesh_step import AXES, Holding
from recipes.distributed.small_llama import SmallLlamaTask

Mesh = tuple[list[int], Sequence[Holding]]  # lengths of the axes; what each rank holds and found


def figures(losses: list[float], meshes: list[Mesh]) -> list[dict[str, Any]]:
    """One row a mesh: largest deviations over its steps and processes, and the most that a process holds.

    Args:
        losses: of each step in one process.
    """
    return [
        {
            "mesh": describe(lengths),
            "processes": math.prod(lengths),
            "loss_deviation": max(
                abs(found - expected) for rank in ranks for found, expected in zip(rank.losses, losses)
            ),
            "gradient_deviation": max(rank.gradient_deviation for rank in ranks),
            "parameters_mib": max(rank.parameter_bytes for rank in ranks) / 2**20,
        }
        for lengths, ranks in meshes
    ]


def describe(lengths: list[int]) -> str:
    """`2 data × 2 tensor`, without the axes of length 1."""
    return " × ".join(f"{length} {axis}" for length, axis in zip(lengths, AXES) if length > 1) or "1 process"


def span(items: Any) -> str:
    """`0–3` for consecutive numbers, `2` for one."""
    return f"{items[0]}–{items[-1]}" if len(items) > 1 else f"{items[0]}"


def table(figures: list[dict[str, Any]], meshes: list[Mesh]) -> str:
    """Deviations of each mesh, and then what each of its ranks holds, as Markdown."""
    lines = [
        "# Meshes of processes against one process",
        "",
        "The same batches in fp32. The loss of any step differs by so many nats, the first step's gradients by so much of",
        "their largest value.",
        "",
        "| mesh | processes | loss | gradients | most parameters a rank, MiB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['mesh']} | {row['processes']} | {row['loss_deviation']:.1e} | {row['gradient_deviation']:.1e} "
        f"| {row['parameters_mib']:.2f} |"
        for row in figures
    ]
    for row, (_, ranks) in zip(figures, meshes):
        lines += ["", f"## {row['mesh']}", "", "| rank | rows | layers | heads | parameters, MiB |"]
        lines += ["| ---: | --- | --- | --- | ---: |"]
        lines += [
            f"| {rank} | {span(holding.rows)} | {span(holding.layers)} | {span(holding.heads)} "
            f"| {holding.parameter_bytes / 2**20:.2f} |"
            for rank, holding in enumerate(ranks)
        ]
    return "\n".join(lines) + "\n"


def draw(task: SmallLlamaTask, figures: list[dict[str, Any]], meshes: list[Mesh], path: Path) -> None:
    """For each mesh a row of small pictures, one a rank: the model as layers × heads, with what the rank has filled in.

    The color is the rank's share of the batch.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9 * len(meshes) + 0.5), layout="constrained")
    bands = figure.subfigures(len(meshes), 1, squeeze=False)[:, 0]
    for band, row, (_, ranks) in zip(bands, figures, meshes):
        band.suptitle(
            f"{row['mesh']}: off from one process by {row['loss_deviation']:.0e} nats of loss and "
            f"{row['gradient_deviation']:.0e} of the largest gradient",
            fontsize=10,
        )
        for rank, (axes, holding) in enumerate(zip(band.subplots(1, len(ranks), squeeze=False)[0], ranks)):
            _draw_rank(axes, task, rank, holding)
    figure.suptitle(
        f"Who holds what of {task.num_hidden_layers} layers × {task.num_attention_heads} heads (filled) "
        f"and of {task.batch_size} rows (color)"
    )
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120))


def _draw_rank(axes: Any, task: SmallLlamaTask, rank: int, holding: Holding) -> None:
    from matplotlib import colormaps

    color = colormaps["tab10"].colors[holding.place["data"]]
    for layer in range(task.num_hidden_layers):
        for head in range(task.num_attention_heads):
            here = layer in holding.layers and head in holding.heads
            axes.barh(layer, 1, left=head, height=1, color=color if here else "#f2f2f2", edgecolor="white")
    axes.set_title(f"rank {rank}: rows {span(holding.rows)}", fontsize=9, color=color)
    axes.set_xticks([head + 0.5 for head in range(task.num_attention_heads)], range(task.num_attention_heads))
    axes.set_yticks(range(task.num_hidden_layers))
    axes.tick_params(labelsize=7, length=0)
    axes.invert_yaxis()
    axes.set_xlabel("head", fontsize=8)
    if rank == 0:
        axes.set_ylabel("layer", fontsize=8)
    axes.set_frame_on(False)
