"""Memory of a forward and backward pass, counted tensor by tensor on tensors that have shapes but no memory.

Papers have formulas for it: a layer of a GPT in half precision keeps s b h (34 + 5 a s / h) bytes for its backward pass
(Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, arXiv 2205.05198, eq. 2; s tokens, b
sequences, h wide, a heads). They hold for one architecture, one attention kernel and one way to write a norm. So the
planner runs the very modules of transformers on PyTorch's fake tensors, and counts what autograd keeps alive; on that
GPT it finds the paper's number (tests/planner/test_activations.py).
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.loss.loss_utils import ForCausalLMLoss

from recipes.core import UserError
from recipes.planner.architecture import Adapter, Architecture, build

TILE_TOKENS, TILE_WIDTH = 4096, 32768  # of TRL 1.16: trl/kernels/chunked_logprob.py, trl/trainer/utils.py
BLOCK_BYTES = 2**27  # of recipes/rlhf/head.py

# transformers builds no mask for an attention that it has no mask function for. The name must not say flash, for which it
# would look for a kernel.
AttentionInterface.register("unmasked", sdpa_attention_forward)
IMPLEMENTATIONS = {"flash": "unmasked"}
ATTENTION_DROPOUT = {"attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"}


@dataclass(frozen=True)
class Numbers:
    """In what numbers a process computes: the dtype of its weights, whether autocast to bf16 is on, the attention.

    `attention`: "eager" holds the scores; "sdpa" is handed a mask, as of packed or padded rows; "flash" needs none.
    """

    weights: torch.dtype
    autocast: bool = False
    attention: str = "sdpa"

    @property
    def width(self) -> int:
        """Bytes of a number that comes out of a product of matrices."""
        return 2 if self.autocast else self.weights.itemsize


@dataclass(frozen=True)
class Activations:
    """Bytes of one pass. `layer`: kept by a decoder layer; `rest`: by what is around them; `passing`: what a layer's
    backward pass needs on top for a moment; `entering`: a layer's input, all that is kept of it with checkpointing."""

    layer: int
    rest: int
    passing: int
    entering: int

    def kept(self, layers: int, checkpointing: bool) -> int:
        """Bytes of all layers between the forward and the backward pass.

        With checkpointing only each layer's input is kept (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost,
        arXiv 1604.06174).
        """
        return self.rest + layers * (self.entering if checkpointing else self.layer)

    def working(self, checkpointing: bool) -> int:
        """Bytes of one layer's backward pass on top, before which checkpointing runs the layer again."""
        return self.passing + (self.layer if checkpointing else 0)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active that are still alive, and their peak."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in _storages((args, kwargs)):
            self._know(storage, 0)  # what was there before, such as weights, of which a view may come out
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            self._know(storage, storage.nbytes())
        return result

    def _know(self, storage: torch.UntypedStorage, size: int) -> None:
        known = self._known.get(storage._cdata)
        if known is not None and known() is storage:
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[storage._cdata] = weakref.ref(storage, lambda _: self._forget(size))

    def _forget(self, size: int) -> None:
        self.now -= size


def _storages(values: object) -> Iterator[torch.UntypedStorage]:
    return (value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor))


@contextmanager
def computing(numbers: Numbers) -> Iterator[LiveBytes]:
    """Counts what is made inside, in these numbers."""
    with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=numbers.autocast):
        yield live


@lru_cache(maxsize=256)
def of_layers(
    architecture: Architecture,
    numbers: Numbers,
    sequences: int,
    length: int,
    adapter: Adapter | None = None,
    written: int = 0,
) -> Activations:
    """What the layers keep for `sequences` of `length` tokens; with an adapter, only that is trained.

    Args:
        written: tokens of a sequence that a decoder writes when an encoder has read `length`.

    Raises:
        UserError: the model's code cannot run on tensors without values, or not with this attention.
    """
    try:
        one, two = (_run(architecture, layers, numbers, sequences, (length, written), adapter) for layers in (1, 2))
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"the activations of {architecture.name} cannot be counted with {numbers.attention} attention: {error}; "
            "try another attn_implementation"
        ) from None
    layer = two[0] - one[0]
    entering = sequences * (length + written) * architecture.hidden * numbers.weights.itemsize
    return Activations(layer, max(0, one[0] - layer), max(0, one[1] - one[0]), entering)


def _run(
    architecture: Architecture,
    layers: int,
    numbers: Numbers,
    sequences: int,
    lengths: tuple[int, int],
    adapter: Adapter | None,
) -> tuple[int, int]:
    """Bytes alive after the forward pass of a model of so many layers, and at the peak of forward and backward pass."""
    config = architecture.shortened(layers)
    attention = IMPLEMENTATIONS.get(numbers.attention, numbers.attention)
    if (
        attention != "eager"
    ):  # a fused kernel draws its dropout again in the backward pass; PyTorch's for CPUs has none
        for rate in ATTENTION_DROPOUT & vars(config).keys():
            setattr(config, rate, 0.0)
    model = build(architecture, config, "meta", dtype=numbers.weights, attn_implementation=attention).train()
    trunk = model.base_model
    if trunk is model:  # T5 has no trunk apart from its head
        model.set_output_embeddings(torch.nn.Identity())
    if adapter is not None:
        adapter.attach(model)  # in place
    with FakeTensorMode():  # attached on fake tensors an adapter fails, so the weights become fake afterwards
        weights = {name: _fake(weight) for name, weight in trunk.named_parameters()}
        buffers = {name: _fake(buffer) for name, buffer in trunk.named_buffers()}
        for weight in weights.values():
            if weight.requires_grad:  # gradients of weights have a column of their own
                weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        entering = {
            name: torch.empty(sequences, length, architecture.hidden, dtype=numbers.weights, requires_grad=True)
            for name, length in zip(("inputs_embeds", "decoder_inputs_embeds"), lengths)
            if length
        }
        as_it_comes = adapter is not None and not adapter.casts
        with computing(numbers) as live, disable_input_dtype_casting(model, active=as_it_comes):
            inputs = entering | ({"use_cache": False} if architecture.looks_back or architecture.writes else {})
            states = functional_call(trunk, weights | buffers, kwargs=inputs)[0]
            kept = live.now
            with torch.autocast("cpu", enabled=False):
                states.sum().backward()
            return kept, live.peak


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)


@lru_cache(maxsize=256)
def of_logits(
    vocabulary: int, hidden: int, numbers: Numbers, tokens: int, loss: str = "full", trained: bool = True
) -> int:
    """Bytes at the peak of head and loss over `tokens` tokens, the gradient of the head's weights included.

    Args:
        loss: "full" holds all logits, as transformers' own loss does; "tiles" works through them in tiles, as TRL's
            fused head does, "torch tiles" as it does without Triton, on CPUs; "blocks" in blocks of rows, as
            recipes/rlhf/head.py does; "score" and "labels" have a few numbers a sequence or token and no logits.
        trained: whether the head's weights are.
    """
    if loss in ("score", "labels"):
        return 0
    if loss in ("tiles", "torch tiles"):
        return _of_tiles(vocabulary, hidden, numbers, tokens, trained, fused=loss == "tiles")
    if loss == "blocks":  # of float32, of which three are alive; a block's share of the gradient beside their sum
        gradients = 2 * numbers.weights.itemsize * vocabulary * hidden if trained else 0
        return 3 * min(BLOCK_BYTES, 4 * tokens * vocabulary) + gradients
    with FakeTensorMode():
        states = torch.empty(tokens, hidden, dtype=numbers.weights, requires_grad=True)
        weight = torch.empty(vocabulary, hidden, dtype=numbers.weights, requires_grad=trained)
        with computing(numbers) as live:
            logits = torch.nn.functional.linear(states, weight)
            value = ForCausalLMLoss(logits[None], torch.zeros(1, tokens, dtype=torch.long), vocabulary)
            with torch.autocast("cpu", enabled=False):
                value.backward()
            return live.peak - states.nbytes  # the gradient of the states is the layers' to count


def _of_tiles(vocabulary: int, hidden: int, numbers: Numbers, tokens: int, trained: bool, fused: bool) -> int:
    """A tile of logits, the piece of the head it comes from where that is cast, and float32 gradients of both factors.

    Without Triton, seven tiles of float32 are made on the way from logits to their gradient (`_backward_tile`).
    """
    rows, columns = min(tokens, TILE_TOKENS), min(vocabulary, TILE_WIDTH)
    tile = numbers.width * rows * TILE_WIDTH if fused else (numbers.width + 7 * 4) * rows * columns
    cast = numbers.width * columns * hidden if numbers.width != numbers.weights.itemsize else 0
    gradients = 4 * tokens * hidden + ((4 + numbers.weights.itemsize) * vocabulary * hidden if trained else 0)
    return tile + cast + gradients
