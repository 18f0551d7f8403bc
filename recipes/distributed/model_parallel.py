"""Model parallelism: layers placed on processes by hand, one busy at a time; equal to one process, and its timeline.

Paper: Huang et al. 2018, GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism,
       arXiv 1811.06965, figure 2b: what is sequential without a pipeline.
Run:   python -m recipes.distributed.model_parallel --config configs/distributed/model_parallel/quickstart.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path

from recipes.core import DataConfig, Run, TaskConfig, UserError, recipe
from recipes.core.files import write_atomically
from recipes.distributed import layer_placement, timeline
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaConfig, train_alone

TOLERANCE = 1e-5  # nats a byte: in fp32 the same sums in another order
COLORS = {"forward": "tab:blue", "backward": "tab:orange", "step": "tab:green"}
SHOWN_STEPS = 2


@dataclass
class ModelParallelConfig(TaskConfig):
    """How many processes share the layers, and the training that shows it."""

    processes: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Numbers of parts of the model."})
    batch_size: int = field(default=16, metadata={"help": "Rows of a step."})
    max_steps: int = field(default=10, metadata={"help": "Optimizer steps; the first is not timed."})
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW's."})

    def __post_init__(self):
        if not self.processes or min(self.processes) < 2:
            raise UserError(f"'processes' must be a list of numbers of at least 2, not {self.processes}")
        if self.batch_size < 1:
            raise UserError(f"'batch_size' must be at least 1, not {self.batch_size}")
        if self.max_steps < 2:
            raise UserError(f"'max_steps' must be at least 2, of which the first is not timed, not {self.max_steps}")


@recipe
def main(run: Run, model: SmallLlamaConfig, data: DataConfig, method: ModelParallelConfig) -> None:
    if model.num_hidden_layers < max(method.processes):
        raise UserError(
            f"'processes' {max(method.processes)} is more than 'num_hidden_layers' {model.num_hidden_layers}"
        )
    if model.tie_word_embeddings:
        raise UserError("'tie_word_embeddings' must be false: the first rank has one matrix and the last the other")
    rows = model.batches(data, method.max_steps, method.batch_size, method.seed)
    training = (model, rows, method.learning_rate, method.seed)

    one = spawn(train_alone, 1, *training)[0]
    worlds, timelines = {}, {}
    for size in method.processes:
        ranks = spawn(layer_placement.train, size, *training)
        weights = {name: weight for rank in ranks for name, weight in rank["weights"].items()}
        spans = timelines[size] = [rank["timeline"][len(COLORS) :] for rank in ranks]  # without the first step
        worlds[str(size)] = {
            "loss_deviation": max(abs(a - b) for a, b in zip(one["losses"], ranks[-1]["losses"])),
            "weight_deviation": max(
                (one["weights"][name] - weights[name]).abs().max().item() for name in one["weights"]
            ),
            "utilisation": timeline.utilisation(spans),
            # The optimizer's steps need nobody and may overlap.
            "share_with_several_busy": timeline.share_with_several(
                [[span for span in rank if span[0] != "step"] for rank in spans]
            ),
            "largest_share_of_parameters": max(
                sum(weight.numel() for weight in rank["weights"].values()) for rank in ranks
            )
            / sum(weight.numel() for weight in one["weights"].values()),
        }

    run.start()
    draw(timelines, worlds, run.output_dir / "plot.png")
    run.record(
        largest_deviation=max(world["loss_deviation"] for world in worlds.values()),
        **{f"utilisation_{size}": world["utilisation"] for size, world in worlds.items()},
        share_with_several_busy=max(world["share_with_several_busy"] for world in worlds.values()),
        worlds=worlds,
        losses=one["losses"],
        baselines={
            "largest_deviation": TOLERANCE,
            **{f"utilisation_{size}": 1 / size for size in method.processes},
            "share_with_several_busy": 0,
        },
    )


def draw(timelines: dict[int, list[list[timeline.Span]]], worlds: dict[str, dict[str, float]], path: Path) -> None:
    """The first timed steps of each world, a row for each rank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.6 + 0.5 * sum(timelines)), layout="constrained")
    panels = figure.subplots(len(timelines), 1, squeeze=False, height_ratios=list(timelines))[:, 0]
    for axes, (size, ranks) in zip(panels, timelines.items()):
        shown = {f"rank {rank}": spans[: SHOWN_STEPS * len(COLORS)] for rank, spans in enumerate(ranks)}
        timeline.draw(axes, shown, COLORS)
        busy = worlds[str(size)]["utilisation"]
        axes.set_title(f"{size} processes: each works {busy:.0%} of the time (1/p is {1 / size:.0%})")
    handles, labels = panels[0].get_legend_handles_labels()
    named = dict(zip(labels, handles))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    figure.suptitle(f"Layers on several processes: {SHOWN_STEPS} training steps, one process at work at a time")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


if __name__ == "__main__":
    main()
