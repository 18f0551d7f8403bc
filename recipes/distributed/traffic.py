"""What collectives are called, and how many bytes a process sends for them."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# The operator, as torch.distributed calls it and as DTensor does: the collective, and which argument is sent.
_COLLECTIVES = {
    "c10d::allreduce_": ("all-reduce", 0),
    "_c10d_functional::all_reduce": ("all-reduce", 0),
    "_c10d_functional::all_gather_into_tensor": ("all-gather", 0),
}
_NO_MESSAGE = ("_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd")


def ring_bytes(collective: str, message: int, processes: int) -> float:
    """Bytes that each process sends when the collective goes round a ring.

    An all-reduce is a reduce-scatter and an all-gather; each sends p - 1 of p parts.

    Args:
        collective: all-reduce or all-gather.
        message: bytes that each process brings.
    """
    return message * {"all-reduce": 2 * (processes - 1) / processes, "all-gather": processes - 1}[collective]


class Traffic(TorchDispatchMode):
    """`with Traffic() as traffic:` counts the collectives inside, backward included.

    Attributes:
        calls: how often each collective was called.
        messages: bytes that this process brought to each collective.
    """

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()

    def ring_bytes(self, processes: int) -> float:
        """Bytes that this process sent, each collective a ring."""
        return sum(ring_bytes(name, message, processes) for name, message in self.messages.items())

    def __torch_dispatch__(self, operator: Any, types: tuple, arguments: tuple = (), keywords: dict | None = None):
        if any(issubclass(kind, torch.distributed.tensor.DTensor) for kind in types):
            return NotImplemented  # DTensor turns it into operators on plain tensors, which come here again
        name = operator.name().rpartition(".")[0] or operator.name()
        if name in _COLLECTIVES:
            collective, sent = _COLLECTIVES[name]
            self.calls[collective] += 1
            self.messages[collective] += sum(
                leaf.nbytes
                for leaf in torch.utils._pytree.tree_leaves(arguments[sent])
                if isinstance(leaf, torch.Tensor)
            )
        elif name.startswith(("c10d::", "_c10d_functional::")) and name not in _NO_MESSAGE:
            raise NotImplementedError(f"{name}: how many bytes does a ring send for it?")
        return operator(*arguments, **keywords or {})
