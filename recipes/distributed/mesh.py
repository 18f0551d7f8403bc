"""Device mesh: data, pipeline and tensor parallelism at once, in two and three dimensions, equal to one process.

Paper: Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM,
       arXiv 2104.04473, section 3.
Run:   python -m recipes.distributed.mesh --config configs/distributed/mesh/quickstart.yaml
"""

import math
from dataclasses import dataclass, field

from recipes.core import DataConfig, Run, UserError, recipe
from recipes.distributed import mesh_report, mesh_step
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaTask


@dataclass
class MeshConfig(SmallLlamaTask):
    """The model, its few steps, and the meshes of processes that take them."""

    meshes: list[list[int]] = field(
        default_factory=lambda: [[2, 1, 2], [2, 2, 1]],
        metadata={"help": "Each mesh as its lengths [data, pipeline, tensor]; their product is its processes."},
    )
    micro_batches: int = field(default=2, metadata={"help": "Parts of a data shard that the pipeline takes in turn."})
    max_steps: int = field(default=3, metadata={"help": "Optimizer steps."})
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW's."})

    def __post_init__(self):
        super().__post_init__()
        if not self.meshes or any(len(shape) != 3 or min(shape) < 1 for shape in self.meshes):
            raise UserError(f"'meshes' must name lengths [data, pipeline, tensor] of at least 1, not {self.meshes}")
        for key in ("micro_batches", "max_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"'{key}' must be at least 1, not {getattr(self, key)}")
        for data, pipeline, tensor in self.meshes:
            if self.batch_size % (data * self.micro_batches):
                raise UserError(
                    f"'batch_size' must be a multiple of {data * self.micro_batches}, the mesh's {data} data shards of "
                    f"'micro_batches' {self.micro_batches}, not {self.batch_size}"
                )
            if self.num_hidden_layers % pipeline:
                raise UserError(f"'num_hidden_layers' must be a multiple of the mesh's {pipeline} stages")
            if self.micro_batches < pipeline:
                raise UserError(f"'micro_batches' must be at least the mesh's {pipeline} stages, for 1F1B to run")
            for key in ("num_key_value_heads", "intermediate_size"):
                if getattr(self, key) % tensor:
                    raise UserError(f"'{key}' must be a multiple of the mesh's {tensor} tensor slices")


@recipe
def main(run: Run, data: DataConfig, method: MeshConfig) -> None:
    batches = method.batches(data, method.max_steps, method.batch_size, method.seed)

    [(losses, gradients)] = spawn(mesh_step.train_whole, 1, method, batches)
    meshes = []
    for processes in sorted({math.prod(lengths) for lengths in method.meshes}):
        shapes = [lengths for lengths in method.meshes if math.prod(lengths) == processes]
        ranks = spawn(mesh_step.train_on_meshes, processes, method, shapes, batches, gradients)
        meshes += zip(shapes, zip(*ranks))

    run.start()
    figures = mesh_report.figures(losses, meshes)
    mesh_report.draw(method, figures, meshes, run.output_dir / "plot.png")
    run.write("table.md", mesh_report.table(figures, meshes))
    run.record(
        loss_deviation=max(row["loss_deviation"] for row in figures),
        gradient_deviation=max(row["gradient_deviation"] for row in figures),
        meshes=figures,
    )


if __name__ == "__main__":
    main()
