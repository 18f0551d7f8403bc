"""Memory of sharded states: the formulas against the paper's own figures, real tensors against the formulas."""

import pytest
import torch

from recipes.distributed import sharded_memory, sharding_report
from recipes.distributed.processes import spawn
from recipes.distributed.sharded_memory import KINDS, formula, master_copy
from recipes.distributed.small_llama import SmallLlamaConfig

TINY = SmallLlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2, max_length=8)
BUCKET = 1000
PAIRS = [
    ("zero0", "mixed"),
    ("zero1", "full"),
    ("zero2", "mixed"),
    ("zero3", "full"),
    ("fsdp2", "full"),
    ("fsdp2", "mixed"),
]


@pytest.mark.parametrize(
    ("strategy", "gigabytes"), [("zero0", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9), ("fsdp2", 1.9)]
)
def test_the_formulas_give_the_figures_of_the_paper(strategy, gigabytes):
    """Figure 1 of arXiv 1910.02054: 7.5 billion parameters, 64 processes, K = 12."""
    held = 7.5 * sum(formula(strategy, "mixed", 64).values())
    assert held == pytest.approx(gigabytes, abs=0.05)


def test_full_precision_is_four_four_eight():
    assert formula("zero0", "full", 4) == {"parameters": 4, "gradients": 4, "optimizer": 8}
    assert formula("zero1", "full", 4) == {"parameters": 4, "gradients": 4, "optimizer": 2}
    assert formula("zero2", "full", 4) == {"parameters": 4, "gradients": 1, "optimizer": 2}
    assert (
        formula("zero3", "full", 4)
        == formula("fsdp2", "mixed", 4)
        == {"parameters": 1, "gradients": 1, "optimizer": 2}
    )
    assert [master_copy(name, "full", 4) for name in ("zero0", "zero1", "zero3", "fsdp2")] == [0, 1, 1, 0]
    assert master_copy("zero3", "mixed", 4) == 0


def measured(rank: int) -> dict:
    return {pair: sharded_memory.measure_one(TINY, *pair, BUCKET, 0) for pair in PAIRS}


@pytest.fixture(scope="module")
def ranks():
    return spawn(measured, 2)


@pytest.mark.parametrize(("strategy", "precision"), PAIRS)
def test_every_kind_is_what_the_formula_says_and_at_most_a_bucket_more(ranks, strategy, precision):
    count = sum(parameter.numel() for parameter in TINY.build(0).parameters())
    expected = formula(strategy, precision, 2)
    expected["optimizer"] += master_copy(strategy, precision, 2)
    spare = {
        "parameters": 0,
        "gradients": 4 * (BUCKET + 256 * 32)
        if strategy.startswith("zero")
        else 0,  # a bucket, or a matrix that is larger
        "optimizer": 400,  # AdamW's counts of steps
    }
    for rank in ranks:
        held = rank[strategy, precision]
        assert held["model_parameters"] == count
        for kind in KINDS:
            assert 0.99 * expected[kind] * count <= held[kind] <= 1.01 * expected[kind] * count + spare[kind], kind
        assert held["other"] < 0.1 * 4 * count, "nearly everything that is there is counted"


def test_only_what_is_split_is_gathered(ranks):
    for rank in ranks:
        gathered = {pair: held["gathered"] for pair, held in rank.items()}
        assert all((size > 0) == (strategy in ("zero3", "fsdp2")) for (strategy, _), size in gathered.items())


def views(rank: int) -> tuple[list[int], list[int]]:
    one, other = torch.zeros(100), torch.zeros(10, dtype=torch.bfloat16)
    same = sharded_memory.storages([one, one[:10], one.view(10, 10), torch.zeros(0)])
    return list(same.values()), list(sharded_memory.storages([one, other]).values())


def test_views_of_one_storage_count_once():
    assert spawn(views, 1) == [([400], [400, 20])]


def test_the_fullest_rank_and_the_errors_are_reported():
    held = {"gradients": 40, "optimizer": 80, "gathered": 0, "in_step": 0, "other": 0, "model_parameters": 10}
    ranks = [{"full": {"zero1": {**held, "parameters": size}}} for size in (30, 44)]
    (row,) = sharding_report.rows({2: ranks}, ["zero1"], ["full"])
    assert row["measured"] == pytest.approx(16.4)
    assert row["error"] == pytest.approx(16.4 / 12 - 1)
    assert row["error_with_master_copy"] == pytest.approx(16.4 / 14 - 1)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes", "[1]"], "'processes' must be a list of numbers of at least 2"),
        (
            ["--strategies", "[zero4]"],
            "'strategies' must be a list of zero0, zero1, zero2, zero3, fsdp2, not ['zero4']",
        ),
        (["--strategies", "[]"], "'strategies' must be"),
        (["--precisions", "[half]"], "'precisions' must be a list of full, mixed"),
        (["--reduce_bucket_size", "0"], "'reduce_bucket_size' must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(main, capfd, tmp_path, root, flags, said):
    config = root / "configs/distributed/sharding/quickstart.yaml"
    with pytest.raises(SystemExit):
        main("distributed/sharding")(["--config", str(config), "--runs_dir", str(tmp_path), *flags])
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    assert not any(tmp_path.iterdir())
