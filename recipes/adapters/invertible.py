"""Invertible adapters: a change of the embeddings that the output embeddings undo exactly.

Paper: Pfeiffer et al. 2020, MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer, arXiv 2005.00052,
       section 3.3; the coupling is NICE's (Dinh et al. 2014, arXiv 1410.8516).
"""

import torch
from torch import nn

from recipes.adapters.layers import AdapterLayer


class NiceCoupling(nn.Module):
    """Two additive couplings: o1 = F(e2) + e1 and o2 = G(o1) + e2, for the two halves of an embedding.

    Shapes: (…, features) to (…, features).

    Args:
        features: size of an embedding; even.
        hidden: size of the hidden layer of F and of G, in the paper a quarter of the embedding.
        init_std: of F's and G's weights; their biases begin at zero.
    """

    def __init__(self, features: int, hidden: int, init_std: float):
        super().__init__()
        half = features // 2
        self.f, self.g = (nn.Sequential(nn.Linear(half, hidden), nn.ReLU(), nn.Linear(hidden, half)) for _ in range(2))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
                nn.init.zeros_(module.bias)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        first, second = embeddings.to(self.f[0].weight.dtype).chunk(2, dim=-1)
        first = first + self.f(second)
        second = second + self.g(first)
        return torch.cat([first, second], dim=-1).to(embeddings.dtype)

    def inverse(self, hidden: torch.Tensor) -> torch.Tensor:
        """The embeddings from which `forward` makes `hidden`."""
        first, second = hidden.to(self.f[0].weight.dtype).chunk(2, dim=-1)
        second = second - self.g(first)
        first = first - self.f(second)
        return torch.cat([first, second], dim=-1).to(hidden.dtype)


class EmbeddingLayer(AdapterLayer):
    """The module that puts out the embeddings, followed by the active adapters' couplings."""

    adapter_layer_names = ("bottleneck_invertible",)

    def forward(self, *args, **kwargs) -> torch.Tensor:
        embeddings = self.base_layer(*args, **kwargs)
        for coupling in self.active_blocks:
            embeddings = coupling(embeddings)
        return embeddings


class OutputLayer(AdapterLayer):
    """The output embeddings, preceded by the inverses of the same couplings."""

    adapter_layer_names = ("bottleneck_invertible",)

    def forward(self, hidden: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        for coupling in reversed(self.active_blocks):
            hidden = coupling.inverse(hidden)
        return self.base_layer(hidden, *args, **kwargs)
