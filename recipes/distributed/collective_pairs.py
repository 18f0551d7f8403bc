"""Each collective twice, by the library and by send and receive, on the same numbers: equal, counted, timed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recipes.core.files import write_atomically
from recipes.distributed import point_to_point
from recipes.distributed.processes import device

PRIMITIVES = {  # and what a rank sends, in words; point_to_point.sent_bytes gives the numbers
    "broadcast": "n × children in the tree",
    "reduce": "n; root 0",
    "scatter": "n/p × (subtree − 1)",
    "gather": "n/p × subtree; root 0",
    "reduce_scatter": "n (p−1)/p",
    "all_gather": "n (p−1)/p",
    "all_reduce": "2 n (p−1)/p",
    "all_to_all": "n (p−1)/p",
    "barrier": "⌈log2 p⌉ bytes",
}
PAUSE = 0.02  # seconds by which each process comes later to a barrier than the one before it


def by_library(primitive: str, mine: torch.Tensor, root: int = 0) -> torch.Tensor | None:
    """The result of a collective of torch.distributed over all processes' `mine`; None where it leaves none.

    Args:
        mine: [p, k], one block of k numbers for each rank; what holds one block only is given that of its own rank.
    """
    rank, at_root = dist.get_rank(), dist.get_rank() == root
    match primitive:
        case "broadcast":
            dist.broadcast(result := mine.clone(), root)
        case "reduce":
            dist.reduce(result := mine.clone(), root)
            return result if at_root else None
        case "scatter":
            dist.scatter(result := torch.empty_like(mine[0]), list(mine) if at_root else None, root)
        case "gather":
            result = torch.empty_like(mine) if at_root else None
            dist.gather(mine[rank].clone(), list(result) if at_root else None, root)
        case "reduce_scatter":
            dist.reduce_scatter_single(result := torch.empty_like(mine[0]), mine.view(-1))
        case "all_gather":
            result = torch.empty_like(mine)
            dist.all_gather_single(result.view(-1), mine[rank].clone())
        case "all_reduce":
            dist.all_reduce(result := mine.clone())
        case "all_to_all":
            dist.all_to_all_single(result := torch.empty_like(mine), mine)
        case "barrier":
            dist.barrier()
            result = None
    return result


def by_point_to_point(
    primitive: str, mine: torch.Tensor, root: int = 0, wire: point_to_point.Wire | None = None
) -> torch.Tensor | None:
    """What `by_library` returns, from sends and receives alone; a `wire` that is given counts them."""
    wire = wire or point_to_point.Wire()
    match primitive:
        case "broadcast":
            point_to_point.broadcast(wire, result := mine.clone(), root)
        case "reduce":
            result = point_to_point.reduce(wire, mine, root)
        case "scatter":
            result = torch.empty_like(mine[0])
            point_to_point.scatter(wire, result, mine if wire.rank == root else None, root)
        case "gather":
            result = point_to_point.gather(wire, mine[wire.rank], root)
        case "reduce_scatter":
            point_to_point.reduce_scatter(wire, blocks := list(mine.clone()))
            result = blocks[wire.rank]
        case "all_gather":
            result = torch.empty_like(mine)
            result[wire.rank] = mine[wire.rank]
            point_to_point.all_gather(wire, list(result))
        case "all_reduce":
            point_to_point.all_reduce(wire, result := mine.clone())
        case "all_to_all":
            result = point_to_point.all_to_all(wire, mine)
        case "barrier":
            result = point_to_point.barrier(wire, mine.device)
    return result


# --------------------------------------------------------------------------------------------- in each of the processes
def numbers(rank: int, size: int, nbytes: int, seed: int) -> torch.Tensor:
    """[p, k] numbers of `rank`, `nbytes` in all. Whole numbers: their sums are exact in whatever order they are added."""
    generator = torch.Generator().manual_seed(seed * size + rank)
    return torch.randint(0, 100, (size, nbytes // 4 // size), generator=generator).float().to(device())


def compare(rank: int, size: int, message_bytes: list[int], repeats: int, seed: int) -> dict[str, dict[str, Any]]:
    """By primitive, as this rank sees it: difference to the library, bytes sent, and seconds of each repetition."""
    found = {}
    largest = numbers(rank, size, max(message_bytes), seed)
    messages = {nbytes: numbers(rank, size, nbytes, seed) for nbytes in message_bytes}
    ways = {"library": by_library, "ours": by_point_to_point}
    for primitive in PRIMITIVES:
        wire = point_to_point.Wire()
        found[primitive] = {
            "difference": difference(by_library(primitive, largest), by_point_to_point(primitive, largest, wire=wire)),
            "sent": wire.sent,
            "on_the_wire": {who: loopback_bytes(way, primitive, largest) for who, way in ways.items()},
            "seconds": {
                nbytes: {who: timed(repeats, way, primitive, mine) for who, way in ways.items()}
                for nbytes, mine in messages.items()
            },
        }
    found["barrier"]["passed"] = {who: passed_barrier(rank, way) for who, way in ways.items()}
    return found


def difference(expected: torch.Tensor | None, found: torch.Tensor | None) -> float:
    """Largest difference of two results; infinite if only one is there or the shapes differ."""
    if expected is None or found is None:
        return 0.0 if expected is found else float("inf")
    return (expected - found).abs().max().item() if expected.shape == found.shape else float("inf")


def timed(repeats: int, call: Callable[..., Any], *arguments: Any) -> list[float]:
    """Seconds of each call, all processes having started together; a first one, untimed, opens the connections."""
    seconds = []
    for _ in range(repeats + 1):
        dist.barrier()
        began = time.monotonic()
        call(*arguments)
        if device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    return seconds[1:]


def loopback_bytes(call: Callable[..., Any], *arguments: Any) -> int | None:
    """Bytes, headers included, that went over this machine's loopback device during `call`; None where none are counted.

    The operating system counts them for all programs together, so this is a check on a quiet machine and no more.
    """
    dist.barrier()
    before = _loopback_counter()
    dist.barrier()
    call(*arguments)
    dist.barrier()
    after = _loopback_counter()
    dist.barrier()
    return None if before is None or device().type == "cuda" else after - before


def _loopback_counter() -> int | None:
    table = Path("/proc/net/dev")
    lines = table.read_text().splitlines() if table.exists() else []
    return next((int(line.split()[9]) for line in lines if line.strip().startswith("lo: ")), None)


def passed_barrier(rank: int, way: Callable[..., Any]) -> tuple[float, float]:
    """When this rank came to a barrier and when it left, by the machine's clock; each rank comes later than the last."""
    nothing = torch.empty(0, device=device())
    time.sleep(PAUSE * rank)
    came = time.monotonic()
    way("barrier", nothing)
    if device().type == "cuda":  # NCCL holds up the stream, not this program
        torch.cuda.synchronize()
    return came, time.monotonic()


# ------------------------------------------------------------------------------------------------- of all of the ranks
def summarise(ranks: list[dict[str, dict[str, Any]]], nbytes: int) -> dict[str, dict[str, Any]]:
    """By primitive, over all ranks of one world: equality, bytes beside the formula, and seconds by message size.

    A call takes as long as its slowest rank; of the repetitions the fastest counts, since what delays the others is other
    work on the machine.

    Args:
        nbytes: bytes of the message whose sends were counted.
    """
    size, table = len(ranks), {}
    for primitive in PRIMITIVES:
        of = [rank[primitive] for rank in ranks]
        table[primitive] = {
            "difference": max(each["difference"] for each in of),
            "sent": [each["sent"] for each in of],
            "formula": [point_to_point.sent_bytes(primitive, rank, size, nbytes) for rank in range(size)],
            "on_the_wire": of[0]["on_the_wire"],
            "seconds": {
                who: {
                    length: min(map(max, zip(*(each["seconds"][length][who] for each in of))))
                    for length in of[0]["seconds"]
                }
                for who in ("library", "ours")
            },
        }
    for who in ("library", "ours"):
        came, left = zip(*(rank["barrier"]["passed"][who] for rank in ranks))
        table["barrier"][f"left_early_{who}"] = sum(moment < max(came) for moment in left)
    return table


def to_markdown(worlds: dict[int, dict[str, dict[str, Any]]], nbytes: int) -> str:
    """A table for people: what each rank of each world sent, beside the formula and what the machine counted."""
    lines = [
        f"# Bytes sent for a message of {nbytes:,} bytes",
        "",
        "A rank's bytes are counted at its sends. The last two columns are the operating system's count of all bytes on the",
        "loopback device, headers included, while the primitive ran once.",
        "",
        "| p | primitive | formula | sent by rank 0, 1, … | off the formula | sum | loopback, ours | loopback, library |",
        "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for size, table in worlds.items():
        for primitive, row in table.items():
            sent = ", ".join(f"{count:,}" for count in row["sent"])
            off = max(abs(a - b) for a, b in zip(row["sent"], row["formula"]))
            wire = (row["on_the_wire"][who] for who in ("ours", "library"))
            ours, library = ("–" if count is None else f"{count:,}" for count in wire)
            total = sum(row["sent"])
            lines.append(
                f"| {size} | {primitive} | {PRIMITIVES[primitive]} | {sent} | {off} | {total:,} | {ours} | {library} |"
            )
    return "\n".join(lines) + "\n"


def draw_times(worlds: dict[int, dict[str, dict[str, Any]]], path: Path) -> None:
    """One small plot a primitive: time against message size, ours and the library's, a colour for each world."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8.2), layout="constrained")
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    for axes, primitive in zip(grid.flat, PRIMITIVES):
        for index, (size, table) in enumerate(worlds.items()):
            for who, style in (("ours", "-o"), ("library", "--s")):
                seconds = table[primitive]["seconds"][who]
                label = f"{size} processes, {'send and receive' if who == 'ours' else 'torch.distributed'}"
                milliseconds = [1e3 * each for each in seconds.values()]
                axes.plot(list(seconds), milliseconds, style, color=f"C{index}", markersize=4, label=label)
        axes.set_title(primitive.replace("_", "-") + (" (has no message)" if primitive == "barrier" else ""))
        axes.grid(alpha=0.25)
    lengths = list(seconds)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [_short(length) for length in lengths], minor=False)
    axes.set_yscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel("milliseconds")
    for axes in grid[-1]:
        axes.set_xlabel("length of the message")
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle("Time of the nine collectives, made of send and receive and by torch.distributed")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))


def _short(nbytes: int) -> str:
    """`4194304` as `4 MiB`."""
    power = min(3, (nbytes.bit_length() - 1) // 10)
    return f"{nbytes / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
