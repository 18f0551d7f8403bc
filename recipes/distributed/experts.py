"""A mixture-of-experts layer, its experts in one process or spread over the processes of a group.

Paper: Lepikhin et al. 2020, GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding,
       arXiv 2006.16668, section 2.2, algorithms 1 and 2.

A token goes through the one or two experts that its gates prefer, so the layer has the parameters of all experts at the
price of two. Tokens are routed in groups, each group by itself, so that a group's routing is the same on whatever process
it happens. The letters are the paper's:

    G groups of tokens here    S tokens in a group    M width of the model
    E experts                  C places that an expert has for each group    H hidden width of an expert
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

# Of these each process has other rows; their gradients are whole where they are, and never reduced.
EXPERT_WEIGHTS = ("w_in", "w_out")


@dataclass
class Routing:
    """Where the tokens go.

    Attributes:
        combine: weight of the expert's answer for the token, at the place that the token has there: (G, S, E, C).
        auxiliary_loss: what balances the load, mean over the groups: ().
        demand: tokens whose first choice an expert is, whether it has a place for them or not: (G, E).
    """

    combine: Tensor
    auxiliary_loss: Tensor
    demand: Tensor

    @property
    def overflowed(self) -> Tensor:
        """Whether a token reaches no expert at all and passes by the layer: (G, S) bool."""
        return self.combine.sum(dim=(2, 3)) == 0


def capacity_of(tokens: int, experts: int, factor: float) -> int:
    """C: places of an expert for a group of `tokens`, 2·S/E times the factor; the paper's own factor is 1.

    With 1, two choices of every token fit exactly, if the experts are chosen equally often.
    """
    return math.ceil(factor * 2 * tokens / experts)


def top_2_gating(logits: Tensor, capacity: int, draws: Tensor) -> Routing:
    """Algorithm 1: each token's best expert, and by chance its second, as far as they have places left.

    First choices are seated before all second ones, in the order of the tokens. As in line 22 of the paper, a second
    choice that the draw leaves out keeps its place empty; other code, such as transformers' NLLB-MoE, gives it away.

    Args:
        logits: (G, S, E).
        capacity: C.
        draws: uniform numbers in [0, 1) that decide on the second experts: (G, S).
    """
    tokens, experts = logits.shape[1:]
    gates = logits.float().softmax(dim=-1)
    best, chosen = gates.topk(2, dim=-1)
    weights = best / best.sum(dim=-1, keepdim=True)  # (G, S, 2)
    first, second = (functional.one_hot(choice, experts) for choice in chosen.unbind(dim=-1))  # (G, S, E) each

    demand = first.sum(dim=1)
    # The demand has no gradient; the mean gate stands in for it (section 2.2).
    auxiliary_loss = (demand / tokens * gates.mean(dim=1)).mean()

    kept = torch.stack([torch.ones_like(draws, dtype=torch.bool), 2 * weights[..., 1] > draws], dim=-1)
    before = torch.stack([torch.zeros_like(demand), demand], dim=1)  # taken when the first token comes: (G, 2, E)
    combine = 0
    for choice, mask in enumerate((first, second)):
        place = ((mask.cumsum(dim=1) - 1 + before[:, choice, None]) * mask).sum(dim=-1)  # (G, S)
        seated = (place < capacity) & kept[..., choice]
        weight = torch.where(seated, weights[..., choice], 0)
        seat = functional.one_hot(place.clamp(max=capacity - 1), capacity)  # (G, S, C)
        combine = combine + torch.einsum("gs,gse,gsc->gsec", weight, mask.to(weight), seat.to(weight))
    return Routing(combine, auxiliary_loss, demand)


class AllToAll(torch.autograd.Function):
    """Block j goes to process j, which puts it at the place of the sender; gradients travel the same way back."""

    @staticmethod
    def forward(ctx, blocks: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """(processes, …) to be sent → (processes, …) received."""
        ctx.group = group
        blocks = blocks.contiguous()
        received = torch.empty_like(blocks)
        dist.all_to_all_single(received, blocks, group=group)
        return received

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return AllToAll.apply(gradient, ctx.group), None


class MixtureOfExperts(nn.Module):
    """Algorithm 2: the gates choose, the tokens are dispatched, the experts answer, the answers are combined.

    An expert is a feed-forward network with ReLU and without biases, as in the paper. A new layer holds all experts;
    `spread` leaves each process its share.

    Args:
        width: M.
        hidden: H.
        experts: E.
        capacity_factor: see `capacity_of`.
    """

    def __init__(self, width: int, hidden: int, experts: int, capacity_factor: float):
        super().__init__()
        self.experts, self.capacity_factor = experts, capacity_factor
        self.processes, self.group = 1, None
        self.gate = nn.Parameter(torch.randn(width, experts) / width**0.5)
        self.w_in = nn.Parameter(torch.randn(experts, width, hidden) * (2 / width) ** 0.5)
        self.w_out = nn.Parameter(torch.randn(experts, hidden, width) / hidden**0.5)

    def spread(self, group: dist.ProcessGroup | None = None) -> None:
        """Keep the experts rank·E/p … (rank+1)·E/p - 1 of the group's p processes; the gate stays whole on each.

        Raises:
            ValueError: the processes do not divide the experts.
        """
        self.processes, self.group = dist.get_world_size(group), group
        if self.experts % self.processes:
            raise ValueError(f"{self.experts} experts cannot be spread evenly over {self.processes} processes")
        for name in EXPERT_WEIGHTS:
            share = getattr(self, name).data.chunk(self.processes)[dist.get_rank(group)]
            setattr(self, name, nn.Parameter(share.clone()))

    def forward(self, x: Tensor, draws: Tensor) -> tuple[Tensor, Routing]:
        """What the experts answer, and the routing. A token without a place gets zeros: the caller adds the input.

        Args:
            x: the groups of this process; each process has as many: (G, S, M).
            draws: see `top_2_gating`: (G, S).
        """
        groups, tokens, width = x.shape
        capacity = capacity_of(tokens, self.experts, self.capacity_factor)
        routing = top_2_gating(x @ self.gate, capacity, draws)

        dispatched = torch.einsum("gsec,gsm->egcm", (routing.combine > 0).to(x), x)
        answered = self._answers(dispatched.reshape(self.experts, groups * capacity, width))
        answered = answered.reshape(self.experts, groups, capacity, width)
        return torch.einsum("gsec,egcm->gsm", routing.combine.to(x), answered), routing

    def _answers(self, x: Tensor) -> Tensor:
        """Every expert's answers to what this process dispatches to it: (E, N, M) → (E, N, M)."""
        if self.processes == 1:
            return self._feed_forward(x)
        here = self.experts // self.processes
        blocks = x.reshape(self.processes, here, *x.shape[1:])  # by the process that has the experts
        received = AllToAll.apply(blocks, self.group)  # by the process that sent the tokens
        answered = self._feed_forward(received.transpose(0, 1).reshape(here, -1, x.shape[-1]))
        blocks = answered.reshape(here, self.processes, *x.shape[1:]).transpose(0, 1)
        return AllToAll.apply(blocks, self.group).reshape(x.shape)

    def _feed_forward(self, x: Tensor) -> Tensor:
        """The experts that are here, each on its own tokens: (experts here, N, M) → the same shape."""
        return (x @ self.w_in).relu() @ self.w_out
