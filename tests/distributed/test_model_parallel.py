"""Layers on several processes: the losses and weights of one process, and never two at work on the same batch."""

import pytest
import torch

from recipes.distributed import layer_placement, timeline
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaConfig, train_alone

TINY = SmallLlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, max_length=12
)


@pytest.fixture(scope="module")
def trained():
    rows = torch.randint(0, 256, (4, 4, 12), generator=torch.Generator().manual_seed(0))
    job = (TINY, rows, 1e-2, 0)
    return {1: spawn(train_alone, 1, *job), 3: spawn(layer_placement.train, 3, *job)}


def test_the_losses_and_the_weights_are_those_of_one_process(trained):
    (one,), ranks = trained[1], trained[3]
    assert ranks[-1]["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert [rank["losses"] for rank in ranks[:-1]] == [[], []]
    weights = {name: weight for rank in ranks for name, weight in rank["weights"].items()}
    assert sum(len(rank["weights"]) for rank in ranks) == len(weights), "no weight lies on two ranks"
    assert weights.keys() == one["weights"].keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, one["weights"][name], rtol=0, atol=2e-5)
    start = TINY.build(0).state_dict()
    assert all(not torch.allclose(weights[name], start[name], atol=1e-3) for name in weights), "each has been trained"


def test_only_one_works_at_a_time(trained):
    spans = [rank["timeline"] for rank in trained[3]]
    assert all([what for what, _, _ in rank] == ["forward", "backward", "step"] * 4 for rank in spans)
    work = [[span for span in rank if span[0] != "step"] for rank in spans]
    assert timeline.share_with_several(work) == 0
    assert timeline.utilisation(work) < 1 / 3 + 1e-9


def test_busy_time_of_timelines_worked_by_hand():
    together = [[("a", 0.0, 2.0), ("b", 3.0, 4.0)], [("a", 1.0, 3.0)]]
    assert timeline.utilisation(together) == pytest.approx(5 / 4 / 2)
    assert timeline.share_with_several(together) == pytest.approx(1 / 4)
    in_turn = [[("a", 0.0, 1.0)], [("a", 1.0, 2.0)], [("a", 5.0, 6.0)]]
    assert timeline.share_with_several(in_turn) == 0
    assert timeline.utilisation(in_turn) == pytest.approx(3 / 6 / 3)


@pytest.mark.parametrize("count", range(1, 20))
def test_every_layer_is_on_one_rank(count):
    for size in range(1, count + 1):
        runs = [layer_placement.layers_of(rank, size, count) for rank in range(size)]
        assert [layer for run in runs for layer in run] == list(range(count))
        assert max(map(len, runs)) - min(map(len, runs)) <= 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--processes", "[1]"], "'processes' must be a list of numbers of at least 2"),
        (["--processes", "[9]"], "'processes' 9 is more than 'num_hidden_layers' 8"),
        (["--tie_word_embeddings"], "'tie_word_embeddings' must be false"),
        (["--batch_size", "0"], "'batch_size' must be at least 1"),
        (["--max_steps", "1"], "'max_steps' must be at least 2"),
    ],
)
def test_a_mistake_is_one_line(main, capfd, tmp_path, root, flags, said):
    config = root / "configs/distributed/model_parallel/quickstart.yaml"
    with pytest.raises(SystemExit):
        main("distributed/model_parallel")(["--config", str(config), "--runs_dir", str(tmp_path), *flags])
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    assert not any(tmp_path.iterdir())
