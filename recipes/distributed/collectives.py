"""Collectives: the nine primitives of torch.distributed, each beside one made of sends and receives whose bytes count.

Paper: Thakur et al. 2005, Optimization of Collective Communication Operations in MPICH, section 4;
       Patarasuk & Yuan 2009, Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations, for 2(p−1)/p · n.
Run:   python -m recipes.distributed.collectives --config configs/distributed/collectives/quickstart.yaml
"""

from dataclasses import dataclass, field

from recipes.core import Run, TaskConfig, UserError, recipe
from recipes.distributed import collective_pairs
from recipes.distributed.processes import spawn


@dataclass
class CollectivesConfig(TaskConfig):
    """How many processes talk, and about how much."""

    processes: list[int] = field(
        default_factory=lambda: [2, 4], metadata={"help": "Sizes of the groups, one after another."}
    )
    message_bytes: list[int] = field(
        default_factory=lambda: [1024, 8192, 65536, 524288, 4194304],
        metadata={"help": "Lengths of the message; sends are counted for the longest."},
    )
    repeats: int = field(
        default=15, metadata={"help": "Timed calls of each primitive and length; the fastest counts."}
    )

    def __post_init__(self):
        for key, least in (("processes", 2), ("message_bytes", 1)):
            if not getattr(self, key) or min(getattr(self, key)) < least:
                raise UserError(f"'{key}' must be a list of numbers of at least {least}, not {getattr(self, key)}")
        if self.repeats < 1:
            raise UserError(f"'repeats' must be at least 1, not {self.repeats}")
        for size in self.processes:
            for nbytes in self.message_bytes:
                if nbytes % (4 * size):
                    raise UserError(
                        f"'message_bytes': {nbytes} is no multiple of {4 * size}, so it does not make {size} equal "
                        "blocks of float32 numbers"
                    )


@recipe
def main(run: Run, method: CollectivesConfig) -> None:
    longest = max(method.message_bytes)
    worlds = {}
    for size in method.processes:
        ranks = spawn(collective_pairs.compare, size, size, method.message_bytes, method.repeats, method.seed)
        worlds[size] = collective_pairs.summarise(ranks, longest)

    run.write("table.md", collective_pairs.to_markdown(worlds, longest))
    collective_pairs.draw_times(worlds, run.output_dir / "plot.png")
    rows = [row for table in worlds.values() for row in table.values()]
    on_the_wire = [
        row["on_the_wire"]["ours"] / sum(row["formula"])
        for table in worlds.values()
        for name, row in table.items()
        if name != "barrier" and row["on_the_wire"]["ours"]  # a barrier's few bytes are lost among headers
    ]
    largest = worlds[max(worlds)]["all_reduce"]
    run.record(
        largest_difference=max(row["difference"] for row in rows),
        bytes_off_the_formula=max(abs(a - b) for row in rows for a, b in zip(row["sent"], row["formula"])),
        loopback_bytes_over_formula=max(on_the_wire, default=None),
        left_a_barrier_early=sum(table["barrier"]["left_early_ours"] for table in worlds.values()),
        all_reduce_bytes_per_rank=max(largest["sent"]),
        all_reduce_milliseconds=1e3 * largest["seconds"]["ours"][longest],
        worlds={str(size): table for size, table in worlds.items()},
        baselines={
            "largest_difference": 0,
            "bytes_off_the_formula": 0,
            "loopback_bytes_over_formula": 1,
            "left_a_barrier_early": 0,
            # Rank 0 collects all tensors and sends the sum to everyone: what a ring is held against.
            "all_reduce_bytes_per_rank": (max(worlds) - 1) * longest,
            "all_reduce_milliseconds": 1e3 * largest["seconds"]["library"][longest],
        },
    )


if __name__ == "__main__":
    main()
