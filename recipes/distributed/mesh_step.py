"""A few steps of a LLaMA on a mesh of processes: rows shared out, layers in a pipeline, columns split, all at once.

Each process stands on three axes. Those that differ only in `data` hold the same weights and see other rows: they sum
gradients. Those that differ only in `pipeline` hold other layers: they send activations on and their gradients back. Those
that differ only in `tensor` hold other columns of the same layers: they sum within each layer. An axis may have length 1.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from recipes.distributed.deviation import largest_deviation
from recipes.distributed.pipeline_stage import LlamaStage, next_byte_loss
from recipes.distributed.processes import device
from recipes.distributed.split_linear import SPLIT, split_llama

if TYPE_CHECKING:
    from recipes.distributed.mesh import MeshConfig

AXES = ("data", "pipeline", "tensor")


@dataclass
class Holding:
    """What one process has, read off its rows and its tensors, and what it found.

    Attributes:
        place: its index on each axis.
        rows, layers, heads: those it has, of the batch, of the model, of a layer.
        parameter_bytes: of its share of the model.
        losses: of the whole batch at each step; known where the pipeline ends.
        gradient_deviation: of its share of the first step's gradients from one process.
    """

    place: dict[str, int]
    rows: range
    layers: list[int]
    heads: range
    parameter_bytes: int
    losses: list[float]
    gradient_deviation: float


def train_whole(rank: int, task: "MeshConfig", batches: Tensor) -> tuple[list[float], dict[str, Tensor]]:
    """One process on the whole batches: the loss of each step, and the gradients of the first."""
    model = task.build(task.seed).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.learning_rate)
    losses, first = [], {}
    for rows in batches.to(device()):
        optimizer.zero_grad()
        loss = next_byte_loss(model(rows).logits, rows)
        loss.backward()
        first = first or {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return losses, first


def train_on_meshes(
    rank: int, task: "MeshConfig", shapes: list[list[int]], batches: Tensor, gradients: dict[str, Tensor]
) -> list[Holding]:
    """The same steps on one mesh after another, all of them of as many processes as there are.

    Args:
        shapes: of each mesh the lengths of the axes data, pipeline, tensor.
        batches: (steps, batch, length), the whole ones.
        gradients: those of the first step in one process.
    """
    return [train_on_mesh(task, shape, batches, gradients) for shape in shapes]


def train_on_mesh(task: "MeshConfig", shape: list[int], batches: Tensor, gradients: dict[str, Tensor]) -> Holding:
    """The same steps, this process being one point of a mesh; arguments as above."""
    mesh = init_device_mesh(device().type, tuple(shape), mesh_dim_names=AXES)
    place = dict(zip(AXES, mesh.get_coordinate()))
    data, pipeline, tensor = shape

    model = task.build(task.seed)
    split_llama(model, mesh["tensor"].get_group())
    module = LlamaStage(model, place["pipeline"], pipeline).to(device())
    stage = PipelineStage(module, place["pipeline"], pipeline, device(), group=mesh["pipeline"].get_group())
    schedule = Schedule1F1B(stage, task.micro_batches, loss_fn=next_byte_loss)
    optimizer = torch.optim.AdamW(module.parameters(), lr=task.learning_rate)

    losses, first = [], {}
    for whole in batches:
        rows = whole.chunk(data)[place["data"]].to(device())
        optimizer.zero_grad()
        parts: list[Tensor] = []
        schedule.step(
            *((rows,) if stage.is_first else ()),
            target=rows if stage.is_last else None,
            losses=parts,
            return_outputs=False,
        )
        mean_over_data(module, mesh)
        first = first or {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
        optimizer.step()
        if stage.is_last:
            loss = torch.stack(parts).mean()
            dist.all_reduce(loss, group=mesh["data"].get_group())
            losses.append(loss.item() / data)

    expected = {name: slice_of(name, gradients[name], place["tensor"], tensor) for name in first}
    size = task.batch_size // data
    heads = heads_of(module, task)
    return Holding(
        place=place,
        rows=range(place["data"] * size, (place["data"] + 1) * size),
        layers=[int(index) for index in module.model.layers],
        heads=range(place["tensor"] * heads, (place["tensor"] + 1) * heads),
        parameter_bytes=sum(parameter.nbytes for parameter in module.parameters()),
        losses=losses,
        gradient_deviation=largest_deviation(expected, {name: gradient.cpu() for name, gradient in first.items()}),
    )


def mean_over_data(module: nn.Module, mesh: DeviceMesh) -> None:
    """Make every gradient the mean over the processes that hold the same weights and saw other rows."""
    for parameter in module.parameters():
        dist.all_reduce(parameter.grad, group=mesh["data"].get_group())
        parameter.grad /= mesh["data"].size()


def slice_of(name: str, tensor: Tensor, index: int, processes: int) -> Tensor:
    """The part of a LLaMA's whole gradient that a process of the tensor axis has."""
    layer = name.split(".")[-2]
    return tensor.chunk(processes, SPLIT[layer])[index] if layer in SPLIT else tensor


def heads_of(module: LlamaStage, task: "MeshConfig") -> int:
    """The attention heads that a process has in each of its layers, from the shape of its projection of queries."""
    layer = next(iter(module.model.layers.values()))
    return layer.self_attn.q_proj.weight.shape[0] * task.num_attention_heads // task.hidden_size
