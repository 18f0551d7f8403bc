"""The ways to spread training over GPUs that the planner compares."""

from dataclasses import dataclass

from recipes.planner.hardware import Cluster
from recipes.planner.workload import Workload

# What each process holds whole, and what the processes share out, of weights, gradients and optimizer states:
#   ddp             nothing is shared out
#   zero1           optimizer states       (Rajbhandari et al. 2020, ZeRO, arXiv 1910.02054, section 5: P_os)
#   zero2           and gradients          (P_os+g)
#   zero3, fsdp2    and weights            (P_os+g+p; Zhao et al. 2023, PyTorch FSDP, arXiv 2304.11277)
#   zero3-offload   all of it, in the host's memory (Ren et al. 2021, ZeRO-Offload, arXiv 2101.06840)
SHARDINGS = ("ddp", "zero1", "zero2", "zero3", "zero3-offload", "fsdp2")
SPLITS = (2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Layout:
    """`tensor` processes share each matrix, `pipeline` groups of them each have some of the layers, and `data` such
    models work on different data, sharing out what `sharding` says."""

    sharding: str
    data: int
    tensor: int = 1
    pipeline: int = 1

    @property
    def name(self) -> str:
        split = [("tensor", self.tensor), ("pipeline", self.pipeline)]
        parts = [f"{name} {size}" for name, size in split if size > 1]
        if not parts:
            return self.sharding if self.data > 1 or "offload" in self.sharding else "one GPU"
        return " × ".join([*parts, f"{self.sharding} {self.data}"])

    @property
    def family(self) -> str:
        """Layouts of one family differ in their sizes only."""
        split = [name for name, size in (("tensor", self.tensor), ("pipeline", self.pipeline)) if size > 1]
        return " × ".join([*split, "data"]) if split else self.name

    @property
    def model(self) -> int:
        """GPUs that one copy of the model is spread over."""
        return self.tensor * self.pipeline


def layouts(workload: Workload, cluster: Cluster) -> list[Layout]:
    """Every layout that could serve."""
    if cluster.gpus == 1:
        found = [Layout("ddp", 1), Layout("zero3-offload", 1)]
    else:
        found = [Layout(sharding, cluster.gpus) for sharding in SHARDINGS]
    if workload.offloaded:  # which recipes/rlhf/ppo.py refuses to models that are shared out
        return [layout for layout in found if layout.sharding == "ddp"]
    if workload.quantised:  # bitsandbytes' weights are bytes that neither ZeRO-3 nor a tensor plan can share out
        return [layout for layout in found if not layout.sharding.startswith("zero3")]
    if workload.can_be_split:
        sizes = [(tensor, pipeline) for tensor in (1, *SPLITS) for pipeline in (1, *SPLITS)]
        found += [split for tensor, pipeline in sizes for split in _split(workload, cluster, tensor, pipeline)]
    return found


def _split(workload: Workload, cluster: Cluster, tensor: int, pipeline: int) -> list[Layout]:
    """Layouts with matrices split over so many GPUs of a node and layers over so many groups, if there are any.

    Weights are shared out over the data dimension too where no pipeline would gather them for each of many micro-batches.
    """
    model, architecture = tensor * pipeline, workload.architecture
    if model == 1 or cluster.gpus % model or tensor > cluster.node or pipeline > architecture.layers:
        return []
    if tensor > 1 and not architecture.can_split(tensor):
        return []
    data = cluster.gpus // model
    shardings = ["ddp"] if data == 1 else ["zero1"] if pipeline > 1 else ["zero1", "fsdp2"]
    return [Layout(sharding, data, tensor, pipeline) for sharding in shardings]
