"""Data parallelism by hand, and the same loop on accelerate.

Every process has the whole model and its share of each batch. Two things make the processes one: they start from the
same weights, and before each step their gradients are averaged. The mean over equal shares of the means over each share
is the mean over the batch, so the step is that of one process with the whole batch.

Source: Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, arXiv 2006.15704.
"""

import copy
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from recipes.distributed.processes import device
from recipes.distributed.small_llama import SmallLlamaConfig


def broadcast_weights(model: nn.Module) -> None:
    """Give every process the weights and buffers of the first."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor.detach(), 0)


def split_into_buckets(parameters: Iterable[nn.Parameter], bucket_bytes: float) -> list[list[nn.Parameter]]:
    """The parameters, last first, in runs of at most `bucket_bytes`; one that is larger has a bucket of its own.

    Many small messages pay the latency of each; one message of all gradients cannot leave before the last of them is
    there. Last first, because the backward pass comes to the last layers first (section 3.2.3).
    """
    buckets, room = [], 0.0
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        if not buckets or parameter.nbytes > room:
            buckets.append([])
            room = bucket_bytes
        buckets[-1].append(parameter)
        room -= parameter.nbytes
    return buckets


class GradientAverager:
    """Averages a model's gradients over all processes, bucket by bucket, while the backward pass computes the rest.

    Between `loss.backward()` and `optimizer.step()` stands `finish()`.
    """

    def __init__(self, model: nn.Module, bucket_bytes: float):
        self.model = model
        self.buckets = split_into_buckets(model.parameters(), bucket_bytes)
        self.bucket_of = {parameter: index for index, bucket in enumerate(self.buckets) for parameter in bucket}
        for parameter in self.bucket_of:
            parameter.register_post_accumulate_grad_hook(self._gradient_is_there)
        self._begin()

    def _begin(self) -> None:
        self.missing = [len(bucket) for bucket in self.buckets]
        self.under_way: list[tuple[torch.Tensor, dist.Work]] = []

    def _gradient_is_there(self, parameter: nn.Parameter) -> None:
        """Send off the next bucket if it is full; in their order, since all processes must send the same one."""
        self.missing[self.bucket_of[parameter]] -= 1
        while len(self.under_way) < len(self.buckets) and not self.missing[len(self.under_way)]:
            bucket = self.buckets[len(self.under_way)]
            flat = torch.cat([each.grad.view(-1) for each in bucket]) / dist.get_world_size()
            self.under_way.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Wait for the averages and put them into the parameters' gradients.

        Raises:
            RuntimeError: a parameter had no gradient, so that its bucket never left.
        """
        if len(self.under_way) < len(self.buckets):
            without = [tuple(parameter.shape) for parameter in self.bucket_of if parameter.grad is None]
            raise RuntimeError(f"the loss does not depend on parameters of shapes {without}; freeze them")
        for bucket, (flat, work) in zip(self.buckets, self.under_way):
            work.wait()
            for parameter, average in zip(bucket, flat.split([each.numel() for each in bucket])):
                parameter.grad.copy_(average.view_as(parameter))
        self._begin()


# ------------------------------------------------------------------------------------------------------ one loop, twice
def by_hand(
    rank: int, shape: SmallLlamaConfig, rows: torch.Tensor, learning_rate: float, seed: int, bucket_bytes: float
) -> list[float]:
    """The loss of each step: `small_llama.train_alone` with each process on its share of the rows.

    Args:
        rows: (steps, batch, length) bytes, the whole batch of every step.
    """
    model = shape.build(seed + rank).to(device())
    broadcast_weights(model)
    averager = GradientAverager(model, bucket_bytes)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    losses = []
    for batch in rows.to(device()):
        mine = batch.chunk(dist.get_world_size())[rank]
        loss = model(input_ids=mine, labels=mine).loss
        loss.backward()
        averager.finish()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean_of_processes(loss))
    return losses


def with_accelerate(
    rank: int, shape: SmallLlamaConfig, rows: torch.Tensor, learning_rate: float, seed: int
) -> list[float]:
    """The same on accelerate, which wraps the model in torch's DistributedDataParallel and deals the batches out."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device().type == "cpu")
    model = shape.build(seed + rank)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    share = rows.shape[1] // accelerator.num_processes
    loader = torch.utils.data.DataLoader(rows.flatten(0, 1), batch_size=share)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for mine in loader:
        loss = model(input_ids=mine, labels=mine).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean_of_processes(loss))
    return losses


def mean_of_processes(loss: torch.Tensor) -> float:
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def compare(
    rank: int,
    shape: SmallLlamaConfig,
    rows: torch.Tensor,
    learning_rate: float,
    seed: int,
    bucket_bytes: float,
    timed_bucket_bytes: list[float],
    repeats: int,
) -> dict[str, Any]:
    """The losses `by hand` and `by accelerate`, and the `timings` of a step."""
    return {
        "by hand": by_hand(rank, shape, rows, learning_rate, seed, bucket_bytes),
        "by accelerate": with_accelerate(rank, shape, rows, learning_rate, seed),
        "timings": step_seconds(rank, shape.build(seed), rows[0], timed_bucket_bytes, repeats),
    }


# -------------------------------------------------------------------------------------------------------- time of a step
def step_seconds(
    rank: int, model: nn.Module, batch: torch.Tensor, bucket_bytes: list[float], repeats: int
) -> dict[str, Any]:
    """How long forward, backward and averaging take with each size of bucket, the fastest of `repeats`.

    Args:
        batch: (batch, length) bytes, the whole batch.

    Returns:
        `seconds` and `buckets`, their number, in the order of `bucket_bytes`; `apart`, seconds with nothing averaged.
    """
    mine = batch.chunk(dist.get_world_size())[rank].to(device())
    averagers = [GradientAverager(copy.deepcopy(model).to(device()), size) for size in bucket_bytes]
    return {
        "apart": _fastest_step(model.to(device()), mine, lambda: None, repeats),
        "seconds": [_fastest_step(each.model, mine, each.finish, repeats) for each in averagers],
        "buckets": [len(each.buckets) for each in averagers],
    }


def _fastest_step(model: nn.Module, mine: torch.Tensor, finish: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        model.zero_grad()
        dist.barrier()
        began = time.monotonic()
        model(input_ids=mine, labels=mine).loss.backward()
        finish()
        if device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    return min(seconds[1:])  # the first one allocates
