"""Every layout of a workload on a cluster, which of them is best, and what to change if none fits."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from recipes.core.errors import UserError
from recipes.planner.architecture import Adapter
from recipes.planner.communication import traffic
from recipes.planner.hardware import GIB, Cluster
from recipes.planner.layouts import Layout, layouts
from recipes.planner.memory import Memory, memory
from recipes.planner.speed import Speed, speed
from recipes.planner.workload import Workload

TIGHT = 0.9  # share of the memory above which the allocator's gaps may decide
LORA = {"method": "lora", "r": 16, "target_modules": "all-linear"}
SYNC_EACH_BATCH = "--accelerator_config.gradient_accumulation_kwargs.sync_each_batch true"
HOUR = 3600


@dataclass(frozen=True)
class Plan:
    """A layout with what it needs and how fast it is.

    `sent`: bytes of a GPU in a step, by link. `room`, `host_room`: bytes of a GPU, and what the host has for it.
    """

    layout: Layout
    memory: Memory
    speed: Speed
    sent: dict[str, float]
    room: float
    host_room: float

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.room and self.memory.host <= self.host_room

    @property
    def verdict(self) -> str:
        if not self.fits:
            return "no"
        return "yes" if self.memory.total <= TIGHT * self.room else "tight"


def plan(workload: Workload, cluster: Cluster) -> list[Plan]:
    """The best layout of each family, in the order of the families.

    Raises:
        UserError: the GPU cannot compute in the config's numbers.
    """
    if cluster.gpu.bf16_tflops is None and (workload.bf16 or workload.weights == torch.bfloat16):
        raise UserError(
            f"{cluster.gpu.name} has no bfloat16, in which {workload.name} trains: take another --gpu, or plan in "
            "float32 with --bf16 false --dtype float32"
        )
    families: dict[str, list[Plan]] = {}
    for layout in layouts(workload, cluster):
        families.setdefault(layout.family, []).append(_plan(workload, layout, cluster))
    return [best(plans) for plans in families.values()]


def _plan(workload: Workload, layout: Layout, cluster: Cluster) -> Plan:
    sent: dict[str, float] = {}
    for message in traffic(workload, layout, cluster):
        link = cluster.network.name if message.spans_nodes else cluster.gpu.link
        sent[link] = sent.get(link, 0) + message.sent()
    rooms = (cluster.gpu.memory_gib * GIB, cluster.host_gib * GIB)
    return Plan(layout, memory(workload, layout, cluster), speed(workload, layout, cluster), sent, *rooms)


def best(plans: list[Plan]) -> Plan:
    """The fastest that fits; of plans that do not, the one that needs least."""
    fitting = [one for one in plans if one.fits]
    if fitting:
        return min(fitting, key=lambda one: (one.speed.seconds, one.memory.total))
    return min(plans, key=lambda one: one.memory.total + one.memory.host)


def tokens_of(workload: Workload, found: Plan) -> int | None:
    """Of the whole training, or None where the config does not say."""
    return workload.steps * found.speed.tokens if workload.steps else workload.tokens


def gpu_hours(workload: Workload, found: Plan, cluster: Cluster) -> float | None:
    """Of the whole training, or None where the config does not say how long it is."""
    tokens = tokens_of(workload, found)
    return None if tokens is None else tokens / found.speed.tokens_a_second * cluster.gpus / HOUR


@dataclass(frozen=True)
class Change:
    """Something to change in the config or the cluster, as words of the command line, and the best plan after it."""

    words: str
    plan: Plan


def changes(workload: Workload, cluster: Cluster) -> list[Change]:
    """What would make a layout fit, least first: one change after another is added until one does."""
    found, words = [], []
    for more, lighter in _lighter(workload):
        words = [*words, more]
        found.append(Change(" ".join(words), best(plan(lighter, cluster))))
        if found[-1].plan.fits:
            break
    return found


def more_gpus(workload: Workload, cluster: Cluster, most: int = 16384) -> Change | None:
    """The smallest number of GPUs, twice the cluster's or twice that and so on, on which a layout fits."""
    gpus = cluster.gpus
    while (gpus := gpus * 2) <= most:
        larger = replace(cluster, gpus=gpus, nodes=-(-gpus // max(cluster.node, cluster.gpu.node)))
        if gpus % larger.nodes == 0 and (found := best(plan(workload, larger))).fits:
            return Change(f"--gpus {gpus} --nodes {larger.nodes}", found)
    return None


def _lighter(workload: Workload) -> Iterator[tuple[str, Workload]]:
    """The workload with one after another of what saves memory, none of which changes what a step learns from but the
    last: an adapter in place of all weights, which pretraining has none of."""
    if not workload.checkpointing:
        workload = workload.changed(checkpointing=True)
        yield "--activation_checkpointing true", workload
    if workload.accumulation > 1 and not workload.sync_each_batch:
        workload = workload.changed(sync_each_batch=True)
        yield SYNC_EACH_BATCH, workload
    samples = workload.sequences // workload.pair
    if samples > 1:
        accumulation = workload.accumulation * samples
        workload = workload.changed(sequences=workload.pair, accumulation=accumulation)
        yield f"--per_device_train_batch_size 1 --gradient_accumulation_steps {accumulation}", workload
    if workload.adapter is None and "8bit" not in workload.optimizer and workload.optimizer.startswith("adamw"):
        workload = workload.changed(optimizer="adamw_8bit")
        yield "--optim adamw_8bit", workload
    if workload.name.startswith("pretraining/"):
        return
    if workload.adapter is None:
        others = tuple(role for role in workload.others if role.name != "reference")  # the base is one
        based = len(others) < len(workload.others)
        rollout = workload.rollout and replace(workload.rollout, based=based)
        workload = workload.changed(adapter=Adapter(json.dumps(LORA)), others=others, rollout=rollout)
        yield "--peft '{method: lora, r: 16, target_modules: all-linear}'", workload
    if not workload.quantised:
        adapter = replace(workload.adapter, in_float32=False)
        workload = workload.changed(quantised="4bit-double", adapter=adapter)
        yield "--load_in_4bit true --use_bnb_nested_quant true", workload
