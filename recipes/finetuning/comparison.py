"""Comparison: every method of fine-tuning on one task, model, data and step budget, with learning rates searched alike.

Paper: Lialin et al. 2023, Scaling Down to Scale Up: A Guide to Parameter-Efficient Fine-Tuning, arXiv 2303.15647, section 4
       (what is to be compared: trained parameters, memory, time, storage, score).
Run:   python -m recipes.finetuning.comparison --config configs/finetuning/comparison/quickstart.yaml
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from recipes.core import Run, RunConfig, TaskConfig, UserError, recipe
from recipes.finetuning.comparison_report import draw, markdown, summary
from recipes.finetuning.comparison_runs import best_rate, make, own_settings, rates_beyond, run_command


@dataclass
class ComparisonConfig(TaskConfig):
    """What is compared, on what, and how much each method may try."""

    base: str = field(
        default="finetuning/classification/quickstart", metadata={"help": "Config of every run, but for its method."}
    )
    settings: dict[str, Any] | None = field(
        default=None, metadata={"help": "Keys of `base` to change for all methods: model, data, max_steps, …"}
    )
    methods: list[str] = field(
        default_factory=list,
        metadata={"help": "Configs of finetuning/classification, whose own keys are the method's."},
    )
    score: str = field(default="accuracy", metadata={"help": "The metric of a run's result that is compared."})
    higher_is_better: bool = field(default=True, metadata={"help": "Whether the best score is the highest."})
    learning_rates: list[float] = field(
        default_factory=lambda: [0.1, 0.3, 1.0, 3.0],
        metadata={
            "help": "Tried for each method, as multiples of the rate in its config, on rows held out of training."
        },
    )
    further: int = field(
        default=2,
        metadata={"help": "How often the search goes on past its rates for a method whose best one is the last."},
    )
    held_out: float = field(default=0.1, metadata={"help": "Share of the training rows that the search measures on."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Of the runs at the rate found."})
    processes: int = field(default=2, metadata={"help": "Runs at a time; without a GPU they share the cores."})

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise UserError(f"held_out must lie between 0 and 1, not {self.held_out}")
        for key in ("methods", "learning_rates", "seeds"):
            if not getattr(self, key):
                raise UserError(f"{key}: is empty; nothing would be compared")
        for key, least in (("processes", 1), ("further", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key} must be at least {least}, not {getattr(self, key)}")
        self.own = {name: own_settings(name, self.base) for name in self.methods}


@recipe
def main(run: Run, compared: ComparisonConfig) -> None:
    run.start()
    folder, seeds = run.output_dir, compared.seeds
    command = partial(run_command, compared, run.config.get(RunConfig).runs_dir)
    searched = {}
    rates = dict.fromkeys(compared.methods, compared.learning_rates)
    for _ in range(1 + compared.further):  # the search: one seed, rows held out of training
        tried = {
            (name, rate): command(folder / name / f"search-{rate:g}", name, rate, seeds[0], search=True)
            for name in compared.methods
            for rate in rates[name]
        }
        searched |= make(tried, compared.processes)
        rates = {name: rates_beyond(searched, name, compared) for name in compared.methods}
    best = {name: best_rate(searched, name, compared) for name in compared.methods}

    final = {  # at the rate found: all seeds, the whole training split, the test split
        (name, seed): command(folder / name / f"seed-{seed}", name, best[name], seed, search=False)
        for name in compared.methods
        if best[name] is not None
        for seed in seeds
    }
    finished = make(final, compared.processes)

    rows = {name: summary(name, best[name], searched, finished, compared) for name in compared.methods}
    run.write("table.md", markdown(rows, compared.score))
    draw(rows, compared.score, folder / "plot.png")
    run.record(**{f"{compared.score} {name}": row["score"] for name, row in rows.items()}, methods=rows)
    run.record(baselines=next((result["baselines"] for result in finished.values() if result), {}))


if __name__ == "__main__":
    main()
