"""What a process sends in one optimizer step: which collective, of how many bytes, how often, over which link.

The bytes on the wire are those of the ring algorithms, of n bytes among p processes (Patarasuk and Yuan 2009, Bandwidth
optimal all-reduce algorithms for clusters of workstations): an all-reduce sends 2 (p - 1) / p n, a reduce-scatter and an
all-gather, its two halves, (p - 1) / p n each. What is sent for which sharding is in ZeRO, section 7 (arXiv 1910.02054),
for split matrices in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3), for split layers in Narayanan et al.
2021 (arXiv 2104.04473, section 3.2). Where a library sends more than its paper says, the library is believed: DeepSpeed
reduces ZeRO-1's and 2's gradients to all processes.
"""

from dataclasses import dataclass

from recipes.planner.hardware import Cluster
from recipes.planner.layouts import Layout
from recipes.planner.memory import Process, shares
from recipes.planner.workload import Workload

RING = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1}
GLOO = RING | {"reduce-scatter": 2}  # gloo has none of its own and takes an all-reduce


@dataclass(frozen=True)
class Traffic:
    """One kind of message in an optimizer step.

    Attributes:
        what: what is in it.
        kind: a collective of `RING`, or "send" from one process to the next.
        payload: bytes of the whole tensor, once.
        times: how often in a step.
        processes: how many take part.
        spans_nodes: whether they stand in several nodes.
        neighbours: how many of them stand in one.
        overlaps: whether it runs while something else is computed.
    """

    what: str
    kind: str
    payload: float
    times: float
    processes: int
    spans_nodes: bool
    neighbours: int
    overlaps: bool

    def sent(self, rings: dict[str, int] = RING) -> float:
        """Bytes that one process sends in a step."""
        share = 1 if self.kind == "send" else rings[self.kind] * (self.processes - 1) / self.processes
        return share * self.payload * self.times

    def seconds(self, cluster: Cluster) -> float:
        return self.sent() / cluster.bandwidth(self.spans_nodes, self.neighbours)


def traffic(workload: Workload, layout: Layout, cluster: Cluster) -> list[Traffic]:
    """All messages of a step; none on one GPU."""
    return [
        *_of_data(workload, layout, cluster),
        *_of_tensor(workload, layout),
        *_of_pipeline(workload, layout, cluster),
    ]


def passes(workload: Workload, layout: Layout) -> int:
    """Micro-batches of one optimizer step on one process: a model on more GPUs works through as many times more."""
    return workload.accumulation * layout.model


def _of_data(workload: Workload, layout: Layout, cluster: Cluster) -> list[Traffic]:
    if layout.data == 1:
        return []
    share = max(shares(workload, layout), key=lambda share: share.trained)
    one = Process(workload, layout, share, on_cpus=False)
    count, width = passes(workload, layout), one.computed
    neighbours = max(1, cluster.node // layout.model)

    def message(what: str, kind: str, parameters: float, times: float, width: int = width, overlaps: bool = True):
        return Traffic(what, kind, parameters * width, times, layout.data, cluster.nodes > 1, neighbours, overlaps)

    if layout.sharding == "ddp":
        return [message("gradients", "all-reduce", share.trained, 1, one.stored)]
    if layout.sharding in ("zero1", "zero2"):
        often = 1 if layout.sharding == "zero1" else count  # ZeRO-2 cannot keep whole gradients to add to
        return [
            message("gradients", "all-reduce", share.trained, often, overlaps=layout.sharding == "zero2"),
            message("updated weights", "all-gather", share.trained, 1, overlaps=False),
        ]
    every = one.every
    if layout.sharding == "fsdp2":
        often, again = count if workload.sync_each_batch else 1, every - one.root_bytes / width
    else:
        often, again = count, max(0, every - one.reused)
    messages = [
        message("weights, forward", "all-gather", every, count),
        message("weights, backward", "all-gather", again, count),
        message("gradients", "reduce-scatter", share.trained, often),
    ]
    others = sum(role.parameters for role in workload.others)
    if workload.rollout is None:
        return messages if not others else [*messages, message("other models", "all-gather", others, count)]
    rollout, steps = workload.rollout, workload.steps_per_rollout
    sampling, often, scoring = _of_rollout(one)
    return [
        *messages,
        message("weights, sampling", "all-gather", sampling, often / steps, overlaps=False),
        message("all models, scoring", "all-gather", scoring + others, rollout.chunks / steps),
    ]


def _of_rollout(one: Process) -> tuple[float, int, float]:
    """Parameters that are gathered to sample, how often, and those to measure a chunk of what was sampled.

    By then the log-probabilities are known, and values that are read from the policy's own states.
    """
    rollout, value = one.workload.rollout, one.workload.value
    sharded = one.layout.sharding == "fsdp2"
    # FSDP2 has the value's embedding in one unit with what is around the policy's layers: one comes with the other
    apart = value.parameters - value.embedding if value else 0
    policy = one.every - apart
    sampling = policy if sharded else one.every
    often = rollout.length * rollout.chunks if sharded and not rollout.gathered_once else 1
    scoring = policy * (rollout.based + (value is not None and value.form == "adapter"))
    if value is not None and value.form == "separate":
        scoring += apart + (one.root_bytes / one.computed if sharded else value.embedding)
    return sampling, often, scoring


def _of_tensor(workload: Workload, layout: Layout) -> list[Traffic]:
    """An all-reduce of the hidden states after attention and after the inner layers, forward and backward."""
    if layout.tensor == 1:
        return []
    layers = -(-workload.architecture.layers // layout.pipeline)
    times = (6 if workload.checkpointing else 4) * layers * passes(workload, layout)
    payload, size = _hidden(workload) * workload.numbers(layout.sharding).width, layout.tensor
    return [Traffic("hidden states", "all-reduce", payload, times, size, False, size, False)]


def _of_pipeline(workload: Workload, layout: Layout, cluster: Cluster) -> list[Traffic]:
    """Hidden states to the next stage, and their gradients back; of split matrices each process sends its part."""
    if layout.pipeline == 1:
        return []
    payload = _hidden(workload) * workload.numbers(layout.sharding).weights.itemsize / layout.tensor
    spans = layout.model > cluster.node
    times = 2 * passes(workload, layout)
    return [Traffic("between stages", "send", payload, times, layout.pipeline, spans, 1, False)]


def _hidden(workload: Workload) -> int:
    """Numbers in the hidden states of a micro-batch."""
    return workload.tokens_per_pass * workload.architecture.hidden
