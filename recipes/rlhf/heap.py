"""What glibc does with freed memory while PPO trains on a CPU, where it is a fifth of the time and a tenth of the peak.

By default the heap gives its end back whenever that is free, and takes it again page by page for the next micro-batch;
and what lies free in its middle does not serve large tensors, which are mapped outside it.
"""

import ctypes
import sys

from torch import nn

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
MAPPED = 2**25  # bytes from which a block is mapped outside the heap; the most that glibc allows


def _function(name: str):
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def keep_freed_memory() -> None:
    """Let the heap keep what was freed, for the next micro-batch."""
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MAPPED)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def give_back_before_backward(head: nn.Module) -> None:
    """Give free pages back at the peak, where the gradient of a policy's head is so large that it does not lie in them.

    A small model, whose gradients do, would only take the pages again.
    """
    trim, weight = _function("malloc_trim"), getattr(head, "weight", None)
    if trim is not None and weight is not None and weight.device.type == "cpu" and weight.nbytes >= MAPPED:
        trim(0)
