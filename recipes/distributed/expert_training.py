"""A byte-level language model around one mixture-of-experts layer, trained by processes that share its experts.

Paper: Bengio et al. 2003, A Neural Probabilistic Language Model, for a model of the next token from a window of the last
       ones; its hidden layer is GShard's here (arXiv 2006.16668).

Every process draws the same batch of groups and works on its own ones, so any number of processes takes the same steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from recipes.distributed.experts import EXPERT_WEIGHTS, MixtureOfExperts, Routing
from recipes.distributed.processes import device
from recipes.distributed.text_bytes import VOCABULARY


@dataclass(frozen=True)
class Job:
    """What is trained, the same in every process."""

    seed: int
    context: int  # bytes that the model sees
    hidden_size: int
    intermediate_size: int
    num_experts: int
    capacity_factor: float
    groups: int
    group_size: int
    learning_rate: float
    router_aux_loss_coef: float


class ByteModel(nn.Module):
    """The next byte from the last few: a window of embeddings, a mixture of experts, a head."""

    def __init__(self, job: Job):
        super().__init__()
        size = job.hidden_size
        self.embedding = nn.Embedding(VOCABULARY, size)
        self.window = nn.Linear(job.context * size, size)
        self.norm = nn.LayerNorm(size)
        self.mixture = MixtureOfExperts(size, job.intermediate_size, job.num_experts, job.capacity_factor)
        self.head = nn.Linear(size, VOCABULARY)

    def forward(self, contexts: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """Logits (G, S, 256), the layer's output (G, S, M), its routing, for contexts (G, S, context)."""
        x = self.window(self.embedding(contexts).flatten(start_dim=2))
        answered, routing = self.mixture(self.norm(x), draws)
        return self.head(functional.layer_norm(x + answered, x.shape[-1:])), answered, routing


def build(job: Job) -> ByteModel:
    """The model of the seed, its experts spread over the processes that there are."""
    torch.manual_seed(job.seed)
    model = ByteModel(job)
    model.mixture.spread()
    return model.to(device())


def draw_batch(job: Job, stream: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts (G, S, context), next bytes (G, S) and uniform numbers (G, S) for this process's groups.

    The generator draws for the groups of all processes, so that it goes on alike in each of them.
    """
    shape = (job.groups, job.group_size)
    starts = torch.randint(len(stream) - job.context, shape, generator=generator)
    draws = torch.rand(shape, generator=generator)
    windows = stream[starts[..., None] + torch.arange(job.context + 1)]
    parts = (windows[..., :-1], windows[..., -1], draws)
    rank, processes = dist.get_rank(), dist.get_world_size()
    return tuple(part.chunk(processes)[rank].to(device()) for part in parts)


def take_gradients(job: Job, model: ByteModel, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Routing]:
    """Backward of L = cross-entropy + coefficient · auxiliary loss, means over all processes' groups (section 2.2).

    Each process's loss counts 1/p. An expert's gradient comes back through the all-to-all from every process and is
    whole; that of what all processes hold is summed.

    Returns:
        The cross-entropy over all processes, in nats a byte; this process's output of the layer and routing.
    """
    contexts, following, draws = batch
    logits, answered, routing = model(contexts, draws)
    cross_entropy = functional.cross_entropy(logits.flatten(end_dim=1), following.flatten())
    loss = cross_entropy + job.router_aux_loss_coef * routing.auxiliary_loss
    (loss / dist.get_world_size()).backward()
    for name, parameter in model.named_parameters():
        if not name.endswith(EXPERT_WEIGHTS):
            dist.all_reduce(parameter.grad)
    return mean_over_processes(cross_entropy), answered.detach(), routing


def mean_over_processes(value: Tensor) -> Tensor:
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def first_step(rank: int, job: Job, stream: Tensor) -> dict[str, Any]:
    """One forward and backward: what this process has of the outputs, losses, gradients and parameters."""
    model = build(job)
    batch = draw_batch(job, stream, torch.Generator().manual_seed(job.seed))
    cross_entropy, answered, routing = take_gradients(job, model, batch)
    return {
        "output": answered,
        "loss": cross_entropy,
        "auxiliary_loss": mean_over_processes(routing.auxiliary_loss),
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
        "parameter_bytes": sum(parameter.nbytes for parameter in model.parameters()),
    }


def train(
    rank: int, job: Job, steps: int, stream: Tensor, held_out: Tensor, batches: int, factors: list[float]
) -> dict[str, Any]:
    """Train with AdamW, then route held-out text.

    Args:
        batches: of held-out text.
        factors: capacity factors that the trained layer is tried with.

    Returns:
        Each step's cross-entropy in nats a byte; on held-out text the cross-entropy, the share of tokens that reach no
        expert, the share of first choices that each expert has, and the first of these shares for each of the factors.
    """
    model = build(job)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate)
    generator = torch.Generator().manual_seed(job.seed)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, _, _ = take_gradients(job, model, draw_batch(job, stream, generator))
        optimizer.step()
        losses.append(loss.item())

    held_out_loss, overflowed, demand = _measure(job, model, held_out, batches, job.capacity_factor)
    return {
        "losses": losses,
        "held_out_loss": held_out_loss.item(),
        "overflowed": overflowed.item(),
        "load": (demand / demand.sum()).tolist(),
        "overflow": [_measure(job, model, held_out, batches, factor)[1].item() for factor in factors],
    }


@torch.no_grad()
def _measure(job: Job, model: ByteModel, stream: Tensor, batches: int, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, share of overflowed tokens and demand for each expert (E), over all processes.

    The texts and the draws are the same whatever the capacity factor.
    """
    model.mixture.capacity_factor = factor
    generator = torch.Generator().manual_seed(job.seed)
    found = []
    for _ in range(batches):
        contexts, following, draws = draw_batch(job, stream, generator)
        logits, _, routing = model(contexts, draws)
        cross_entropy = functional.cross_entropy(logits.flatten(end_dim=1), following.flatten())
        found.append((cross_entropy, routing.overflowed.float().mean(), routing.demand.float().sum(dim=0)))
    return tuple(mean_over_processes(torch.stack(column).mean(dim=0)) for column in zip(*found))
