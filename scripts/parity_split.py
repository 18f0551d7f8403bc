"""The SFT job of `scripts.parity` with the model itself split over two processes, by its matrices or by its layers.

transformers' Trainer splits no model in these ways on a CPU, so a loop of a few lines takes the very batches and learning
rates that the Trainer of one process used, with the same optimizer and clipping.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from transformers.distributed import DistributedConfig
from trl import SFTTrainer

from recipes.distributed.pipeline_stage import LlamaStage
from recipes.distributed.processes import device, spawn
from recipes.finetuning import sft

MAX_GRAD_NORM = 1.0  # the Trainer's default


@dataclass
class Batch:
    """What one optimizer step took: token ids and labels [B, T], right-padded, and the learning rate."""

    input_ids: Tensor
    labels: Tensor
    learning_rate: float


def batches_of(config: Path) -> list[Batch]:
    """The batches of an SFT run in this process."""
    found: list[Batch] = []
    step = SFTTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        found.append(Batch(inputs["input_ids"].clone(), inputs["labels"].clone(), self._get_learning_rate()))
        return step(self, model, inputs, *args, **kwargs)

    SFTTrainer.training_step = training_step
    try:
        sft.main(["--config", str(config)])
    finally:
        SFTTrainer.training_step = step
    return found


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the supervised tokens, summed, in nats: logits [B, T, V], labels [B, T] with -100 elsewhere."""
    return cross_entropy(logits[:, :-1].flatten(end_dim=1).float(), labels[:, 1:].flatten(), reduction="sum")


class Tensors:
    """transformers' plan: every process has a slice of every large matrix."""

    def __init__(self, folder: str):
        split = DistributedConfig(tp_plan="auto", tp_size=dist.get_world_size())
        self.model = LlamaForCausalLM.from_pretrained(folder, distributed_config=split)

    def loss(self, batch: Batch, tokens: int) -> float:
        """Leaves the gradients of the mean loss in the parameters, and returns it."""
        loss = summed_loss(self.model(batch.input_ids.to(device())).logits, batch.labels.to(device())) / tokens
        loss.backward()
        return loss.item()

    def grad_norm(self) -> float:
        gradients = (parameter.grad for parameter in self.model.parameters())  # some split, some whole everywhere
        squares = ((g.full_tensor() if hasattr(g, "full_tensor") else g).square().sum() for g in gradients)
        return math.sqrt(sum(squares).item())


class Stages:
    """1F1B over layers: every process has some of them, and the batch goes through in micro-batches."""

    def __init__(self, folder: str):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.model = LlamaStage(LlamaForCausalLM.from_pretrained(folder), self.rank, self.size).to(device())

    def loss(self, batch: Batch, tokens: int) -> float:
        """Leaves the gradients of the mean loss in the parameters, and returns it."""
        count = self.size  # micro-batches; the schedule divides the gradients by it
        stage = PipelineStage(self.model, self.rank, self.size, device())
        schedule = Schedule1F1B(stage, count, loss_fn=lambda *pair: summed_loss(*pair) * count / tokens)
        losses: list[Tensor] = []
        inputs = (batch.input_ids.to(device()),) if self.rank == 0 else ()
        target = batch.labels.to(device()) if self.rank == self.size - 1 else None
        schedule.step(*inputs, target=target, losses=losses, return_outputs=False)
        loss = torch.stack(losses).mean() if losses else torch.zeros((), device=device())
        dist.broadcast(loss, self.size - 1)
        return loss.item()

    def grad_norm(self) -> float:
        squares = sum(parameter.grad.square().sum() for parameter in self.model.parameters())
        dist.all_reduce(squares)
        return math.sqrt(squares.item())


SPLITS = {"tensor": Tensors, "pipeline": Stages}


def train(rank: int, strategy: str, folder: str, batches: list[Batch]) -> list[dict[str, float]]:
    """Loss and gradient norm of each step."""
    split = SPLITS[strategy](folder)
    optimizer = torch.optim.AdamW(split.model.parameters(), weight_decay=0.0, foreach=False)
    log = []
    for batch in batches:
        tokens = int((batch.labels[:, 1:] != -100).sum())
        loss, norm = split.loss(batch, tokens), split.grad_norm()
        for parameter in split.model.parameters():
            parameter.grad.mul_(min(1.0, MAX_GRAD_NORM / (norm + 1e-6)))
        for group in optimizer.param_groups:
            group["lr"] = batch.learning_rate
        optimizer.step()
        optimizer.zero_grad()
        log.append({"loss": loss, "grad_norm": norm})
    return log


def run(strategy: str, folder: Path, batches: list[Batch], processes: int) -> list[dict[str, float]]:
    """The log of the first process."""
    return spawn(train, processes, strategy, str(folder), batches)[0]
