"""The nine collectives from nothing but send and receive, with every byte counted.

Two pictures are enough for all of them.

The ring: each process sends to its right-hand neighbour and receives from its left-hand one, all at the same time. A
tensor is cut into p blocks that travel round; no wire carries more than another, so the ring is best for long messages.

The binomial tree: seen from the root, number the processes 0 … p−1. The parent of v is v without its lowest set bit,
so that the subtree of v is a run of neighbours:

    0 ── 4 ── 6 ── 7        root 0 of p = 8: children 4, 2, 1; the subtree of 4 is 4 5 6 7
    │    └─── 5
    ├─── 2 ── 3             depth ⌈log2 p⌉, so the tree is best for short messages
    └─── 1

Bytes that rank r sends, of n bytes that a process holds before or after (`sent_bytes` below; lowest(v) is v's lowest set
bit, and the next power of two at the root):

    broadcast        n × number of children of r          tree
    reduce           n, and 0 at the root                 tree
    scatter          n/p × (size of r's subtree − 1)      tree
    gather           n/p × size of r's subtree, 0 at root tree
    reduce-scatter   n (p−1)/p                            ring
    all-gather       n (p−1)/p                            ring
    all-reduce       2 n (p−1)/p                          ring: a reduce-scatter, then an all-gather
    all-to-all       n (p−1)/p                            pairs
    barrier          ⌈log2 p⌉ messages of one byte        dissemination

Sources: Thakur, Rabenseifner & Gropp 2005, Optimization of Collective Communication Operations in MPICH, for ring, tree
and pairs; Patarasuk & Yuan 2009, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations, for the lower
bound 2 n (p−1)/p that the ring meets; Hensgen, Finkel & Manber 1988, Two Algorithms for Barrier Synchronization.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist


class Wire:
    """This process's end of the wires to all others. It counts what it sends.

    Args:
        group: of all processes, where what is sent must not queue with what goes over another wire; None for the default.

    Attributes:
        rank, size: this process and how many there are.
        sent: bytes sent so far.
        messages: messages sent so far.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        self.group = group
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.sent = self.messages = 0

    def send(self, tensor: torch.Tensor, to: int) -> None:
        self._count(tensor)
        dist.send(tensor, to, self.group)

    def start_to_send(self, tensor: torch.Tensor, to: int) -> dist.Work:
        """Send without waiting for the receiver; the tensor must stay as it is until the work's `wait()` returns."""
        self._count(tensor)
        return dist.isend(tensor, to, self.group)

    def receive(self, tensor: torch.Tensor, source: int) -> None:
        """Fill `tensor` with what `source` sends."""
        dist.recv(tensor, source, self.group)

    def exchange(self, outgoing: torch.Tensor, to: int, incoming: torch.Tensor, source: int) -> None:
        """Send and receive at once: a circle of processes that all sent first would wait for each other for ever."""
        self._count(outgoing)
        pair = [
            dist.P2POp(dist.isend, outgoing, to, self.group),
            dist.P2POp(dist.irecv, incoming, source, self.group),
        ]
        for work in dist.batch_isend_irecv(pair):
            work.wait()

    def _count(self, tensor: torch.Tensor) -> None:
        self.sent += tensor.numel() * tensor.element_size()
        self.messages += 1


# ------------------------------------------------------------------------------------------------------------ the tree
def lowest_bit(v: int, size: int) -> int:
    """The lowest set bit of v; for the root, which has none, the first power of two that is at least `size`."""
    return v & -v or 1 << math.ceil(math.log2(size))


def parent(v: int) -> int:
    return v & (v - 1)


def children(v: int, size: int) -> list[int]:
    """The children of v, that with the largest subtree first: the way down must reach the deepest process soonest."""
    below = lowest_bit(v, size)
    distances = [1 << bit for bit in reversed(range(below.bit_length() - 1))]
    return [v + distance for distance in distances if v + distance < size]


def subtree(v: int, size: int) -> range:
    """v and all below it."""
    return range(v, min(v + lowest_bit(v, size), size))


def broadcast(wire: Wire, tensor: torch.Tensor, root: int = 0) -> None:
    """Fill `tensor` everywhere with the root's: each process hands on what it got, so that senders double each round."""
    v = (wire.rank - root) % wire.size
    if v:
        wire.receive(tensor, (parent(v) + root) % wire.size)
    for child in children(v, wire.size):
        wire.send(tensor, (child + root) % wire.size)


def reduce(wire: Wire, tensor: torch.Tensor, root: int = 0) -> torch.Tensor | None:
    """The sum of all processes' tensors, at the root; None elsewhere. The broadcast backwards, adding on the way."""
    v = (wire.rank - root) % wire.size
    total, other = tensor.clone(), torch.empty_like(tensor)
    for child in reversed(children(v, wire.size)):  # the smallest subtree is ready first
        wire.receive(other, (child + root) % wire.size)
        total += other
    if not v:
        return total
    wire.send(total, (parent(v) + root) % wire.size)
    return None


def gather(wire: Wire, block: torch.Tensor, root: int = 0) -> torch.Tensor | None:
    """All blocks, [p, *block.shape] by rank, at the root; None elsewhere. Each sends its whole subtree in one message."""
    v = (wire.rank - root) % wire.size
    held = block.new_empty(len(subtree(v, wire.size)), *block.shape)
    held[0] = block
    for child in reversed(children(v, wire.size)):
        below = subtree(child, wire.size)
        wire.receive(held[below.start - v : below.stop - v], (child + root) % wire.size)
    if not v:
        return held.roll(root, 0)  # from "seen from the root" back to ranks
    wire.send(held, (parent(v) + root) % wire.size)
    return None


def scatter(wire: Wire, block: torch.Tensor, blocks: torch.Tensor | None = None, root: int = 0) -> None:
    """Fill `block` with this rank's of the root's `blocks` [p, *block.shape]: the gather backwards.

    Args:
        blocks: read at the root, None elsewhere.
    """
    v = (wire.rank - root) % wire.size
    if v:
        held = block.new_empty(len(subtree(v, wire.size)), *block.shape)
        wire.receive(held, (parent(v) + root) % wire.size)
    else:
        held = blocks.roll(-root, 0)
    for child in children(v, wire.size):
        below = subtree(child, wire.size)
        wire.send(held[below.start - v : below.stop - v], (child + root) % wire.size)
    block.copy_(held[0])


# ------------------------------------------------------------------------------------------------------------ the ring
def reduce_scatter(wire: Wire, blocks: Sequence[torch.Tensor]) -> None:
    """Make block r of rank r the sum of all processes' blocks r, in place; the other blocks are left half summed.

    Block r sets out from rank r+1 and goes once round the ring; each process on the way adds its own to it. At any time
    every process holds another block in its hands, so all wires are busy.

    Args:
        blocks: p contiguous tensors; block i has the same shape on every rank.
    """
    left, right = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    for step in range(1, wire.size):
        outgoing, mine = blocks[(wire.rank - step) % wire.size], blocks[(wire.rank - step - 1) % wire.size]
        incoming = torch.empty_like(mine)
        wire.exchange(outgoing, right, incoming, left)
        mine += incoming


def all_gather(wire: Wire, blocks: Sequence[torch.Tensor]) -> None:
    """Fill every block i with that of rank i, in place: each process hands on what it received the step before.

    Args:
        blocks: p contiguous tensors, of which this rank's own one is read.
    """
    left, right = (wire.rank - 1) % wire.size, (wire.rank + 1) % wire.size
    for step in range(wire.size - 1):
        outgoing, incoming = blocks[(wire.rank - step) % wire.size], blocks[(wire.rank - step - 1) % wire.size]
        wire.exchange(outgoing, right, incoming, left)


def all_reduce(wire: Wire, tensor: torch.Tensor) -> None:
    """Make `tensor`, which is contiguous, the sum of all processes' tensors, in place.

    Each process becomes responsible for the sum of one block, then everyone collects the finished blocks: once round
    the ring to add, once more to tell. A length that p does not divide gives blocks whose lengths differ by one.
    """
    blocks = tensor.view(-1).tensor_split(wire.size)
    reduce_scatter(wire, blocks)
    all_gather(wire, blocks)


# -------------------------------------------------------------------------------------------------------------- others
def all_to_all(wire: Wire, blocks: torch.Tensor) -> torch.Tensor:
    """Block i of the result is what rank i holds for this rank: the transpose of [rank, block] over processes.

    In step s everyone sends to the process s places to the right, so that no two send to the same one.

    Args:
        blocks: [p, …]; block i is for rank i.
    """
    received = torch.empty_like(blocks)
    received[wire.rank] = blocks[wire.rank]
    for step in range(1, wire.size):
        to, source = (wire.rank + step) % wire.size, (wire.rank - step) % wire.size
        wire.exchange(blocks[to], to, received[source], source)
    return received


def barrier(wire: Wire, device: torch.device) -> None:
    """Return when all processes have come here.

    In round k everyone tells the process 2^k places to the right "I, and all I have heard of, are here"; what is known
    doubles each round, so after ⌈log2 p⌉ rounds each has heard of all.
    """
    token, heard = torch.zeros(1, dtype=torch.uint8, device=device), torch.zeros(1, dtype=torch.uint8, device=device)
    distance = 1
    while distance < wire.size:
        wire.exchange(token, (wire.rank + distance) % wire.size, heard, (wire.rank - distance) % wire.size)
        distance *= 2


# ------------------------------------------------------------------------------------------------------------ formulas
def sent_bytes(primitive: str, rank: int, size: int, n: int, root: int = 0) -> int:
    """Bytes that `rank` sends in a primitive above, from the formulas in this module's docstring.

    Args:
        primitive: a function's name in this module.
        size: number of processes, p.
        n: bytes of the whole message, a multiple of p: all p blocks of a scatter, gather, reduce-scatter, all-gather
            or all-to-all; the tensor of a broadcast, reduce or all-reduce.
        root: of the trees.
    """
    v = (rank - root) % size
    tree, block = len(subtree(v, size)), n // size
    return {
        "broadcast": n * len(children(v, size)),
        "reduce": n if v else 0,
        "scatter": block * (tree - 1),
        "gather": block * tree if v else 0,
        "reduce_scatter": block * (size - 1),
        "all_gather": block * (size - 1),
        "all_reduce": 2 * block * (size - 1),
        "all_to_all": block * (size - 1),
        "barrier": math.ceil(math.log2(size)),
    }[primitive]
