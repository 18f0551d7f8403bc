"""Gradients averaged over processes are those of one process with the whole batch, whatever the buckets."""

import pytest
import torch
from torch import nn

from recipes.distributed import gradient_averaging
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaConfig, train_alone

TINY = SmallLlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_length=12
)
CAPS = [0.0, 300.0, 1e9]


def network() -> nn.Module:
    """Layers of several sizes, a weight that is used twice, one that is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 20), nn.Linear(20, 1))
    model[4].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    return model


def batch() -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def averaged_gradients(rank: int) -> dict[float, list[list[torch.Tensor]]]:
    found = {}
    for cap in CAPS:
        model = network()
        if rank:
            nn.init.ones_(model[0].weight)
        gradient_averaging.broadcast_weights(model)
        averager = gradient_averaging.GradientAverager(model, cap)
        found[cap] = []
        for _ in range(2):  # the second time over gradients that are gone, in buckets that were used
            model.zero_grad()
            model(batch().chunk(2)[rank]).square().mean().backward()
            averager.finish()
            found[cap].append([each.grad.clone() for each in model.parameters() if each.requires_grad])
    return found


def test_the_average_over_processes_is_the_gradient_of_the_whole_batch():
    model = network()
    model(batch()).square().mean().backward()
    expected = [each.grad for each in model.parameters() if each.requires_grad]
    for found in spawn(averaged_gradients, 2):
        for cap in CAPS:
            for gradients in found[cap]:
                torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("cap", "buckets"), [(0.0, 6), (100.0, 5), (1e9, 1)])
def test_buckets_hold_every_trained_parameter_once_the_last_first(cap, buckets):
    model = network()
    trained = [each for each in model.parameters() if each.requires_grad]
    split = gradient_averaging.split_into_buckets(model.parameters(), cap)
    assert [id(each) for bucket in split for each in bucket] == [id(each) for each in reversed(trained)]
    assert all(len(bucket) == 1 or sum(each.nbytes for each in bucket) <= cap for bucket in split)
    assert len(split) == buckets


def losses(rank: int, rows: torch.Tensor) -> dict:
    return gradient_averaging.compare(rank, TINY, rows, 1e-2, 0, 2000.0, [0.0, 1e9], 1)


def test_both_loops_log_the_losses_of_one_process():
    rows = torch.randint(0, 256, (6, 4, 12), generator=torch.Generator().manual_seed(0))
    (one,) = (rank["losses"] for rank in spawn(train_alone, 1, TINY, rows, 1e-2, 0))
    ranks = spawn(losses, 2, rows)
    for found in ranks:
        assert found["by hand"] == pytest.approx(one, abs=1e-5)
        assert found["by accelerate"] == pytest.approx(one, abs=1e-5)
        assert found["timings"]["buckets"] == [len(list(TINY.build(0).parameters())), 1]
    (half,) = (rank["losses"] for rank in spawn(train_alone, 1, TINY, rows[:, :2], 1e-2, 0))
    assert max(abs(a - b) for a, b in zip(one, half)) > 1e-3, "the losses would tell if nothing were averaged"


def forgotten(rank: int) -> str:
    model = network()
    averager = gradient_averaging.GradientAverager(model, 0.0)
    model[:3](batch()).sum().backward()
    try:
        averager.finish()
    except RuntimeError as error:
        return str(error)


def test_a_parameter_without_a_gradient_is_named():
    assert spawn(forgotten, 1) == [
        "the loss does not depend on parameters of shapes [(1,), (1, 20), (20,)]; freeze them"
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes", "[1, 2]"], "'processes' must be a list of numbers of at least 2"),
        (["--batch_size", "6"], "'batch_size' must be a multiple of each of 'processes' [2, 4], not 6"),
        (["--max_steps", "0"], "'max_steps' must be at least 1"),
        (["--bucket_cap_mb", "-1"], "'bucket_cap_mb'"),
        (["--timed_bucket_caps_mb", "[]"], "'timed_bucket_caps_mb'"),
        (["--hidden_size", "60"], "'hidden_size' must be a multiple of twice 'num_attention_heads' 4"),
        (["--num_hidden_layers", "0"], "'num_hidden_layers' must be at least 1"),
        (["--max_length", "1"], "'max_length' must be at least 2"),
    ],
)
def test_a_mistake_is_one_line(main, capfd, tmp_path, root, flags, said):
    config = root / "configs/distributed/data_parallel/quickstart.yaml"
    with pytest.raises(SystemExit):
        main("distributed/data_parallel")(["--config", str(config), "--runs_dir", str(tmp_path), *flags])
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    assert not any(tmp_path.iterdir())


def test_rows_are_pieces_of_the_text(tmp_path):
    from recipes.core import DataConfig, UserError

    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "abcdefghijklmnopqrstuvwxyz"}\n')
    data = DataConfig(dataset_name=str(file), dataset_test_split=None)
    rows = TINY.batches(data, 3, 2, seed=0)
    assert rows.shape == (3, 2, 12)
    assert all(bytes(row.tolist()).decode() in "abcdefghijklmnopqrstuvwxyz" for row in rows.flatten(0, 1))
    assert not torch.equal(rows, TINY.batches(data, 3, 2, seed=1))
    file.write_text('{"text": "short"}\n')
    with pytest.raises(UserError, match="12 bytes of text are needed"):
        TINY.batches(data, 3, 2, seed=0)
