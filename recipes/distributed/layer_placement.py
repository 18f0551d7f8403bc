"""Naive model parallelism: each process has a run of the model's layers, and they work one after another.

    rank 0   forward ──┐                                                ┌── backward   step
    rank 1             └─ forward ──┐                     ┌── backward ─┘   step
    rank 2                          └─ forward, backward ─┘   step

A model that no device could hold is held by p of them, and each waits p − 1 of p parts of the time: what goes forward is
an activation, what comes back is its gradient. Pipelines (Huang et al. 2018, GPipe, arXiv 1811.06965, figure 2b) start
from here and fill the waiting with parts of the batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from recipes.distributed.processes import device
from recipes.distributed.small_llama import SmallLlamaConfig
from recipes.distributed.timeline import Timeline


def layers_of(rank: int, size: int, count: int) -> range:
    """The run of `count` layers that a rank holds: as even as can be."""
    return range(count * rank // size, count * (rank + 1) // size)


class Part(nn.Module):
    """The layers of one rank, with the embedding on the first and the norm and the head on the last.

    Its parameters have the names that they have in the whole model.
    """

    def __init__(self, whole: nn.Module, rank: int, size: int):
        super().__init__()
        self.first, self.last = rank == 0, rank == size - 1
        mine = layers_of(rank, size, len(whole.model.layers))
        self.model = nn.ModuleDict({"layers": nn.ModuleDict({str(i): whole.model.layers[i] for i in mine})})
        if self.first:
            self.model["embed_tokens"] = whole.model.embed_tokens
        if self.last:
            self.model["norm"] = whole.model.norm
            self.lm_head = whole.lm_head
        self.rotary = whole.model.rotary_emb

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Bytes (batch, length) in on the first rank, hidden states (batch, length, width) on the others; hidden states
        out, and the mean loss of the next bytes on the last rank."""
        hidden = self.model["embed_tokens"](inputs) if self.first else inputs
        positions = self.rotary(hidden, torch.arange(hidden.shape[1], device=hidden.device)[None])
        for layer in self.model["layers"].values():
            hidden = layer(hidden, position_embeddings=positions)
        if not self.last:
            return hidden
        logits = self.lm_head(self.model["norm"](hidden))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def train(rank: int, shape: SmallLlamaConfig, rows: torch.Tensor, learning_rate: float, seed: int) -> dict[str, Any]:
    """`small_llama.train_alone` with the layers on all processes.

    Returns:
        `losses` of the steps, which only the last rank knows; this rank's `weights` by name; its `timeline`.
    """
    size = dist.get_world_size()
    part = Part(shape.build(seed), rank, size).to(device())
    optimizer = torch.optim.AdamW(part.parameters(), learning_rate)
    timeline, losses = Timeline(), []
    for batch in rows.to(device()):
        inputs = batch
        if not part.first:
            inputs = receive((*batch.shape, shape.hidden_size), rank - 1).requires_grad_()
        with timeline("forward"):
            output = part(inputs, batch)
        gradient = None
        if part.last:
            losses.append(output.item())
        else:
            dist.send(output.detach(), rank + 1)
            gradient = receive(output.shape, rank + 1)
        with timeline("backward"):
            output.backward(gradient)
        if not part.first:
            dist.send(inputs.grad, rank - 1)
        with timeline("step"):
            optimizer.step()
            optimizer.zero_grad()
    return {"losses": losses, "weights": part.state_dict(), "timeline": timeline.spans}


def receive(shape: tuple[int, ...], source: int) -> torch.Tensor:
    tensor = torch.empty(shape, device=device())
    dist.recv(tensor, source)
    return tensor
