"""Stages against the whole LLaMA, schedules of two processes against none, and bubbles and live activations by hand."""

import pytest
import torch
from torch import nn

from recipes.core import UserError
from recipes.distributed import pipeline_step
from recipes.distributed.pipeline_parallel import PipelineParallelConfig
from recipes.distributed.pipeline_stage import LiveActivations, LlamaStage, Span, layers_of, next_byte_loss
from recipes.distributed.pipeline_step import (
    bubble,
    bubble_formula,
    figures,
    in_flight_formula,
    run_schedules,
    runs,
)
from recipes.distributed.processes import spawn

TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.25,
    "batch_size": 4,
    "max_length": 6,
    "stages": [2],
    "micro_batches": [1, 4],
    "seed": 3,
}


def batch() -> torch.Tensor:
    return torch.randint(256, (4, 6), generator=torch.Generator().manual_seed(0))


def test_stages_one_after_another_are_the_model_with_its_own_names():
    task, rows = PipelineParallelConfig(**TINY | {"num_hidden_layers": 6, "stages": [3]}), batch()
    model = task.build(task.seed)
    expected = model(rows, labels=rows)
    x, names = rows, []
    for stage in range(3):
        module = LlamaStage(model, stage, 3)
        x = module(x)
        names += [name for name, _ in module.named_parameters()]
    torch.testing.assert_close(x, expected.logits)
    torch.testing.assert_close(next_byte_loss(x, rows), expected.loss)
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_layers_are_dealt_out_in_order():
    assert [list(layers_of(stage, 2, 4)) for stage in range(2)] == [[0, 1], [2, 3]]
    assert [len(layers_of(stage, 3, 8)) for stage in range(3)] == [2, 3, 3]


def test_two_stages_find_the_loss_and_gradients_of_none_by_either_schedule():
    """The reference is the LLaMA itself, in this process; and the stages are watched on the way."""
    task, rows = PipelineParallelConfig(**TINY, forward_ms=40.0, repeats=2), batch()
    model = task.build(task.seed)
    loss = model(rows, labels=rows).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    ranks = spawn(run_schedules, 2, task, rows, gradients)
    found = figures(loss.detach(), {2: ranks})
    assert [(row["schedule"], row["micro_batches"]) for row in found] == [("GPipe", 1), ("GPipe", 4), ("1F1B", 4)]
    for row in found:
        assert row["loss_deviation"] < 1e-5
        assert row["gradient_deviation"] < 1e-5
        assert row["in_flight"] == row["in_flight_formula"]
        assert row["activations_over_one_micro_batch"] == pytest.approx(row["in_flight"], rel=0.1)
        assert row["bubble"] == pytest.approx(row["bubble_formula"], abs=0.15)  # other work is not shut out of a test
    one, four, alternating = found
    assert (four["in_flight"], alternating["in_flight"]) == (4, 2)
    assert ranks[1][2].in_flight == 1, "the last stage turns round at once"
    assert one["activations_mib"] > four["activations_mib"] / 2 > 0.4 * alternating["activations_mib"]
    for outcome in ranks[0]:
        assert len(outcome.spans) == 2
        for spans in outcome.spans:
            assert sorted(span.kind for span in spans) == ["backward"] * outcome.micro_batches + ["forward"] * (
                outcome.micro_batches
            )
            for span in spans:
                assert span.ended - span.began >= (0.04 if span.kind == "forward" else 0.08)

    [off, *_] = figures(loss.detach() + 1, {2: ranks})
    assert off["loss_deviation"] == pytest.approx(1, abs=1e-5)


def test_the_whole_step_is_that_of_the_library(monkeypatch):
    monkeypatch.setattr(pipeline_step, "device", lambda: torch.device("cpu"))
    task, rows = PipelineParallelConfig(**TINY), batch()
    model = task.build(task.seed)
    expected = model(rows, labels=rows).loss
    expected.backward()
    loss, gradients = pipeline_step.whole_step(0, task, rows)
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


def simulated(stages: int, micro_batches: int) -> list[list[Span]]:
    """GPipe with forwards of 1 s, backwards of 2 s and no time to send: when each can begin, worked out one by one."""
    ended: dict[tuple, float] = {}
    free = [0.0] * stages
    spans: list[list[Span]] = [[] for _ in range(stages)]

    def run(kind: str, micro_batch: int, stage: int, ready: float, seconds: float) -> None:
        began = max(free[stage], ready)
        free[stage] = ended[kind, micro_batch, stage] = began + seconds
        spans[stage].append(Span(kind, micro_batch, began, began + seconds))

    for micro_batch in range(micro_batches):
        for stage in range(stages):
            run("forward", micro_batch, stage, ended.get(("forward", micro_batch, stage - 1), 0.0), 1.0)
    for micro_batch in range(micro_batches):
        for stage in reversed(range(stages)):
            run("backward", micro_batch, stage, ended.get(("backward", micro_batch, stage + 1), 0.0), 2.0)
    return spans


@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("micro_batches", [1, 3, 8])
def test_the_bubble_of_a_simulated_pipeline_is_the_formula(stages, micro_batches):
    assert bubble(simulated(stages, micro_batches)) == pytest.approx(bubble_formula(stages, micro_batches))


def test_what_the_schedules_keep():
    assert [in_flight_formula("GPipe", 4, 8, stage) for stage in range(4)] == [8, 8, 8, 8]
    assert [in_flight_formula("1F1B", 4, 8, stage) for stage in range(4)] == [4, 3, 2, 1]
    assert in_flight_formula("1F1B", 4, 2) == 2
    assert [runs(name, 4, 2) for name in ("GPipe", "1F1B")] == [True, False]


def test_live_activations_are_what_autograd_keeps_until_it_lets_go():
    """x·W keeps x, sigmoid keeps its result, a product keeps both factors: 4 floats each, and W is a parameter."""
    layer = nn.Linear(4, 4, bias=False)
    activations = LiveActivations(layer)
    x = torch.randn(1, 4)
    with activations:
        gate = layer(x).sigmoid()
        y = gate * gate.cos()
    # x, gate (kept by three operators, counted once) and its cosine
    assert activations.bytes == activations.peak == 3 * 16
    y.sum().backward()
    assert activations.bytes == 0
    assert activations.peak == 3 * 16
    with activations:
        layer(x)  # let go of without a backward
    assert activations.bytes == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stages": []}, "'stages' must name lengths of at least 2"),
        ({"stages": [1]}, "'stages' must name lengths of at least 2"),
        ({"stages": [3]}, "'num_hidden_layers' must be a multiple of each of 'stages' [3], not 4"),
        ({"micro_batches": [0, 8]}, "'micro_batches' must name numbers of at least 1"),
        ({"micro_batches": [3]}, "'batch_size' must be a multiple of each of 'micro_batches' [3], not 8"),
        ({"micro_batches": [2]}, "'micro_batches' must name one of at least 4, the longest of 'stages'"),
        ({"forward_ms": 0.0}, "'forward_ms' must be above 0"),
        ({"repeats": 0}, "'repeats' must be at least 1"),
    ],
)
def test_a_pipeline_that_cannot_be_is_said_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        PipelineParallelConfig(**settings)
    assert words in str(error.value)
