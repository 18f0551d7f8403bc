"""How long an optimizer step takes: operations at a share of the GPU's peak, and messages that nothing hides.

A product of a token with N weights is 2N operations, and its backward pass twice that, so that a step takes 6N for each
token (Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv 2001.08361, section 2.1; Hoffmann et al. 2022,
arXiv 2203.15556, appendix F). Checkpointing runs the layers forward once more, 8N (Narayanan et al. 2021, arXiv 2104.04473,
section 5.1). A frozen weight needs no gradient of its own: 4N. Attention has 4 s h operations in each layer for a token that
looks at s others, half of that with a kernel that leaves the future out.
"""

from dataclasses import dataclass

from recipes.planner.communication import passes, traffic
from recipes.planner.hardware import Cluster
from recipes.planner.layouts import Layout
from recipes.planner.workload import Workload


@dataclass(frozen=True)
class Speed:
    """Seconds of one optimizer step, by what they go into; `tokens` are those of all GPUs in it."""

    computing: float
    waiting: float  # for messages that nothing hides
    bubble: float  # for the pipeline to fill and to empty
    offloading: float
    sampling: float
    tokens: int

    @property
    def seconds(self) -> float:
        return self.computing + self.waiting + self.bubble + self.offloading + self.sampling

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds


def forward_operations(workload: Workload) -> tuple[float, float]:
    """Of one token in the mean through the layers of one trunk, and through the head."""
    model = workload.architecture
    written = workload.written / (workload.length + workload.written)
    looked_at = workload.length / (2 if workload.kernel == "flash" and model.looks_back else 1)
    attention = 4 * looked_at * model.heads * model.head_size * model.layers
    return 2 * model.active(written) + attention, 2 * workload.head * (written or 1)


def training_operations(workload: Workload) -> float:
    """Of one token, forward and backward, as the GPU runs them."""
    layers, head = forward_operations(workload)
    backward = 2 if workload.adapter is None else 1
    again = 1 if workload.checkpointing else 0
    read = sum(2 * role.parameters for role in workload.others) if workload.rollout is None else 0
    return workload.trunks * layers * (1 + backward + again) + head * (1 + backward) + read


def speed(workload: Workload, layout: Layout, cluster: Cluster) -> Speed:
    """Of one optimizer step; of a rollout, the part that falls to it."""
    gpu, count = cluster.gpu, passes(workload, layout)
    peak = gpu.bf16_tflops if workload.bf16 or workload.weights.itemsize == 2 else gpu.fp32_tflops
    rate = peak * 1e12 * cluster.utilisation
    tokens = workload.tokens_per_pass * count  # of one copy of the model
    computing = tokens * training_operations(workload) / (rate * layout.model)
    # 1F1B: of p stages and m micro-batches, (p - 1) / m of the time no stage has work (arXiv 2104.04473, section 2.2)
    bubble = computing * (layout.pipeline - 1) / count

    messages = traffic(workload, layout, cluster)
    hidden = sum(one.seconds(cluster) for one in messages if one.overlaps)
    shown = sum(one.seconds(cluster) for one in messages if not one.overlaps)
    # What DDP reduces once is hidden by the last micro-batch's backward pass, the rest by all of it.
    last = computing * 2 / 3 / count if layout.sharding == "ddp" else computing
    waiting = shown + max(0.0, hidden - last)

    offloading = _offloading(workload, layout, cluster, count)
    sampling = _sampling(workload, layout, cluster, rate) if workload.rollout is not None else 0.0
    return Speed(computing, waiting, bubble, offloading, sampling, tokens * layout.data)


def _offloading(workload: Workload, layout: Layout, cluster: Cluster, count: int) -> float:
    """To bring the weights twice a pass, to take the gradients back, and to run the optimizer on the processors.

    AdamW reads a gradient, reads and writes weight and two moments in float32, and writes the weight that computes.
    """
    if layout.sharding != "zero3-offload":
        return 0.0
    width, data = workload.numbers(layout.sharding).weights.itemsize, layout.data
    weights = 2 * count * (workload.frozen + workload.trained)
    moved = width * (weights + count * workload.trained) / data / (cluster.host_link_gb_s * 1e9)
    optimizer = (7 * 4 + width) * workload.trained / data * cluster.node / (cluster.host_memory_gb_s * 1e9)
    return moved + optimizer


def _sampling(workload: Workload, layout: Layout, cluster: Cluster, rate: float) -> float:
    """A rollout's part in each of its steps: every token reads all weights and the cache so far from the GPU's memory.

    Then a value with a trunk of its own, reference and reward models pass over all of it. A lower bound: it leaves out what
    Python needs to launch the kernels of a token.
    """
    rollout, model = workload.rollout, workload.architecture
    numbers = workload.numbers(layout.sharding)
    bandwidth = cluster.gpu.memory_gb_s * 1e9 * cluster.link_efficiency
    cache = workload.cache_bytes(numbers.width) / 2  # it is half full in the mean
    layers, head = forward_operations(workload)
    weights = model.parameters * numbers.width
    step = max((weights + cache) / bandwidth, rollout.together * (layers + head) / rate)
    scored = (workload.trunks - 1 + rollout.based) * layers + rollout.based * head
    scored += sum(2 * role.parameters for role in workload.others)
    scored *= rollout.responses * (rollout.prompt + rollout.length)
    return (rollout.chunks * rollout.length * step + scored / rate) / workload.steps_per_rollout
