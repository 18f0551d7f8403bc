"""Pipeline parallelism: a LLaMA cut by its layers, run by GPipe and 1F1B, equal to it in one process; bubble and memory.

Paper: Huang et al. 2019, GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism, arXiv 1811.06965,
       section 2.3; Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters Using
       Megatron-LM, arXiv 2104.04473, section 2.2.
Run:   python -m recipes.distributed.pipeline_parallel --config configs/distributed/pipeline_parallel/quickstart.yaml
"""

from dataclasses import dataclass, field

from recipes.core import DataConfig, Run, UserError, recipe
from recipes.distributed import pipeline_report, pipeline_step
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaTask


@dataclass
class PipelineParallelConfig(SmallLlamaTask):
    """The model, and the pipelines that it goes through."""

    stages: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Lengths of the pipelines."})
    micro_batches: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8],
        metadata={"help": "Parts that the batch is cut into; 1F1B needs a stage's."},
    )
    forward_ms: float | None = field(
        default=None,
        metadata={
            "help": "Stretch each forward of a micro-batch to so many ms, and each backward to twice as many, so that all "
            "stages are equally slow, as the formula has it; null leaves them as they are."
        },
    )
    repeats: int = field(default=3, metadata={"help": "Timed steps; the bubble is their median."})

    def __post_init__(self):
        super().__post_init__()
        if not self.stages or min(self.stages) < 2:
            raise UserError(f"'stages' must name lengths of at least 2, not {self.stages}")
        if any(self.num_hidden_layers % count for count in self.stages):
            raise UserError(
                f"'num_hidden_layers' must be a multiple of each of 'stages' {self.stages}, not {self.num_hidden_layers}"
            )
        if not self.micro_batches or min(self.micro_batches) < 1:
            raise UserError(f"'micro_batches' must name numbers of at least 1, not {self.micro_batches}")
        if any(self.batch_size % count for count in self.micro_batches):
            raise UserError(
                f"'batch_size' must be a multiple of each of 'micro_batches' {self.micro_batches}, not {self.batch_size}"
            )
        if max(self.micro_batches) < max(self.stages):
            raise UserError(
                f"'micro_batches' must name one of at least {max(self.stages)}, the longest of 'stages', for 1F1B to run"
            )
        if self.forward_ms is not None and self.forward_ms <= 0:
            raise UserError(f"'forward_ms' must be above 0, or null, not {self.forward_ms}")
        if self.repeats < 1:
            raise UserError(f"'repeats' must be at least 1, not {self.repeats}")


@recipe
def main(run: Run, data: DataConfig, method: PipelineParallelConfig) -> None:
    rows = method.batches(data, 1, method.batch_size, method.seed)[0]

    [(loss, gradients)] = spawn(pipeline_step.whole_step, 1, method, rows)
    pipelines = {
        stages: spawn(pipeline_step.run_schedules, stages, method, rows, gradients) for stages in method.stages
    }

    run.start()
    figures = pipeline_step.figures(loss, pipelines)
    pipeline_report.draw(figures, pipelines, method.forward_ms, run.output_dir / "plot.png")
    run.write("table.md", pipeline_report.table(figures, method.forward_ms))
    run.record(**pipeline_report.summary(figures), pipelines=figures)


if __name__ == "__main__":
    main()
