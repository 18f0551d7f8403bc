"""Memory of one process at the moments of a step when it may be highest.

What is trained takes, in the letters of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1), 2Ψ bytes of weights,
2Ψ of gradients and KΨ of optimizer states in mixed precision, with K = 12: a float32 copy of the weights and Adam's two
moments. The shardings divide the last, the last two, or all three by the number of processes (section 5). To that come
the buffers of the libraries that do it, which are read from their source: DeepSpeed 0.19, accelerate 1.15, torch 2.13.

The moments: the loss, and the backward pass of the last layer after it, when all activations are alive and few gradients;
the end of the backward pass, the other way round; the optimizer's step; the pass of a model that is only read; and where a
policy learns from its own responses, their sampling. A process needs the most of them.
"""

from dataclasses import dataclass, fields

from recipes.planner.hardware import GIB, Cluster
from recipes.planner.layouts import Layout
from recipes.planner.workload import Workload

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
    embedding: int  # 0 if it is on another stage
    head: int  # 0 likewise
    tied: bool

    @property
    def around(self) -> int:
        """Of embedding and head together."""
        return self.head if self.tied else self.embedding + self.head


def shares(workload: Workload, layout: Layout) -> list[Share]:
    """The first and the last stage of a pipeline, which have the most; the same one without a pipeline."""
    model, tensor = workload.architecture, layout.tensor
    around = model.parameters - model.in_layers  # embedding, head, norm
    in_layers = (model.matrices / tensor + model.parameters - around - model.matrices) / model.layers
    layers = -(-model.layers // layout.pipeline)
    embedding, head, layer = model.embedding // tensor, workload.head // tensor, round(in_layers)
    if layout.pipeline == 1:
        trained = workload.trained if tensor == 1 else round(in_layers * model.layers + around / tensor)
        return [Share(trained, layers, layer, embedding, head, model.tied and workload.loss != "score")]
    first = Share(layers * layer + embedding, layers, layer, embedding, 0, False)
    last = Share(layers * layer + head, layers, layer, 0, head, False)
    return [first, last]


def memory(workload: Workload, layout: Layout, cluster: Cluster) -> Memory:
    """The most that any process needs, at the moment when it needs it."""
    found = [moment for share in shares(workload, layout) for moment in moments(workload, layout, cluster, share)]
    return max(found, key=lambda moment: moment.total)


def moments(workload: Workload, layout: Layout, cluster: Cluster, share: Share) -> list[Memory]:
    """What a process with this share of the model needs at each moment."""
    one = Process(workload, layout, share, cluster.on_cpus)
    always = one.states() | {"overhead": cluster.overhead_gib * GIB}
    at = BUFFERS[layout.sharding](one)
    kept, working = _activations(workload, layout, share)
    logits = workload.logits(layout.sharding, cluster.on_cpus) if share.head else 0
    found = [
        Memory("loss", **always, **at.loss, activations=kept, logits=logits),
        Memory("start of backward", **always, **at.start, activations=kept + working),
        Memory("end of backward", **always, **at.end, activations=working),
        Memory("optimizer step", **always, **at.step),
    ]
    if workload.others:
        alive = kept if workload.rollout is None else 0  # the policy's, when the reference is asked after it
        gathered = {"gradients": one.lasting, "gathered": one.read()}
        found.append(Memory("pass of another model", **always, **gathered, activations=alive))
    if workload.rollout is not None:
        gathered = {"gradients": one.lasting, "gathered": one.sampled()}
        cache = workload.cache_bytes(workload.numbers(layout.sharding).width)
        logits = 3 * 4 * workload.rollout.together * workload.architecture.vocabulary
        found.append(Memory("sampling", **always, **gathered, cache=cache, logits=logits))
    return found


def _activations(workload: Workload, layout: Layout, share: Share) -> tuple[int, int]:
    """Bytes of activations between the passes, and of a layer's backward pass on top.

    The first stage of a pipeline of p holds the activations of up to p micro-batches (1F1B: Narayanan et al. 2021, arXiv
    2104.04473, section 2.2), the last one those of one.
    """
    one = workload.activations(layout.sharding, layout.tensor)
    in_flight = 1
    if layout.pipeline > 1 and not share.head:
        in_flight = min(layout.pipeline, round(workload.accumulation * layout.model))
    kept = one.kept(share.layers * in_flight * workload.trunks, workload.checkpointing)
    return kept, one.working(workload.checkpointing)


@dataclass(frozen=True)
class Process:
    """One process with its share of the model; `on_cpus`: see `hardware.Cluster`."""

    workload: Workload
    layout: Layout
    share: Share
    on_cpus: bool

    @property
    def computed(self) -> int:
        """Bytes of a weight that computes."""
        return self.workload.numbers(self.layout.sharding).weights.itemsize

    @property
    def stored(self) -> int:
        """Bytes of a trained weight as it is kept: accelerate widens FSDP2's to float32, PEFT an adapter's."""
        workload, sharding = self.workload, self.layout.sharding
        if sharding.startswith("zero"):
            return self.computed
        if sharding == "fsdp2" and workload.bf16 and not workload.quantised:
            return 4
        if workload.adapter is not None:
            return 4 if workload.adapter.in_float32 else 2
        return workload.weights.itemsize

    @property
    def every(self) -> int:
        """Parameters of the models that are trained, with frozen ones, and without quantised ones."""
        return self.share.trained + self.workload.frozen

    @property
    def own(self) -> float:
        """Trained parameters that are this process's where they are shared out."""
        return self.share.trained / self.layout.data

    @property
    def lasting(self) -> float:
        """Bytes of gradients that stay from step to step: ZeRO-3's."""
        return self.computed * self.own if self.layout.sharding == "zero3" else 0.0

    @property
    def accumulates(self) -> bool:
        """Whether gradients of earlier micro-batches are there when the loss of the last one is made."""
        return self.workload.accumulation * self.layout.model > 1

    def states(self) -> dict[str, float]:
        """Bytes that stay from step to step: weights, optimizer states, models that are only read."""
        workload, sharding, data = self.workload, self.layout.sharding, self.layout.data
        trained, deepspeed = self.share.trained, sharding.startswith("zero")
        read = self.computed if deepspeed else workload.weights.itemsize  # DeepSpeed casts frozen weights too
        frozen, quantised = workload.frozen * read, workload.quantised_bytes
        others = 0 if workload.offloaded else sum(role.parameters for role in workload.others) * read
        by_one = workload.optimizer_bytes(4 if deepspeed else self.stored)
        if sharding == "ddp":
            weights = self.stored * trained + frozen + quantised
            return {"weights": weights, "optimizer": by_one * trained, "others": others}
        if sharding == "fsdp2":
            weights = self.stored * self.own + frozen / data + quantised  # accelerate leaves these whole
            return {"weights": weights, "optimizer": by_one * self.own, "others": others / data}
        # DeepSpeed updates a float32 copy of the weights, even of float32 ones
        master = (4 + by_one) * self.own
        if sharding in ("zero1", "zero2"):
            weights = self.computed * trained + frozen + quantised
            return {"weights": weights, "optimizer": master, "others": others}
        weights = self.computed * self.own + frozen / data
        if sharding == "zero3-offload":
            gradients = (self.computed + 4) * self.own  # as they arrive, and in float32 for the optimizer
            return {"host": weights + master + others / data + gradients}
        return {"weights": weights, "optimizer": master, "others": others / data}

    # ------------------------------------------------------------------------------------------ what is whole for a while
    @property
    def bucket(self) -> int:
        """Parameters in a bucket of DeepSpeed's."""
        return min(BUCKET, self.share.trained) if self.on_cpus else BUCKET

    @property
    def first_bucket(self) -> float:
        """Bytes of a bucket with its first gradient, the head's: reserved whole, or as far as it is written to."""
        return self.computed * (min(self.bucket, self.share.head) if self.on_cpus else BUCKET)

    @property
    def layer_bytes(self) -> float:
        """Of a layer's weights that FSDP2 puts together, which bitsandbytes' are not."""
        return 0.0 if self.workload.quantised else self.computed * self.share.layer

    @property
    def root_bytes(self) -> float:
        """Of the weights that FSDP2 leaves whole from the forward to the backward pass.

        accelerate gives embedding and head units of their own and leaves the head's whole. It does not find them in
        PPO's policy and value, which are one module, so that both stay whole, of both models.
        """
        share, value = self.share, self.workload.value
        return self.computed * (share.head if value is None else share.around + value.embedding)

    @property
    def reused(self) -> int:
        """Parameters that ZeRO-3 holds gathered as they are needed again soon, as far as it can tell: what is sampled and
        scored between the steps changes the order of the modules, which it goes by."""
        return KEPT if self.workload.rollout is None else 0

    def kept(self, parameters: int, reused: int) -> float:
        """Bytes that ZeRO-3 holds gathered of a model of so many parameters."""
        at_work = max(self.share.embedding, self.share.head) + self.share.layer
        return self.computed * min(parameters, max(reused, at_work))

    def read(self) -> float:
        """Bytes that are gathered while another model passes over the data: FSDP2 has it as one unit."""
        largest = max(role.parameters for role in self.workload.others)
        if self.layout.sharding == "fsdp2":
            return self.computed * largest
        if self.layout.sharding.startswith("zero3"):
            return self.kept(largest, reused=0)
        return _reducer(self) + (self.computed * largest if self.workload.offloaded else 0.0)

    def sampled(self) -> float:
        """Bytes that are gathered while responses are sampled."""
        if self.layout.sharding == "fsdp2":
            if not self.workload.rollout.gathered_once:
                return 2 * self.layer_bytes + self.root_bytes
            return self.share.layers * self.layer_bytes + self.root_bytes
        if self.layout.sharding.startswith("zero3"):
            return self.computed * self.every  # DeepSpeed's GatheredParameters of all that is trained
        model, numbers = self.workload.architecture, self.workload.numbers(self.layout.sharding)
        cast = (
            numbers.width < self.computed and self.workload.adapter is None
        )  # autocast keeps them, of what is trained
        return _reducer(self) + (numbers.width * (model.matrices + model.head) if cast else 0.0)


def _reducer(one: Process) -> float:
    """DDP's reducer holds the gradients once more, in its buckets."""
    return one.stored * one.share.trained if one.layout.sharding == "ddp" and one.layout.data > 1 else 0.0


Held = dict[str, float]


def held(gradients: float, gathered: float = 0.0) -> Held:
    """Bytes of gradients, and of what is gathered or in transit."""
    return {"gradients": gradients, "gathered": gathered}


@dataclass(frozen=True)
class Buffers:
    """What is held at the moments of a step."""

    loss: Held
    start: Held
    end: Held
    step: Held


def _ddp(one: Process) -> Buffers:
    """Gradients as wide as the weights."""
    gradients, buckets = one.stored * one.share.trained, _reducer(one)
    earlier = held(gradients if one.accumulates else 0.0, buckets)
    temporary = gradients if one.workload.optimizer_temporary and not one.on_cpus else 0.0
    return Buffers(earlier, earlier, held(gradients, buckets), held(gradients, buckets + temporary))


def _zero1(one: Process) -> Buffers:
    """All gradients, and a bucket in which they are reduced."""
    gradients, bucket = one.computed * one.share.trained, one.computed * one.bucket
    earlier = gradients if one.accumulates else 0.0
    start = held(earlier, one.first_bucket)
    return Buffers(held(earlier), start, held(gradients, bucket), _zero_step(one))


def _zero2(one: Process) -> Buffers:
    """A process's share of the gradients; the others go through two buckets, and a copy of one is reduced."""
    trained, bucket = one.share.trained, one.bucket
    filled = min(2 * bucket, trained) if one.on_cpus else 2 * bucket
    own = one.computed * one.own
    earlier = own if one.accumulates else 0.0
    kept = own if trained > bucket else 0.0  # with one bucket, it is cut out of it later
    start = held(earlier, 2 * one.first_bucket)
    return Buffers(held(earlier), start, held(kept, one.computed * (filled + bucket)), _zero_step(one))


def _zero_step(one: Process, most: float = float("inf")) -> Held:
    """A process's gradients in one piece, and of so many at a time in float32."""
    return held(one.computed * one.own, (one.computed + (4 if one.computed < 4 else 0)) * min(one.own, most))


def _zero3(one: Process) -> Buffers:
    """A share of the gradients, kept from step to step; weights that are needed again soon stay gathered."""
    step, kept = _zero_step(one, GROUP), one.kept(one.every, one.reused)
    # the embedding, its gradient, and that once more in the buffer it is reduced in
    largest = 3 * one.computed * max(one.share.embedding, one.share.head) if one.workload.adapter is None else 0.0
    whole = held(step["gradients"], kept)
    return Buffers(whole, whole, held(step["gradients"], largest), step)


def _offload(one: Process) -> Buffers:
    """As ZeRO-3; gradients, states and the step are the host's."""
    as_zero3 = _zero3(one)
    moments = (as_zero3.loss, as_zero3.start, as_zero3.end)
    return Buffers(*(held(0.0, moment["gathered"]) for moment in moments), held(0.0))


def _fsdp2(one: Process) -> Buffers:
    """A share of the gradients; whole are the root, in the backward pass the layer at work and the next one, and what
    becomes their gradients: as the pass leaves it, and then in the buffer in which it is reduced."""
    workload, share, own = one.workload, one.share, one.stored * one.own
    trains = workload.adapter is None
    layer, root, embedding = one.layer_bytes, one.root_bytes, one.computed * share.embedding
    stays = share.tied or workload.value is not None  # to the end, as the embedding is in it
    earlier = own if one.accumulates else 0.0
    if one.accumulates and not workload.sync_each_batch:
        earlier = one.computed * share.trained  # accelerate's `no_sync`: whole ones until the last micro-batch
    # at the last layer: it, its gradient, the next one, and of the head what is reduced or stays
    start = held(earlier, (3 if trains else 2) * layer + (2 if stays and trains else 1) * root)
    # at the first layer: it, its gradient and what is reduced; only the embedding's gradient is missing
    around = (3 if trains else 1) * root if stays else embedding
    missing = (share.layer + (share.around if stays else share.embedding)) if trains else 0
    end = held(own - one.stored * missing / one.layout.data, (3 if trains else 1) * layer + around)
    temporary = own if workload.optimizer_temporary and not one.on_cpus else 0.0
    return Buffers(held(earlier, root), start, end, held(own, temporary))


BUFFERS = {
    "ddp": _ddp,
    "zero1": _zero1,
    "zero2": _zero2,
    "zero3": _zero3,
    "zero3-offload": _offload,
    "fsdp2": _fsdp2,
}
