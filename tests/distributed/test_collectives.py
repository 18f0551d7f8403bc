"""The collectives made of sends: equal to sums and transposes done in one process, and to the formulas in bytes."""

import math

import pytest
import torch
import torch.distributed as dist

from recipes.distributed import point_to_point
from recipes.distributed.collective_pairs import PRIMITIVES, by_library, by_point_to_point, difference, summarise
from recipes.distributed.processes import spawn

ROOTS = {2: 1, 3: 2, 5: 3}  # sizes that are no powers of two, roots that are not the first


def numbers(rank: int, size: int) -> torch.Tensor:
    return torch.arange(size * 6).view(size, 6).float() + 100 * rank


def work(rank: int, size: int, root: int) -> dict[str, tuple]:
    """Of every primitive: the library's result, ours, and the bytes sent; and an all-reduce of an odd length."""
    found = {}
    for primitive in PRIMITIVES:
        wire = point_to_point.Wire()
        mine = numbers(rank, size)
        found[primitive] = (
            by_library(primitive, mine, root),
            by_point_to_point(primitive, mine, root, wire),
            wire.sent,
            torch.equal(mine, numbers(rank, size)),
        )
    odd = torch.arange(size + 1).float() * (rank + 1)
    point_to_point.all_reduce(point_to_point.Wire(), odd)
    short = torch.full((1,), rank + 1.0)  # fewer numbers than processes: some blocks are empty
    point_to_point.all_reduce(point_to_point.Wire(), short)
    found["uneven"] = (odd, short)
    return found


@pytest.fixture(scope="module")
def worlds():
    return {size: spawn(work, size, size, root) for size, root in ROOTS.items()}


def expected(primitive: str, rank: int, size: int, root: int) -> torch.Tensor | None:
    """By hand, from all processes' numbers at once."""
    everyone = torch.stack([numbers(each, size) for each in range(size)])
    return {
        "broadcast": everyone[root],
        "reduce": everyone.sum(0) if rank == root else None,
        "scatter": everyone[root, rank],
        "gather": everyone[range(size), range(size)] if rank == root else None,
        "reduce_scatter": everyone.sum(0)[rank],
        "all_gather": everyone[range(size), range(size)],
        "all_reduce": everyone.sum(0),
        "all_to_all": everyone[:, rank],
        "barrier": None,
    }[primitive]


@pytest.mark.parametrize("size", ROOTS)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_every_rank_has_what_one_process_computes(worlds, primitive, size):
    for rank, found in enumerate(worlds[size]):
        library, ours, _, kept = found[primitive]
        assert difference(expected(primitive, rank, size, ROOTS[size]), ours) == 0
        assert difference(library, ours) == 0
        assert kept, "the input was changed"


@pytest.mark.parametrize("size", ROOTS)
def test_a_length_that_the_processes_do_not_divide(worlds, size):
    total = size * (size + 1) / 2
    for found in worlds[size]:
        odd, short = found["uneven"]
        assert odd.tolist() == [position * total for position in range(size + 1)]
        assert short.tolist() == [total]


@pytest.mark.parametrize("size", ROOTS)
@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_the_bytes_sent_are_those_of_the_formula(worlds, primitive, size):
    n = numbers(0, size).nbytes
    sent = [found[primitive][2] for found in worlds[size]]
    assert sent == [point_to_point.sent_bytes(primitive, rank, size, n, ROOTS[size]) for rank in range(size)]


def test_the_formulas_against_figures_worked_by_hand():
    """Four processes, root 0, n = 400 bytes: the tree is 0 → 2, 1; 2 → 3."""
    by_hand = {
        "broadcast": [800, 0, 400, 0],
        "reduce": [0, 400, 400, 400],
        "scatter": [300, 0, 100, 0],
        "gather": [0, 100, 200, 100],
        "reduce_scatter": [300] * 4,
        "all_gather": [300] * 4,
        "all_reduce": [600] * 4,
        "all_to_all": [300] * 4,
        "barrier": [2] * 4,
    }
    assert {name: [point_to_point.sent_bytes(name, r, 4, 400) for r in range(4)] for name in PRIMITIVES} == by_hand


@pytest.mark.parametrize("size", range(1, 40))
def test_the_tree_reaches_everyone_once_and_is_as_deep_as_a_binomial_tree(size):
    depth = {0: 0}
    for v in range(size):
        for child in point_to_point.children(v, size):
            assert point_to_point.parent(child) == v
            assert child not in depth
            depth[child] = depth[v] + 1
    assert sorted(depth) == list(range(size))
    assert max(depth.values()) <= math.ceil(math.log2(size))
    for v in range(size):
        below = {v}
        for other in range(v, size):
            below |= {other} if point_to_point.parent(other) in below and other else set()
        assert sorted(below) == list(point_to_point.subtree(v, size))


def test_in_all_a_tree_moves_what_the_receivers_lack():
    for size in range(2, 20):
        n = 8 * size
        total = {name: sum(point_to_point.sent_bytes(name, r, size, n) for r in range(size)) for name in PRIMITIVES}
        assert total["broadcast"] == total["reduce"] == (size - 1) * n
        assert total["gather"] == total["scatter"]
        assert total["all_reduce"] == 2 * (size - 1) * n


def late(rank: int) -> dict[str, dict]:
    from recipes.distributed.collective_pairs import compare

    return compare(rank, 2, [64], 1, 0)


def test_nobody_leaves_a_barrier_before_all_have_come():
    table = summarise(spawn(late, 2), 64)
    assert table["barrier"]["left_early_ours"] == table["barrier"]["left_early_library"] == 0
    assert all(row["difference"] == 0 for row in table.values())


def test_a_barrier_that_lets_someone_through_is_noticed():
    rank = {
        name: {
            "difference": 0.0,
            "sent": 0,
            "on_the_wire": {},
            "seconds": {64: {"ours": [1.0, 2.0], "library": [3.0, 4.0]}},
        }
        for name in PRIMITIVES
    }
    early, late = (dict.fromkeys(("ours", "library"), moments) for moments in ((0.0, 0.1), (0.2, 0.3)))
    ranks = [{**rank, "barrier": {**rank["barrier"], "passed": passed}} for passed in (early, late)]
    table = summarise(ranks, 64)
    assert table["barrier"]["left_early_ours"] == 1
    assert table["broadcast"]["seconds"]["ours"] == {64: 1.0}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"processes": [1]}, "'processes' must be a list of numbers of at least 2"),
        ({"processes": []}, "'processes'"),
        ({"processes": [3]}, "1024 is no multiple of 12"),
        ({"message_bytes": [0]}, "'message_bytes' must be"),
        ({"message_bytes": [1022]}, "1022 is no multiple of 8"),
        ({"repeats": 0}, "'repeats' must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(main, capfd, tmp_path, root, setting, said):
    flags = [word for key, value in setting.items() for word in (f"--{key}", str(value))]
    config = root / "configs/distributed/collectives/quickstart.yaml"
    with pytest.raises(SystemExit):
        main("distributed/collectives")(["--config", str(config), "--runs_dir", str(tmp_path), *flags])
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    assert not any(tmp_path.iterdir())


def stray(rank: int) -> None:
    assert dist.get_world_size() == 1
    wire = point_to_point.Wire()
    mine = numbers(0, 1)
    for primitive in PRIMITIVES:
        assert difference(by_library(primitive, mine), by_point_to_point(primitive, mine, wire=wire)) == 0
    assert wire.sent == 0


def test_alone_there_is_nothing_to_send():
    spawn(stray, 1)
