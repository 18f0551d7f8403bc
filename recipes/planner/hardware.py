"""What the planner knows of GPUs and networks: read from `recipes/planner/hardware.yaml`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recipes.core.errors import UserError, did_you_mean

HARDWARE = Path(__file__).with_name("hardware.yaml")
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One GPU: memory in GiB, peaks in 1e12 operations a second, bandwidths in 1e9 bytes a second."""

    name: str
    memory_gib: float
    bf16_tflops: float | None
    fp32_tflops: float
    memory_gb_s: float
    link: str
    link_gb_s: float
    node: int
    network: str
    source: str


@dataclass(frozen=True)
class Network:
    """Between nodes, in one direction, 1e9 bytes a second: the most for one GPU, and for a node as a whole."""

    name: str
    gpu_gb_s: float
    node_gb_s: float
    source: str


@dataclass(frozen=True)
class Cluster:
    """GPUs in nodes, and the assumptions about them that no datasheet states."""

    gpu: Gpu
    gpus: int
    nodes: int
    network: Network
    utilisation: float
    link_efficiency: float
    overhead_gib: float
    host_gib: float
    host_link_gb_s: float
    host_memory_gb_s: float
    on_cpus: bool = False  # whose memory counts when it is written to, and which have no kernels of Triton

    @property
    def node(self) -> int:
        """GPUs in a node."""
        return self.gpus // self.nodes

    def bandwidth(self, spans_nodes: bool, neighbours: int = 1) -> float:
        """Bytes a second that each GPU of a ring passes on in one direction, at the slowest place of the ring.

        Between nodes that is the network: a ring with several `neighbours` in each node has the share of so many GPUs in it,
        as only one message of a round leaves the node.
        """
        rate = self.gpu.link_gb_s
        if spans_nodes:
            rate = min(rate, neighbours * min(self.network.gpu_gb_s, self.network.node_gb_s / self.node))
        return rate * 1e9 * self.link_efficiency


@cache
def known() -> dict[str, Any]:
    """The file's content."""
    return yaml.safe_load(HARDWARE.read_text(encoding="utf-8"))


def assumptions() -> dict[str, float]:
    """The file's assumptions by name."""
    return {name: entry["value"] for name, entry in known()["assumptions"].items()}


def find_gpu(name: str) -> Gpu:
    """A GPU by its name in the file.

    Raises:
        UserError: there is none of that name; the message says the nearest.
    """
    return Gpu(name=name, **_find("gpus", "--gpu", name))


def find_network(name: str) -> Network:
    """A network by its name in the file; raises as `find_gpu`."""
    return Network(name=name, **_find("networks", "--network", name))


def _find(kind: str, option: str, name: str) -> dict[str, Any]:
    entries = known()[kind]
    if name not in entries:
        near = did_you_mean(name, entries)
        raise UserError(f"{option}: recipes/planner/hardware.yaml knows no '{name}'{near}")
    return entries[name]


def cluster(gpu: str, gpus: int, nodes: int | None = None, network: str | None = None, **assumed: float) -> Cluster:
    """A cluster by the names of its parts.

    Args:
        nodes: by default as many as it takes at the GPU's usual number a node.
        assumed: overrides of the file's assumptions.

    Raises:
        UserError: a name is not known, or a number makes no cluster.
    """
    found = find_gpu(gpu)
    if gpus < 1:
        raise UserError(f"--gpus must be at least 1, not {gpus}")
    nodes = -(-gpus // found.node) if nodes is None else nodes
    if nodes < 1:
        raise UserError(f"--nodes must be at least 1, not {nodes}")
    if gpus % nodes:
        fits = [count for count in range(1, gpus + 1) if gpus % count == 0]
        nearest = min(fits, key=lambda count: abs(count - nodes))
        raise UserError(f"{gpus} GPUs cannot be shared out evenly over {nodes} nodes: take --nodes {nearest}")
    values = assumptions() | {name: value for name, value in assumed.items() if value is not None}
    for name in ("utilisation", "link_efficiency"):
        if not 0 < values[name] <= 1:
            raise UserError(f"--{name} is a share, above 0 and at most 1, not {values[name]:g}")
    for name in ("overhead_gib", "host_gib"):
        if values[name] < 0:
            raise UserError(f"--{name} must not be below 0, not {values[name]:g}")
    return Cluster(found, gpus, nodes, find_network(network or found.network), **values)
