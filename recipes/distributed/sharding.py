"""Sharding: memory a rank holds under ZeRO-0 to ZeRO-3 and FSDP2, real tensors against the formulas of the ZeRO paper.

Paper: Rajbhandari et al. 2019, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, arXiv 1910.02054,
       sections 3.1 and 5; Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277.
Run:   python -m recipes.distributed.sharding --config configs/distributed/sharding/quickstart.yaml
"""

import statistics
from dataclasses import dataclass, field

from recipes.core import Run, TaskConfig, UserError, recipe
from recipes.distributed import sharded_memory, sharding_report
from recipes.distributed.processes import spawn
from recipes.distributed.sharded_memory import PRECISIONS, STAGES
from recipes.distributed.small_llama import SmallLlamaConfig


@dataclass
class ShardingConfig(TaskConfig):
    """Which strategies are measured, on how many processes."""

    processes: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Sizes of the groups."})
    strategies: list[str] = field(default_factory=lambda: list(STAGES), metadata={"help": f"Of {', '.join(STAGES)}."})
    precisions: list[str] = field(
        default_factory=lambda: list(PRECISIONS),
        metadata={"help": "full: fp32; mixed: bf16 with fp32 master weights."},
    )
    reduce_bucket_size: int = field(
        default=10_000, metadata={"help": "Numbers in a bucket of DeepSpeed's; gradients wait in it to be reduced."}
    )

    def __post_init__(self):
        if not self.processes or min(self.processes) < 2:
            raise UserError(f"'processes' must be a list of numbers of at least 2, not {self.processes}")
        for key, known in (("strategies", STAGES), ("precisions", PRECISIONS)):
            wrong = [name for name in getattr(self, key) if name not in known]
            if wrong or not getattr(self, key):
                raise UserError(f"'{key}' must be a list of {', '.join(known)}, not {getattr(self, key)}")
        if self.reduce_bucket_size < 1:
            raise UserError(f"'reduce_bucket_size' must be at least 1, not {self.reduce_bucket_size}")


@recipe
def main(run: Run, model: SmallLlamaConfig, method: ShardingConfig) -> None:
    measuring = (model, method.strategies, method.precisions, method.reduce_bucket_size, method.seed)
    ranks = {size: spawn(sharded_memory.measure, size, *measuring) for size in method.processes}
    rows = sharding_report.rows(ranks, method.strategies, method.precisions)

    run.write("table.md", sharding_report.to_markdown(rows))
    sharding_report.draw(rows, run.output_dir / "plot.png")
    errors = [abs(row["error"]) for row in rows]
    run.record(
        largest_error=max(errors),
        median_error=statistics.median(errors),
        largest_error_with_master_copy=max(abs(row["error_with_master_copy"]) for row in rows),
        rows=rows,
        model_parameters=rows[0]["model_parameters"],
        baselines={"largest_error": 0, "median_error": 0, "largest_error_with_master_copy": 0},
    )


if __name__ == "__main__":
    main()
