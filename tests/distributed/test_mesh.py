"""Meshes of four processes against plain training in this one; who holds what is worked out by hand."""

import pytest
import torch

from recipes.core import UserError
from recipes.distributed import mesh_report, mesh_step
from recipes.distributed.mesh import MeshConfig
from recipes.distributed.mesh_step import Holding, slice_of, train_on_meshes, train_whole
from recipes.distributed.processes import spawn

TASK = MeshConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.25,
    batch_size=4,
    max_length=6,
    micro_batches=2,
    max_steps=2,
    learning_rate=1e-2,
    seed=5,
)


def batches() -> torch.Tensor:
    return torch.randint(256, (2, 4, 6), generator=torch.Generator().manual_seed(1))


def plain_training() -> tuple[list[float], dict[str, torch.Tensor]]:
    """The library's model and loss and torch's optimizer, without anything of ours."""
    model = TASK.build(TASK.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TASK.learning_rate)
    losses, first = [], None
    for rows in batches():
        optimizer.zero_grad()
        loss = model(rows, labels=rows).loss
        loss.backward()
        first = first or {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return losses, first


def test_one_process_trains_as_the_library(monkeypatch):
    monkeypatch.setattr(mesh_step, "device", lambda: torch.device("cpu"))
    losses, gradients = plain_training()
    found, first = train_whole(0, TASK, batches())
    assert found == pytest.approx(losses, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(first[name], gradient)


@pytest.fixture(scope="module")
def four() -> tuple[list[float], dict[str, list[Holding]]]:
    """The losses of plain training, and each two-dimensional mesh's ranks after four processes went through both."""
    losses, gradients = plain_training()
    ranks = spawn(train_on_meshes, 4, TASK, [[2, 1, 2], [2, 2, 1]], batches(), gradients)
    return losses, dict(zip(("tensor", "pipeline"), map(list, zip(*ranks))))


def test_data_by_tensor_is_one_process(four):
    losses, ranks = four[0], four[1]["tensor"]
    assert [rank.place for rank in ranks] == [
        {"data": data, "pipeline": 0, "tensor": tensor} for data in range(2) for tensor in range(2)
    ]
    for rank in ranks:
        assert rank.losses == pytest.approx(losses, abs=1e-5)
        assert rank.gradient_deviation < 1e-5
        assert rank.layers == [0, 1]
        # Half of each layer's 2·16·16 + 2·16·8 + 3·16·24 weights; the whole ends and norms.
        assert rank.parameter_bytes == 4 * (2 * 1920 // 2 + 2 * 256 * 16 + 5 * 16)
    assert [rank.rows for rank in ranks] == [range(2), range(2), range(2, 4), range(2, 4)]
    assert [rank.heads for rank in ranks] == [range(2), range(2, 4)] * 2


def test_data_by_pipeline_is_one_process(four):
    losses, ranks = four[0], four[1]["pipeline"]
    for rank in ranks:
        last = rank.place["pipeline"] == 1
        assert rank.losses == (pytest.approx(losses, abs=1e-5) if last else [])
        assert rank.gradient_deviation < 1e-5
        assert rank.parameter_bytes == 4 * (1920 + 2 * 16 + 256 * 16 + (16 if last else 0))
    assert [rank.layers for rank in ranks] == [[0], [1]] * 2
    assert [rank.rows for rank in ranks] == [range(2), range(2), range(2, 4), range(2, 4)]
    assert all(rank.heads == range(4) for rank in ranks)


@pytest.mark.slow
def test_all_three_at_once_are_one_process():
    losses, gradients = plain_training()
    ranks = [rank for [rank] in spawn(train_on_meshes, 8, TASK, [[2, 2, 2]], batches(), gradients)]
    [row] = mesh_report.figures(losses, [([2, 2, 2], ranks)])
    assert row["loss_deviation"] < 1e-5
    assert row["gradient_deviation"] < 1e-5
    held = {(rank.rows, tuple(rank.layers), rank.heads) for rank in ranks}
    assert len(held) == 8, "no two ranks hold the same"


def test_the_figures_see_a_loss_and_a_gradient_that_are_off():
    place = {"data": 0, "pipeline": 0, "tensor": 0}
    ranks = [
        Holding(place, range(2), [0], range(4), 2**20, losses, gradient)
        for losses, gradient in (([], 0.1), ([3.0, 2.5], 0.2))
    ]
    [row] = mesh_report.figures([3.0, 2.0], [([1, 2, 1], ranks)])
    assert row == {
        "mesh": "2 pipeline",
        "processes": 2,
        "loss_deviation": 0.5,
        "gradient_deviation": 0.2,
        "parameters_mib": 1.0,
    }
    assert "| 0 | 0–1 | 0 | 0–3 | 1.00 |" in mesh_report.table([row], [([1, 2, 1], ranks)])


def test_slices_put_together_are_the_whole():
    weight = torch.arange(24.0).view(4, 6)
    for name, dim in (("model.layers.0.mlp.up_proj.weight", 0), ("model.layers.0.mlp.down_proj.weight", 1)):
        slices = [slice_of(name, weight, index, 2) for index in range(2)]
        assert torch.equal(torch.cat(slices, dim), weight)
    assert torch.equal(slice_of("model.norm.weight", weight, 1, 2), weight)


def test_a_mesh_is_named_by_its_axes():
    assert mesh_report.describe([2, 1, 4]) == "2 data × 4 tensor"
    assert mesh_report.describe([1, 1, 1]) == "1 process"
    assert mesh_step.AXES == ("data", "pipeline", "tensor")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"meshes": []}, "'meshes' must name lengths [data, pipeline, tensor]"),
        ({"meshes": [[2, 2]]}, "'meshes' must name lengths [data, pipeline, tensor]"),
        ({"meshes": [[2, 0, 1]]}, "'meshes' must name lengths [data, pipeline, tensor]"),
        ({"meshes": [[3, 1, 1]]}, "'batch_size' must be a multiple of 6"),
        ({"meshes": [[1, 3, 1]]}, "'num_hidden_layers' must be a multiple of the mesh's 3 stages"),
        ({"meshes": [[1, 4, 1]]}, "'micro_batches' must be at least the mesh's 4 stages"),
        ({"meshes": [[1, 1, 3]]}, "'num_key_value_heads' must be a multiple of the mesh's 3 tensor slices"),
        ({"intermediate_size": 99}, "'intermediate_size' must be a multiple of the mesh's 2 tensor slices"),
        ({"micro_batches": 0}, "'micro_batches' must be at least 1"),
        ({"max_steps": 0}, "'max_steps' must be at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_said_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        MeshConfig(**settings)
    assert words in str(error.value)
