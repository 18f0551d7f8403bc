"""Expert parallelism: a mixture-of-experts layer whose experts are spread over processes, equal to the layer in one.

Paper: Lepikhin et al. 2020, GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding,
       arXiv 2006.16668, section 2.2, algorithms 1 and 2.
Run:   python -m recipes.distributed.expert_parallel --config configs/distributed/expert_parallel/quickstart.yaml
"""

from dataclasses import dataclass, field, fields, replace

from recipes.core import DataConfig, Run, TaskConfig, UserError, recipe
from recipes.distributed import expert_report, expert_training
from recipes.distributed.processes import spawn
from recipes.distributed.text_bytes import byte_stream


@dataclass
class ExpertParallelConfig(TaskConfig):
    """The layer, the small model around it, and the worlds that it is spread over."""

    processes: list[int] = field(default_factory=lambda: [1, 2, 4], metadata={"help": "Sizes of the worlds; 1 first."})
    training_processes: int = field(
        default=2, metadata={"help": "Size of the world that trains; it divides the same."}
    )
    context: int = field(default=8, metadata={"help": "Bytes that the model sees before the next one."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the model."})
    intermediate_size: int = field(default=128, metadata={"help": "Hidden width of an expert."})
    num_experts: int = field(default=8, metadata={"help": "Experts in all; every world's size divides them."})
    capacity_factor: float = field(
        default=1.0, metadata={"help": "Places of an expert over 2·group_size/num_experts; 1 is the paper's."}
    )
    capacity_factors: list[float] = field(
        default_factory=lambda: [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0],
        metadata={"help": "Capacity factors that the trained layers are measured with."},
    )
    router_aux_loss_coef: float = field(
        default=4.0, metadata={"help": "Weight of the auxiliary loss, whose smallest value is 1/num_experts²."}
    )
    groups: int = field(default=4, metadata={"help": "Groups of tokens in a batch; every world's size divides them."})
    group_size: int = field(default=256, metadata={"help": "Tokens in a group."})
    max_steps: int = field(default=300, metadata={"help": "Optimizer steps, with and without the auxiliary loss."})
    learning_rate: float = field(default=3e-3, metadata={"help": "AdamW's."})
    test_batches: int = field(default=16, metadata={"help": "Batches of held-out text that are routed at the end."})

    def __post_init__(self):
        if self.processes[:1] != [1] or min(self.processes) < 1 or len(self.processes) < 2:
            raise UserError(f"'processes' must begin with 1, what the others are held against, not {self.processes}")
        if self.num_experts < 2:
            raise UserError(f"'num_experts' must be at least 2, a first and a second choice, not {self.num_experts}")
        if self.training_processes < 1:
            raise UserError(f"'training_processes' must be at least 1, not {self.training_processes}")
        for key in ("num_experts", "groups"):
            if any(getattr(self, key) % count for count in (*self.processes, self.training_processes)):
                raise UserError(
                    f"'{key}' must be a multiple of each of 'processes' {self.processes} and of 'training_processes' "
                    f"{self.training_processes}, not {getattr(self, key)}"
                )
        for key in ("context", "hidden_size", "intermediate_size", "group_size", "max_steps", "test_batches"):
            if getattr(self, key) < 1:
                raise UserError(f"'{key}' must be at least 1, not {getattr(self, key)}")
        if min([self.capacity_factor, *self.capacity_factors]) <= 0 or not self.capacity_factors:
            raise UserError("'capacity_factor' and each of 'capacity_factors' must be above 0")
        if self.router_aux_loss_coef <= 0:
            raise UserError("'router_aux_loss_coef' must be above 0: the run without it is made anyway")

    @property
    def job(self) -> expert_training.Job:
        return expert_training.Job(**{key.name: getattr(self, key.name) for key in fields(expert_training.Job)})


@recipe
def main(run: Run, data: DataConfig, method: ExpertParallelConfig) -> None:
    texts = data.load(("text",))
    stream, held_out = (byte_stream(texts[split]["text"], method.context + 1) for split in ("train", "test"))

    steps = {count: spawn(expert_training.first_step, count, method.job, stream) for count in method.processes}
    deviations = {count: expert_report.deviations(steps[1], steps[count]) for count in method.processes[1:]}

    count = method.training_processes
    measure = (method.max_steps, stream, held_out, method.test_batches, method.capacity_factors)
    balanced = spawn(expert_training.train, count, method.job, *measure)[0]
    free = spawn(expert_training.train, count, replace(method.job, router_aux_loss_coef=0.0), *measure)[0]

    run.start()
    expert_report.draw(balanced, free, method.capacity_factors, count, run.output_dir / "plot.png")
    run.write("table.md", expert_report.table(steps, deviations))
    run.record(
        output_deviation=max(row["output"] for row in deviations.values()),
        auxiliary_loss_deviation=max(row["auxiliary loss"] for row in deviations.values()),
        gradient_deviation=max(row["gradients"] for row in deviations.values()),
        **expert_report.balance(balanced),
        overflow_by_capacity_factor=dict(zip(map(str, method.capacity_factors), balanced["overflow"])),
        baselines={
            **expert_report.balance(free),
            "overflow_by_capacity_factor": dict(zip(map(str, method.capacity_factors), free["overflow"])),
        },
    )


if __name__ == "__main__":
    main()
