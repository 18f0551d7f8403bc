"""What a rank holds of parameters, gradients and optimizer states when they are sharded: formulas, and real tensors.

ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054, sections 3 and 5) splits the states of a model of Ψ parameters over p
ranks in stages. With Adam in mixed precision a parameter takes 2 bytes, its gradient 2, and the optimizer K = 12: a
master copy, momentum and variance, 4 bytes each. In full precision the weight is its own master: 4 + 4 + 8.

                      mixed precision                full precision
    nothing split     2Ψ + 2Ψ + KΨ                   4Ψ + 4Ψ + 8Ψ
    1 optimizer       2Ψ + 2Ψ + KΨ/p                 4Ψ + 4Ψ + 8Ψ/p
    2 and gradients   2Ψ + (2 + K)Ψ/p                4Ψ + 12Ψ/p
    3 and parameters  (2 + 2 + K)Ψ/p                 16Ψ/p

FSDP2 splits everything as stage 3 does. In mixed precision what it keeps are the master weights; the 2-byte copy of a
layer lives only while the layer is at work, so the same 16Ψ/p are 4 + 4 + 8.
"""

import contextlib
import gc
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from recipes.distributed.processes import device
from recipes.distributed.small_llama import SmallLlamaConfig

STAGES = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}  # what stage of ZeRO a strategy amounts to
PRECISIONS = ("full", "mixed")
KINDS = ("parameters", "gradients", "optimizer")

States = dict[str, dict[int, int]]  # bytes of each storage by its address, by kind


def formula(strategy: str, precision: str, processes: int) -> dict[str, float]:
    """Bytes a rank holds of each kind for each parameter of the model: the table above."""
    whole = (2, 2, 12) if precision == "mixed" and strategy != "fsdp2" else (4, 4, 8)
    split_from = (3, 2, 1)  # parameters are split from stage 3 on, gradients from 2, the optimizer from 1
    return {
        kind: size / processes if STAGES[strategy] >= stage else size
        for kind, size, stage in zip(KINDS, whole, split_from)
    }


def master_copy(strategy: str, precision: str, processes: int) -> float:
    """Bytes a parameter of DeepSpeed's master copy in full precision, where the paper needs none: 4Ψ/p from stage 1 on."""
    return 4 / processes if precision == "full" and strategy in ("zero1", "zero2", "zero3") else 0.0


# ------------------------------------------------------------------------------------------------------ the strategies
@dataclass
class Sharded:
    """A model under one strategy: how it is called, and what else than the model holds its states."""

    forward: Callable[..., Any]
    backward: Callable[[torch.Tensor], None]
    step: Callable[[], None]
    optimizer: torch.optim.Optimizer
    wrapper: Any  # DeepSpeed's own optimizer around it


def with_deepspeed(model: nn.Module, stage: int, precision: str, bucket: int) -> Sharded:
    """The model under ZeRO; nothing is kept or fetched beyond what the stage needs, so that the stage is what is seen.

    Args:
        bucket: gradients are reduced in buckets of this many numbers.
    """
    if device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # also on a machine with fewer GPUs than processes
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    zero = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket, "overlap_comm": False}
    if stage == 3:
        kept = ("param_persistence_threshold", "prefetch_bucket_size", "max_live_parameters", "max_reuse_distance")
        zero |= {f"stage3_{key}": 0 for key in kept}
    config = {
        "train_batch_size": dist.get_world_size(),
        "bf16": {"enabled": precision == "mixed"},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000,
    }
    optimizer = torch.optim.AdamW(model.parameters())
    with contextlib.redirect_stdout(io.StringIO()):  # every process tells of a kernel that was compiled
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return Sharded(engine, engine.backward, engine.step, optimizer, engine.optimizer)


def with_fsdp2(model: nn.Module, precision: str) -> Sharded:
    """The model under fully_shard, layer by layer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if precision == "mixed" else None)
    for module in (*model.model.layers, model):
        fully_shard(module, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Sharded(model, torch.Tensor.backward, step, optimizer, None)


# -------------------------------------------------------------------------------------------------------------- measure
def measure(
    rank: int, shape: SmallLlamaConfig, strategies: list[str], precisions: list[str], bucket: int, seed: int
) -> dict[str, dict[str, dict[str, int]]]:
    """What this rank holds, by precision and strategy; see `measure_one`."""
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed calls torch's collectives by their old names
    return {
        precision: {strategy: measure_one(shape, strategy, precision, bucket, seed) for strategy in strategies}
        for precision in precisions
    }


def measure_one(shape: SmallLlamaConfig, strategy: str, precision: str, bucket: int, seed: int) -> dict[str, int]:
    """Bytes of real tensors that this rank holds in its second training step; the first made the optimizer's states.

    Returns:
        the most of each of KINDS, and of `gathered`, at any moment of the backward pass; `in_step`, all of these together
        when the optimizer begins its step; `other`, all other tensors that live on after the backward pass;
        `model_parameters`, Ψ.
    """
    gc.collect()
    before = storages(all_tensors())
    model = shape.build(seed).to(device())
    count = sum(parameter.numel() for parameter in model.parameters())
    if strategy == "fsdp2":
        sharded = with_fsdp2(model, precision)
    else:
        sharded = with_deepspeed(model, STAGES[strategy], precision, bucket)
    at_rest = storages(held_parameters(model))
    row = torch.randint(0, 256, (1, shape.max_length), device=device())
    sharded.backward(sharded.forward(input_ids=row, labels=row).loss)
    sharded.step()

    in_backward: list[dict[str, int]] = []
    in_step: list[dict[str, int]] = []
    watch(model, lambda: in_backward.append(totals(states(model, sharded, at_rest))))
    sharded.optimizer.register_step_pre_hook(lambda *_: in_step.append(totals(states(model, sharded, at_rest))))
    sharded.backward(sharded.forward(input_ids=row, labels=row).loss)
    held = states(model, sharded, at_rest)
    gc.collect()  # what Python has not cleared away yet is not held
    known = before.keys() | set().union(*held.values())
    other = sum(size for place, size in storages(all_tensors()).items() if place not in known)
    in_backward.append(totals(held))
    sharded.step()
    return {
        **{kind: max(moment[kind] for moment in in_backward) for kind in held},
        "in_step": max(sum(moment.values()) for moment in in_step),
        "other": other,
        "model_parameters": count,
    }


def watch(model: nn.Module, sample: Callable[[], None]) -> None:
    """Call `sample` all along the backward pass: at each layer, and when the last gradient, the first weight's, is there."""
    next(model.parameters()).register_post_accumulate_grad_hook(lambda _: sample())
    for layer in model.model.layers:
        layer.register_forward_hook(lambda module, inputs, output: output.register_hook(lambda _: sample()) and None)


def states(model: nn.Module, sharded: Sharded, at_rest: dict[int, int]) -> States:
    """The storages that hold each of KINDS, and `gathered`: parameters that are whole for a moment, at work.

    Each storage is counted once, for the first of them that it serves.

    Args:
        at_rest: storages of the parameters between two steps.
    """
    parameters = list(model.parameters())
    optimized = [parameter for group in sharded.optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in (*parameters, *optimized) if parameter.grad is not None]
    gradients += tensors_in(getattr(sharded.wrapper, "averaged_gradients", None))
    optimizer = [*tensors_in(dict(sharded.optimizer.state)), *optimized]
    optimizer += tensors_in(getattr(sharded.wrapper, "fp32_partitioned_groups_flat", None))  # stage 3's master copy
    found: States = {"parameters": at_rest}
    for kind, tensors in (
        ("gathered", held_parameters(model)),
        ("gradients", gradients),
        ("optimizer", optimizer),
    ):
        taken = set().union(*found.values())
        found[kind] = {place: size for place, size in storages(tensors).items() if place not in taken}
    return found


def totals(found: States) -> dict[str, int]:
    return {kind: sum(sizes.values()) for kind, sizes in found.items()}


def held_parameters(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every parameter, and under ZeRO-3 the rank's part of it."""
    for parameter in model.parameters():
        yield parameter
        yield from tensors_in(getattr(parameter, "ds_tensor", None))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(inner)


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of memory behind the tensors, by address: views of one storage are one entry; a DTensor is its local part."""
    found = {}
    for tensor in tensors:
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        if local.device.type == device().type and local.untyped_storage().nbytes():
            found[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return found


def all_tensors() -> Iterator[torch.Tensor]:
    """Every tensor that Python knows of."""
    return (each for each in gc.get_objects() if issubclass(type(each), torch.Tensor))
