"""Split linear layers and LLaMAs against plain autograd without any processes, and the counted bytes by hand."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from recipes.core import UserError
from recipes.distributed import tensor_report, tensor_step
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaTask
from recipes.distributed.split_linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    SumGradients,
    join,
    share_of,
)
from recipes.distributed.tensor_parallel import TensorParallelConfig
from recipes.distributed.traffic import Traffic, ring_bytes

TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.25,
    "batch_size": 2,
    "max_length": 6,
}


def two_layers() -> tuple[nn.Linear, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(6, 8), nn.Linear(8, 5), torch.randn(3, 6, requires_grad=True)


def linear_worker(rank: int) -> dict:
    """Columns, ReLU, rows; then one more all-reduce."""
    up, down, x = two_layers()
    columns, rows = ColumnParallelLinear(up), RowParallelLinear(down)
    with Traffic() as traffic:
        y = rows(columns(SumGradients.apply(x, None)).relu())
        y.square().sum().backward()
        dist.all_reduce(torch.zeros(10))
    found = {"y": y.detach(), "x": x.grad, "calls": dict(traffic.calls), "messages": dict(traffic.messages)}
    for name, layer in (("columns", columns), ("rows", rows)):
        found |= {f"{name}.{key}": parameter.grad for key, parameter in layer.named_parameters()}
    return found


def test_columns_and_rows_with_biases_are_the_two_layers():
    up, down, x = two_layers()
    y = down(up(x).relu())
    y.square().sum().backward()
    ranks = spawn(linear_worker, 2)
    for found in ranks:
        torch.testing.assert_close(found["y"], y.detach())
        torch.testing.assert_close(found["x"], x.grad)
        torch.testing.assert_close(found["rows.bias"], down.bias.grad)
        assert found["calls"] == {"all-reduce": 3}
        assert found["messages"] == {"all-reduce": 4 * (3 * 5 + 3 * 6 + 10)}
    for name, whole, dim in (
        ("columns.weight", up.weight, 0),
        ("columns.bias", up.bias, 0),
        ("rows.weight", down.weight, 1),
    ):
        torch.testing.assert_close(torch.cat([found[name] for found in ranks], dim), whole.grad)


def test_two_processes_find_the_logits_and_gradients_of_none_by_either_plan(tmp_path):
    """The reference is the LLaMA itself, in this process."""
    task = SmallLlamaTask(**TINY, seed=3)
    model, rows = task.build(task.seed), torch.randint(256, (2, 6), generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    output = model(rows, labels=rows)
    output.loss.backward()
    ranks = spawn(tensor_step.step, 2, str(tmp_path), rows)

    for plan in (tensor_step.BY_HAND, tensor_step.BY_LIBRARY):
        for rank in ranks:
            torch.testing.assert_close(rank[plan]["loss"], output.loss.detach(), atol=1e-5, rtol=0)
            torch.testing.assert_close(rank[plan]["logits"], output.logits.detach(), atol=1e-5, rtol=1e-5)
        for name, parameter in model.named_parameters():
            slices = [rank[plan]["gradients"][name] for rank in ranks]
            found = join(name, slices) if plan == tensor_step.BY_HAND else slices[1]
            torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-5, msg=f"{plan}: {name}")

    # In numbers: a layer's 2·16·16 + 2·16·8 + 3·16·24 weights are halved; 2·256·16 of the ends; norms of 16.
    assert ranks[0][tensor_step.BY_HAND]["parameter_bytes"] == 4 * (2 * 1920 // 2 + 8192 + 5 * 16)
    assert ranks[0][tensor_step.BY_LIBRARY]["parameter_bytes"] == 4 * (2 * 1920 // 2 + 8192 // 2 + 5 * 16)
    assert ranks[0][tensor_step.BY_HAND]["calls"] == {"all-reduce": 8}
    assert ranks[0][tensor_step.BY_HAND]["sent_bytes"] == 8 * (4 * 2 * 6 * 16)  # 2·(p-1)/p is 1
    for plan in (tensor_step.BY_HAND, tensor_step.BY_LIBRARY):
        for rank in ranks:
            assert rank[plan]["parameter_bytes"] == tensor_step.parameter_formula(task, plan, 2)
            assert rank[plan]["sent_bytes"] == tensor_step.traffic_formula(task, plan, 2)

    worlds = {1: [copy.deepcopy(ranks[0])], 2: ranks}
    for plan in worlds[1][0]:
        worlds[1][0][plan] |= {"gradients": {name: p.grad for name, p in model.named_parameters()}, "calls": {}}
    figures = tensor_report.figures(task, worlds)
    assert max(row["gradients_deviation"] for row in figures) < 1e-5
    worlds[2][1][tensor_step.BY_HAND]["gradients"]["model.layers.1.mlp.down_proj.weight"] += 1.0
    assert tensor_report.summary(tensor_report.figures(task, worlds))["gradients_deviation"] > 1


def test_the_bytes_of_a_ring():
    """By going round it: p parts, each sent on p - 1 times to sum and p - 1 times to share."""
    for processes in (1, 2, 4, 8):
        steps = 2 * (processes - 1)
        assert ring_bytes("all-reduce", 800, processes) == steps * 800 / processes
        assert ring_bytes("all-gather", 100, processes) == (processes - 1) * 100


def test_a_collective_that_nobody_counts_is_not_passed_over(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.raises(NotImplementedError, match="c10d::broadcast_"), Traffic():
            dist.broadcast(torch.zeros(1), 0)
    finally:
        dist.destroy_process_group()


def test_slices_that_would_not_be_equal_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    with pytest.raises(ValueError, match=r"a weight of \(3, 2\) has no 2 equal slices in dimension 0"):
        share_of(torch.zeros(3, 2), 0, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"processes": [2]}, "'processes' must begin with 1"),
        ({"processes": [1, 3]}, "'num_key_value_heads' must be a multiple of each of 'processes' [1, 3], not 4"),
        ({"intermediate_size": 702}, "'intermediate_size' must be a multiple of each of 'processes'"),
        ({"num_attention_heads": 6}, "'num_attention_heads' must be a multiple of 'num_key_value_heads' 4, not 6"),
        ({"hidden_size": 40}, "'hidden_size' must be a multiple of twice 'num_attention_heads' 8"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' must be at least 1"),
        ({"max_length": 1}, "'max_length' must be at least 2"),
    ],
)
def test_a_model_that_cannot_be_split_is_said_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        TensorParallelConfig(**{"num_attention_heads": 8, "num_key_value_heads": 4} | settings)
    assert words in str(error.value)


def test_fewer_gpus_than_processes_are_said_before_the_plan_fails(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    tensor_report.check_gpus([1, 2])
    with pytest.raises(UserError, match="set 'processes' to at most 2, or hide the GPUs"):
        tensor_report.check_gpus([1, 2, 4])
