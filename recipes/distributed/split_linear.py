"""Tensor parallelism by hand: linear layers split by columns or by rows, and a LLaMA made of them.

Paper: Shoeybi et al. 2019, Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism,
       arXiv 1909.08053, section 3, figures 3 and 4.

Y = X·A is split in two ways over p processes that all have X:

    columns  A = [A₁ … Aₚ]    Yᵢ = X·Aᵢ is a slice of Y. Nothing has to be sent forward; backward, X's gradient is the
                              sum of what every slice says of it (f).
    rows     A = [A₁; …; Aₚ]  X comes in slices, as columns leave it: Y = Σ Xᵢ·Aᵢ has to be summed (g). Backward, all
                              have Y's gradient, and each its slice of X's.

Columns and then rows is an MLP, SwiGLU in between, with one sum forward and one backward. Attention is the same with whole
heads as columns: each process attends with heads of its own. So a layer sends 4 messages of the size of its activations.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

# The dimension of torch's weight (outputs, inputs) that is split, by the name of the layer.
SPLIT = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 0, "up_proj": 0, "down_proj": 1}


class SumGradients(torch.autograd.Function):
    """The paper's f: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class SumOutputs(torch.autograd.Function):
    """The paper's g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def share_of(tensor: Tensor, dim: int, group: dist.ProcessGroup | None) -> nn.Parameter:
    """This process's slice of a weight that all processes have.

    Raises:
        ValueError: the processes do not divide the dimension.
    """
    processes = dist.get_world_size(group)
    if tensor.shape[dim] % processes:
        raise ValueError(f"a weight of {tuple(tensor.shape)} has no {processes} equal slices in dimension {dim}")
    return nn.Parameter(tensor.detach().chunk(processes, dim)[dist.get_rank(group)].clone())


class ColumnParallelLinear(nn.Module):
    """X whole → this process's slice of X·A + b. Its input needs `SumGradients` once, whatever columns share it.

    Args:
        linear: the layer to split, the same in all processes of the group: weight (outputs, inputs).
    """

    def __init__(self, linear: nn.Linear, group: dist.ProcessGroup | None = None):
        super().__init__()
        self.weight = share_of(linear.weight, 0, group)
        self.bias = None if linear.bias is None else share_of(linear.bias, 0, group)

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs / p)."""
        return functional.linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """This process's slice of X → X·A + b whole, the same in all processes.

    Args:
        linear: the layer to split, the same in all processes of the group: weight (outputs, inputs).
    """

    def __init__(self, linear: nn.Linear, group: dist.ProcessGroup | None = None):
        super().__init__()
        self.group = group
        self.weight = share_of(linear.weight, 1, group)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs / p) → (…, outputs)."""
        y = SumOutputs.apply(functional.linear(x, self.weight), self.group)
        return y if self.bias is None else y + self.bias  # added once, not p times


def split_llama(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Leave each process its slice of every decoder layer of a LLaMA; embedding, norms and head stay whole.

    Attention needs no change: it makes as many heads as its projections give it.
    """

    def sum_gradients(norm: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return SumGradients.apply(output, group)

    for layer in model.model.layers:
        for block, norm in ((layer.self_attn, layer.input_layernorm), (layer.mlp, layer.post_attention_layernorm)):
            norm.register_forward_hook(sum_gradients)  # what q, k and v share, and what gate and up share
            for name in SPLIT.keys() & dict(block.named_children()).keys():
                split = RowParallelLinear if SPLIT[name] else ColumnParallelLinear
                setattr(block, name, split(getattr(block, name), group))


def join(name: str, slices: list[Tensor]) -> Tensor:
    """The whole of a parameter or gradient of a split LLaMA from what each process has of it, by rank."""
    layer = name.split(".")[-2]
    return torch.cat(slices, SPLIT[layer]) if layer in SPLIT else slices[0]
