"""Tensor parallelism: a LLaMA whose layers are split over processes, by hand and by transformers' plan, equal to it in one.

Paper: Shoeybi et al. 2019, Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism,
       arXiv 1909.08053, section 3.
Run:   python -m recipes.distributed.tensor_parallel --config configs/distributed/tensor_parallel/quickstart.yaml
"""

import tempfile
from dataclasses import dataclass, field

from recipes.core import DataConfig, Run, UserError, recipe
from recipes.distributed import tensor_report, tensor_step
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaTask


@dataclass
class TensorParallelConfig(SmallLlamaTask):
    """The model, and the worlds that it is split over."""

    processes: list[int] = field(default_factory=lambda: [1, 2, 4], metadata={"help": "Sizes of the worlds; 1 first."})

    def __post_init__(self):
        super().__post_init__()
        if self.processes[:1] != [1] or min(self.processes) < 1 or len(self.processes) < 2:
            raise UserError(f"'processes' must begin with 1, what the others are held against, not {self.processes}")
        for key in ("num_key_value_heads", "intermediate_size"):
            if any(getattr(self, key) % count for count in self.processes):
                raise UserError(
                    f"'{key}' must be a multiple of each of 'processes' {self.processes}, not {getattr(self, key)}"
                )


@recipe
def main(run: Run, data: DataConfig, method: TensorParallelConfig) -> None:
    rows = method.batches(data, 1, method.batch_size, method.seed)[0]
    tensor_report.check_gpus(method.processes)

    with tempfile.TemporaryDirectory() as folder:
        method.build(method.seed).save_pretrained(folder)
        worlds = {count: spawn(tensor_step.step, count, folder, rows) for count in method.processes}

    run.start()
    figures = tensor_report.figures(method, worlds)
    tensor_report.draw(figures, run.output_dir / "plot.png")
    run.write("table.md", tensor_report.table(figures))
    run.record(**tensor_report.summary(figures), worlds=figures)


if __name__ == "__main__":
    main()
