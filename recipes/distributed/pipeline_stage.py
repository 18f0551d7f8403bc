"""A LLaMA cut into stages by its layers, and a stage that notes when it computes and what it keeps for backward.

Paper: Huang et al. 2019, GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism, arXiv 1811.06965,
       section 2.3; Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters Using
       Megatron-LM, arXiv 2104.04473, section 2.2, for 1F1B.

With p stages and m micro-batches that take the same time everywhere, both schedules leave (p - 1) / (m + p - 1) of the time
idle. GPipe runs all forwards first and so keeps the activations of m micro-batches; 1F1B turns to a micro-batch's backward
as soon as it can, and stage i keeps those of at most p - i, counted from 0.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.nn import functional

from recipes.distributed.processes import device


def layers_of(stage: int, stages: int, layers: int) -> range:
    """The layers of a stage: as many for each, those left over spread out."""
    return range(stage * layers // stages, (stage + 1) * layers // stages)


class LlamaStage(nn.Module):
    """Consecutive layers of a LLaMA; the first stage has its embedding, the last one its norm and head.

    Parameters keep the names that they have in the whole model.

    Args:
        model: a LlamaForCausalLM without mask or padding, its attention causal by itself (sdpa).
    """

    def __init__(self, model: nn.Module, stage: int, stages: int):
        super().__init__()
        whole = model.model
        self.model = nn.Module()
        here = layers_of(stage, stages, len(whole.layers))
        self.model.layers = nn.ModuleDict({str(index): whole.layers[index] for index in here})
        self.model.embed_tokens = whole.embed_tokens if stage == 0 else None
        self.model.norm, self.lm_head = (whole.norm, model.lm_head) if stage == stages - 1 else (None, None)
        self.rotary = whole.rotary_emb

    def forward(self, x: Tensor) -> Tensor:
        """Token ids (rows, length) or hidden states (rows, length, width) → hidden states or logits (rows, length, 256)."""
        if self.model.embed_tokens is not None:
            x = self.model.embed_tokens(x)
        positions = self.rotary(x, position_ids=torch.arange(x.shape[1], device=x.device)[None])
        for layer in self.model.layers.values():
            x = layer(x, position_embeddings=positions)
        return x if self.lm_head is None else self.lm_head(self.model.norm(x))


def next_byte_loss(logits: Tensor, rows: Tensor) -> Tensor:
    """Mean cross-entropy of each byte after the first, in nats: logits (rows, length, 256), rows (rows, length)."""
    return functional.cross_entropy(logits[:, :-1].flatten(end_dim=1), rows[:, 1:].flatten())


@dataclass
class Span:
    """A stretch of time in which a stage computed, in seconds of the machine's clock."""

    kind: str  # forward or backward
    micro_batch: int
    began: float
    ended: float


class LiveActivations(torch.autograd.graph.saved_tensors_hooks):
    """`with` it around a forward: counts the bytes that autograd keeps for backward, until it lets them go.

    Attributes:
        bytes: those kept now; a storage that several operators share counts once, parameters do not.
        peak: the most there ever were.
    """

    def __init__(self, module: nn.Module):
        super().__init__(self._keep, lambda kept: kept.tensor)
        self.bytes = self.peak = 0
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self._uses: Counter[int] = Counter()

    def _keep(self, tensor: Tensor) -> "_Kept":
        return _Kept(tensor, self)

    def count(self, storage: torch.UntypedStorage, uses: int) -> None:
        """Add an operator that keeps the storage, or take one away."""
        address = storage.data_ptr()
        if address in self._parameters:
            return
        before = self._uses[address]
        self._uses[address] += uses
        if before == 0 or self._uses[address] == 0:
            self.bytes += uses * storage.nbytes()
            self.peak = max(self.peak, self.bytes)


class _Kept:
    """A tensor in autograd's hands; it goes when the graph lets it go."""

    def __init__(self, tensor: Tensor, counter: LiveActivations):
        self.tensor, self.counter = tensor, counter
        counter.count(tensor.untyped_storage(), 1)

    def __del__(self):
        self.counter.count(self.tensor.untyped_storage(), -1)


class WatchedStage(PipelineStage):
    """torch's stage, with an eye on its time and its activations.

    Attributes:
        spans: what it computed when.
        in_flight: the most micro-batches that waited for their backward at once.
        activations: the bytes that they kept.
        first_bytes: those of the first micro-batch alone.
        overruns: computations that took longer than they were to be stretched to.
    """

    def __init__(self, module: LlamaStage, stage: int, stages: int):
        super().__init__(module, stage, stages, device())
        self.watch(0.0)

    def watch(self, forward_seconds: float) -> None:
        """Begin to watch anew.

        Args:
            forward_seconds: a forward is stretched to this long and a backward to twice that, which is the ratio of their
                matrix products, so that all stages are equally slow; 0 leaves them as they are.
        """
        self.forward_seconds = forward_seconds
        self.spans: list[Span] = []
        self.in_flight = self.first_bytes = self.overruns = 0
        self.activations = LiveActivations(self.submod)

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **keywords: Any) -> Any:
        with self._span("forward", fwd_chunk_id, self.forward_seconds), self.activations:
            output = super().forward_one_chunk(fwd_chunk_id, *arguments, **keywords)
        self.in_flight = max(self.in_flight, len(self.fwd_cache))
        self.first_bytes = self.first_bytes or self.activations.bytes
        return output

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **keywords: Any) -> None:
        with self._span("backward", bwd_chunk_id, 2 * self.forward_seconds):
            super().backward_one_chunk(bwd_chunk_id, *arguments, **keywords)

    @contextmanager
    def _span(self, kind: str, micro_batch: int, seconds: float) -> Iterator[None]:
        began = time.monotonic()  # one clock for all processes of a machine
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        left = began + seconds - time.monotonic()
        self.overruns += seconds > 0 and left < 0
        time.sleep(max(0.0, left))
        self.spans.append(Span(kind, micro_batch, began, time.monotonic()))
