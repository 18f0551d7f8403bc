"""Memory of one process at the three moments of a step when it may be highest, and while responses are sampled.

What is trained takes, in the letters of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1), 2Ψ bytes of weights,
2Ψ of gradients and KΨ of optimizer states in mixed precision, with K = 12: a float32 copy of the weights and Adam's two
moments. The shardings divide the last, the last two, or all three by the number of processes (section 5). To that come
the buffers of the libraries that do it, which are read from their source: DeepSpeed 0.19, accelerate 1.15, torch 2.13.

The moments: the loss, when all activations are alive and few gradients; the end of the backward pass, the other way round;
the optimizer's step. A process needs the most of them. With a rollout there is a fourth.
"""

from dataclasses import dataclass, fields

from recipes.planner.hardware import GIB, Cluster
from recipes.planner.layouts import Layout
from recipes.planner.workload import Workload

DDP, ZERO1, ZERO2 = "ddp", "zero1", "zero2"
# Defaults of DeepSpeed, in parameters: a bucket of gradients, and what ZeRO-3 keeps gathered if it is needed again soon
# (`reduce_bucket_size`, half of `stage3_max_reuse_distance`: on the way to the loss and back), a step's group of parameters.
BUCKET, KEPT, GROUP = 500_000_000, 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at one moment."""

    moment: str
    weights: float = 0.0  # of what is trained, and of the frozen weights under an adapter
    gradients: float = 0.0
    optimizer: float = 0.0  # its states, and the float32 weights it updates where the model's own are narrower
    others: float = 0.0  # models that are only read
    gathered: float = 0.0  # weights and gradients that are whole for a while, and the buffers they travel in
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0  # keys and values
    overhead: float = 0.0
    host: float = 0.0  # in the host's memory; not part of the total

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """What the GPU holds, by name."""
        outside = ("moment", "host")
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in outside}


@dataclass(frozen=True)
class Share:
    """What one process has of the model before the data-parallel processes share out any of it; counts of parameters."""

    trained: int
    layers: int
    layer: int
    whole: int  # the largest matrix that is gathered at once: embedding or head
    embedding: int  # on this process, 0 if it is on another stage
    head: int
    tied: bool


def shares(workload: Workload, layout: Layout) -> list[Share]:
    """The first and the last stage of a pipeline, which have the most; the same one without a pipeline."""
    model, tensor = workload.architecture, layout.tensor
    around = model.parameters - sum(weight.numel() for weight in model.decoder.parameters())  # embedding, head, norm
    in_layers = (model.matrices / tensor + model.parameters - around - model.matrices) / model.layers
    layers = -(-model.layers // layout.pipeline)
    embedding, head, layer = model.embedding // tensor, model.head // tensor, round(in_layers)
    whole = max(embedding, head)
    if layout.pipeline == 1:
        trained = workload.trained if tensor == 1 else round(in_layers * model.layers + around / tensor)
        return [Share(trained, layers, layer, whole, embedding, head, model.tied)]
    first = Share(layers * layer + embedding, layers, layer, embedding, embedding, 0, False)
    last = Share(layers * layer + head, layers, layer, head, 0, head, False)
    return [first, last]


def memory(workload: Workload, layout: Layout, cluster: Cluster) -> Memory:
    """The most that any process needs, at the moment when it needs it."""
    moments = [moment for share in shares(workload, layout) for moment in of_share(workload, layout, cluster, share)]
    return max(moments, key=lambda moment: moment.total)


def of_share(workload: Workload, layout: Layout, cluster: Cluster, share: Share) -> list[Memory]:
    """What a process with this share of the model needs at each moment."""
    states = _states(workload, layout, share)
    overhead = {"overhead": cluster.overhead_gib * GIB}
    buffers = Buffers(workload, layout, cluster, share)
    activations, logits = _activations(workload, layout, share)
    found = [
        Memory(
            "loss",
            **states | overhead,
            gradients=buffers.gradients_at_loss,
            gathered=buffers.at_loss,
            activations=activations,
            logits=logits,
        ),
        Memory(
            "end of backward",
            **states | overhead,
            gradients=buffers.gradients_at_end,
            gathered=buffers.at_end,
            activations=workload.activations(layout.sharding, layout.tensor).passing,
        ),
        Memory("optimizer step", **states | overhead, gradients=buffers.gradients_at_step, gathered=buffers.at_step),
    ]
    if workload.rollout is not None:
        width = 2 if workload.bf16 else workload.weights.itemsize
        found.append(
            Memory(
                "rollout",
                **states | overhead,
                gathered=buffers.at_rollout,
                cache=workload.cache_bytes(width),
                logits=3 * 4 * workload.rollout.together * workload.architecture.vocabulary,
            )
        )
    return found


def _states(workload: Workload, layout: Layout, share: Share) -> dict[str, float]:
    """Bytes that stay from step to step: weights, optimizer states, models that are only read."""
    sharding, data = layout.sharding, layout.data
    width = workload.numbers(sharding).weights.itemsize  # of the weights that compute
    stored = _stored(workload, sharding)  # of those that are trained
    by_one = workload.optimizer_bytes(4 if sharding.startswith("zero") else stored)
    frozen = workload.frozen_bytes
    others = sum(role.parameters for role in workload.others) * (2 if width == 2 else workload.weights.itemsize)
    if sharding == DDP:
        return {"weights": stored * share.trained + frozen, "optimizer": by_one * share.trained, "others": others}
    if sharding == "fsdp2":
        frozen /= 1 if workload.quantised else data  # accelerate leaves bitsandbytes' weights whole
        return {
            "weights": stored * share.trained / data + frozen,
            "optimizer": by_one * share.trained / data,
            "others": others / data,
        }
    # DeepSpeed updates a float32 copy of the weights, even of float32 ones
    master = (4 + by_one) * share.trained / data
    if sharding in (ZERO1, ZERO2):
        return {"weights": width * share.trained + frozen, "optimizer": master, "others": others}
    weights = (width * share.trained + frozen) / data
    if sharding == "zero3-offload":
        gradients = (width + 4) * share.trained / data  # as they arrive, and in float32 for the optimizer
        return {"host": weights + master + others / data + gradients}
    return {"weights": weights, "optimizer": master, "others": others / data}


def _stored(workload: Workload, sharding: str) -> int:
    """Bytes of a trained weight as it is kept: accelerate widens FSDP2's to float32, PEFT an adapter's."""
    if sharding.startswith("zero"):
        return workload.numbers(sharding).weights.itemsize
    if sharding == "fsdp2" and workload.bf16 and not workload.quantised:
        return 4
    if workload.adapter is not None:
        return 4 if workload.adapter.in_float32 else 2
    return workload.weights.itemsize


def _activations(workload: Workload, layout: Layout, share: Share) -> tuple[float, float]:
    """Bytes of activations and of logits when the loss is made, or when they are highest.

    The first stage of a pipeline of p holds the activations of up to p micro-batches (1F1B: Narayanan et al. 2021, arXiv
    2104.04473, section 2.2), the last one those of one; there is a loss on the last stage only.
    """
    one = workload.activations(layout.sharding, layout.tensor)
    in_flight = 1
    if layout.pipeline > 1 and not share.head:
        in_flight = min(layout.pipeline, workload.accumulation * layout.model)
    logits = workload.logits(layout.sharding) if share.head else 0
    kept = one.entering if workload.checkpointing else one.layer
    waiting = (in_flight * workload.trunks - 1) * share.layers * kept
    peak = one.peak(share.layers, workload.checkpointing, logits)
    return peak + waiting - logits, logits


class Buffers:
    """Gradients, and what is whole for a while, of one process: bytes at each moment."""

    def __init__(self, workload: Workload, layout: Layout, cluster: Cluster, share: Share):
        self.workload, self.layout, self.share = workload, layout, share
        self.stored = _stored(workload, layout.sharding)
        self.width = workload.numbers(layout.sharding).weights.itemsize
        self.touched = cluster.counts_when_touched
        # Gradients of earlier micro-batches of the same step are there when the loss of the last one is made.
        self.accumulates = workload.accumulation * layout.model > 1
        self.gradients_at_loss = self.gradients_at_end = self.gradients_at_step = 0.0
        self.at_loss = self.at_end = self.at_step = self.at_rollout = 0.0
        {DDP: self._ddp, ZERO1: self._zero1, ZERO2: self._zero2, "fsdp2": self._fsdp2}.get(
            layout.sharding, self._zero3
        )()

    def _ddp(self) -> None:
        """Gradients as wide as the weights; DDP's reducer holds them once more in its buckets."""
        gradients = self.stored * self.share.trained
        self.gradients_at_loss = gradients if self.accumulates else 0.0
        self.gradients_at_end = self.gradients_at_step = gradients
        buckets = gradients if self.layout.data > 1 else 0.0
        self.at_loss = self.at_end = self.at_step = self.at_rollout = buckets
        if self.workload.optimizer_temporary and not self.touched:
            self.at_step += self.stored * self.share.trained

    def _zero1(self) -> None:
        """All gradients; then a bucket of them copied together, and a copy of it that is reduced."""
        gradients, bucket = self.width * self.share.trained, self._bucket()
        self.gradients_at_loss = gradients if self.accumulates else 0.0
        self.gradients_at_end = gradients
        self.at_end = self.width * bucket
        self._step()

    def _zero2(self) -> None:
        """A process's share of the gradients; the others go through two buckets, and a copy of one is reduced."""
        share, bucket = self.width * self.share.trained / self.layout.data, self._bucket()
        filled = min(2 * bucket, self.share.trained) if self.touched else 2 * bucket
        self.gradients_at_loss = share if self.accumulates else 0.0
        self.gradients_at_end = share if self.share.trained > bucket else 0.0  # with one bucket, cut out of it later
        self.at_end = self.width * (filled + bucket)
        self._step()

    def _step(self) -> None:
        """A process's gradients in one piece, and in float32."""
        one = self.share.trained / self.layout.data
        self.gradients_at_step = self.width * one
        self.at_step = (self.width + (4 if self.width < 4 else 0)) * one

    def _bucket(self) -> int:
        return min(BUCKET, self.share.trained) if self.touched else BUCKET

    def _zero3(self) -> None:
        """A share of the gradients, kept from step to step; weights that are needed again soon stay gathered."""
        share, data = self.share, self.layout.data
        offloads = self.layout.sharding == "zero3-offload"
        every = self.workload.architecture.parameters + self.workload.extra_trained
        gathered = self.width * min(every, max(KEPT, share.whole + share.layer))
        largest = self.width * (share.whole if self.workload.adapter is None else 0)
        gradients = 0.0 if offloads else self.width * share.trained / data
        self.gradients_at_loss = self.gradients_at_end = self.gradients_at_step = gradients
        self.at_loss = gathered
        self.at_end = largest * 3  # the embedding, its gradient, and that once more in the buffer it is reduced in
        group = min(share.trained / data, GROUP)
        self.at_step = 0.0 if offloads else (self.width + (4 if self.width < 4 else 0)) * group
        self.at_rollout = self.width * every  # `ds3_gather_for_generation`

    def _fsdp2(self) -> None:
        """A share of the gradients; whole are the layer at work, the next one, the head, and a layer's gradients twice."""
        share = self.share
        layer, head = self.width * share.layer, self.width * share.head
        trained = 1 if self.workload.adapter is None else 0
        gradients = self.stored * share.trained / self.layout.data
        self.gradients_at_end = self.gradients_at_step = gradients
        self.gradients_at_loss = gradients if self.accumulates else 0.0
        self.at_loss = 2 * layer + (1 + trained) * head
        self.at_end = (2 + 2 * trained) * layer
        self.at_rollout = 2 * layer + head
        if self.accumulates and not self.workload.sync_each_batch:
            # accelerate's `no_sync` has FSDP2 add up whole gradients until the last micro-batch
            self.gradients_at_loss = self.width * share.trained
            self.at_loss = 2 * layer + head
