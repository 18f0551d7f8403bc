"""Data parallelism: every process has the model and a share of the batch; by hand, and the same loop on accelerate.

Paper: Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, arXiv 2006.15704,
       section 3.2: gradients averaged in buckets while the backward pass goes on.
Run:   python -m recipes.distributed.data_parallel --config configs/distributed/data_parallel/quickstart.yaml
"""

from dataclasses import dataclass, field

from recipes.core import DataConfig, Run, TaskConfig, UserError, recipe
from recipes.distributed import gradient_averaging
from recipes.distributed.data_parallel_plot import draw
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaConfig, train_alone

MIB = 2**20
TOLERANCE = 1e-5  # nats a byte: in fp32 the same sums in another order


@dataclass
class DataParallelConfig(TaskConfig):
    """How the batch is shared out, and how gradients are sent."""

    processes: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Sizes of the groups that train."})
    batch_size: int = field(default=16, metadata={"help": "Rows of a step over all processes, which divide it."})
    max_steps: int = field(default=40, metadata={"help": "Optimizer steps."})
    learning_rate: float = field(default=3e-3, metadata={"help": "AdamW's."})
    bucket_cap_mb: float = field(default=0.25, metadata={"help": "Bucket of gradients in training, MiB."})
    timed_bucket_caps_mb: list[float] = field(
        default_factory=lambda: [0.0, 0.02, 0.1, 0.4, 25.0],
        metadata={"help": "Buckets that a step is timed with, MiB."},
    )
    repeats: int = field(default=10, metadata={"help": "Timed steps for each size of bucket; the fastest counts."})

    def __post_init__(self):
        if not self.processes or min(self.processes) < 2:
            raise UserError(f"'processes' must be a list of numbers of at least 2, not {self.processes}")
        for size in self.processes:
            if self.batch_size < 1 or self.batch_size % size:
                raise UserError(
                    f"'batch_size' must be a multiple of each of 'processes' {self.processes}, not {self.batch_size}"
                )
        for key in ("max_steps", "repeats"):
            if getattr(self, key) < 1:
                raise UserError(f"'{key}' must be at least 1, not {getattr(self, key)}")
        if min([self.bucket_cap_mb, *self.timed_bucket_caps_mb]) < 0 or not self.timed_bucket_caps_mb:
            raise UserError(
                "'bucket_cap_mb' and each of 'timed_bucket_caps_mb' must be at least 0, a bucket a parameter"
            )


@recipe
def main(run: Run, model: SmallLlamaConfig, data: DataConfig, method: DataParallelConfig) -> None:
    rows = model.batches(data, method.max_steps, method.batch_size, method.seed)
    training = (model, rows, method.learning_rate, method.seed)

    one = spawn(train_alone, 1, *training)[0]["losses"]
    losses, timings = {"one process": one}, {}
    buckets = [method.bucket_cap_mb * MIB, [cap * MIB for cap in method.timed_bucket_caps_mb], method.repeats]
    for size in method.processes:
        found = spawn(gradient_averaging.compare, size, *training, *buckets)[0]
        losses |= {f"{size} processes, {who}": found[who] for who in ("by hand", "by accelerate")}
        timings[size] = found["timings"]

    deviations = {name: max(abs(a - b) for a, b in zip(one, losses[name])) for name in list(losses)[1:]}
    run.start()
    draw(losses, "one process", TOLERANCE, timings, method.timed_bucket_caps_mb, run.output_dir / "plot.png")
    run.record(
        largest_deviation=max(deviations.values()),
        loss=losses[list(losses)[1]][-1],
        baselines={"largest_deviation": TOLERANCE, "loss": one[-1], "loss_at_start": one[0]},
        deviations=deviations,
        losses=losses,
        step_seconds={str(size): found for size, found in timings.items()},
    )


if __name__ == "__main__":
    main()
