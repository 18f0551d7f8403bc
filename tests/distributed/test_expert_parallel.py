"""GShard's layer: the gating token by token, the layer expert by expert, and two processes against none."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from recipes.core import UserError
from recipes.distributed import expert_report, expert_training
from recipes.distributed.expert_parallel import ExpertParallelConfig
from recipes.distributed.experts import MixtureOfExperts, capacity_of, top_2_gating
from recipes.distributed.processes import spawn
from recipes.distributed.text_bytes import byte_stream

SMALL = ExpertParallelConfig(
    processes=[1, 2],
    context=3,
    hidden_size=8,
    intermediate_size=12,
    num_experts=4,
    groups=2,
    group_size=20,
    max_steps=3,
    seed=7,
)


def algorithm_1(gates: list[list[float]], capacity: int, draws: list[float]) -> tuple[dict, float, list[int]]:
    """The paper's two loops over the tokens of one group: weights by (token, expert, place), l_aux, demand."""
    tokens, experts = len(gates), len(gates[0])
    taken = [0] * experts
    combine = {}
    order = [sorted(range(experts), key=row.__getitem__, reverse=True) for row in gates]
    for s, row in enumerate(gates):
        e1, e2 = order[s][:2]
        if taken[e1] < capacity:
            combine[s, e1, taken[e1]] = row[e1] / (row[e1] + row[e2])
        taken[e1] += 1
    demand = list(taken)
    loss = sum(demand[e] / tokens * sum(row[e] for row in gates) / tokens for e in range(experts)) / experts
    for s, row in enumerate(gates):
        e1, e2 = order[s][:2]
        weight = row[e2] / (row[e1] + row[e2])
        if taken[e2] < capacity and 2 * weight > draws[s]:
            combine[s, e2, taken[e2]] = weight
        taken[e2] += 1
    return combine, loss, demand


@pytest.mark.parametrize("capacity", [1, 3, 6, 40])
def test_the_gating_is_algorithm_1_token_by_token(capacity):
    torch.manual_seed(capacity)
    logits, draws = torch.randn(3, 20, 5).double() * 2, torch.rand(3, 20)
    routing = top_2_gating(logits, capacity, draws)
    losses = []
    for group in range(3):
        gates = logits[group].float().softmax(dim=-1).tolist()
        combine, loss, demand = algorithm_1(gates, capacity, draws[group].tolist())
        expected = torch.zeros(20, 5, capacity)
        for place, weight in combine.items():
            expected[place] = weight
        torch.testing.assert_close(routing.combine[group], expected)
        assert routing.demand[group].tolist() == demand
        assert routing.overflowed[group].tolist() == [all(s != place[0] for place in combine) for s in range(20)]
        losses.append(loss)
    assert routing.auxiliary_loss.item() == pytest.approx(sum(losses) / 3)


def test_a_second_expert_is_asked_as_often_as_twice_its_weight():
    gates = torch.tensor([0.6, 0.3, 0.1])  # the second one's weight is 0.3 / 0.9
    routing = top_2_gating(gates.log().expand(500, 50, 3), 50, torch.rand(500, 50))
    assert (routing.combine[:, :, 1].sum(dim=-1) > 0).float().mean().item() == pytest.approx(2 / 3, abs=0.02)


def test_the_auxiliary_loss_is_smallest_for_an_even_load_and_draws_towards_it():
    even = top_2_gating(20 * torch.eye(4).repeat(5, 1)[None], 10, torch.zeros(1, 20))
    assert even.auxiliary_loss.item() == pytest.approx(1 / 16)
    assert top_2_gating(torch.tensor([20.0, 0, 0, 0]).expand(1, 20, 4), 10, torch.zeros(1, 20)).auxiliary_loss > 3 / 16
    logits = torch.tensor([1.0, 0, 0, 0]).repeat(1, 20, 1).requires_grad_()
    top_2_gating(logits, 10, torch.zeros(1, 20)).auxiliary_loss.backward()
    assert (logits.grad[..., 0] > 0).all() and (logits.grad[..., 1:] < 0).all()


def test_the_capacity_is_that_of_two_choices_a_token_times_the_factor():
    assert [capacity_of(256, 8, factor) for factor in (1, 0.5, 1.25)] == [64, 32, 80]
    assert capacity_of(10, 4, 1) == 5
    assert capacity_of(3, 8, 0.1) == 1


def test_the_layer_is_each_experts_answer_times_its_weight():
    torch.manual_seed(0)
    layer = MixtureOfExperts(width=6, hidden=10, experts=4, capacity_factor=0.6)
    x, draws = torch.randn(2, 12, 6), torch.rand(2, 12)
    found, routing = layer(x, draws)
    assert 0 < routing.overflowed.sum() < 24
    for g in range(2):
        for s in range(12):
            expected = sum(
                routing.combine[g, s, e].sum() * (x[g, s] @ layer.w_in[e]).relu() @ layer.w_out[e] for e in range(4)
            )
            torch.testing.assert_close(found[g, s], expected)


def test_two_processes_make_the_outputs_losses_and_gradients_of_none():
    """The reference is autograd on the whole model, without any group of processes."""
    job = replace(SMALL.job, capacity_factor=0.7)
    stream = torch.randint(256, (500,))
    steps = spawn(expert_training.first_step, 2, job, stream)

    torch.manual_seed(job.seed)
    model = expert_training.ByteModel(job)
    generator = torch.Generator().manual_seed(job.seed)
    starts = torch.randint(len(stream) - job.context, (2, 20), generator=generator)
    draws = torch.rand((2, 20), generator=generator)
    windows = torch.stack([torch.stack([stream[i : i + 4] for i in row]) for row in starts])
    logits, answered, routing = model(windows[..., :3], draws)
    loss = functional.cross_entropy(logits.reshape(-1, 256), windows[..., 3].reshape(-1))
    (loss + job.router_aux_loss_coef * routing.auxiliary_loss).backward()

    assert routing.overflowed.sum() > 0
    found = expert_report.whole(steps)
    torch.testing.assert_close(found["output"][""], answered)
    torch.testing.assert_close(found["loss"][""], loss)
    torch.testing.assert_close(found["auxiliary loss"][""], routing.auxiliary_loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found["gradients"][name], parameter.grad, msg=name)
    for step in steps:  # half of the experts on each, all else on both
        assert step["gradients"]["mixture.w_in"].shape == (2, 8, 12)
        assert step["parameter_bytes"] == 4 * sum(
            parameter.numel() // (2 if "w_" in name else 1) for name, parameter in model.named_parameters()
        )


def test_two_processes_train_as_one():
    stream = torch.randint(97, 105, (2000,))
    measured = (20, stream, stream, 2, [0.5, 2.0])
    one, two = (spawn(expert_training.train, count, SMALL.job, *measured) for count in (1, 2))
    assert one[0]["losses"] == pytest.approx(two[0]["losses"], abs=1e-4)
    assert two[0]["losses"][-1] < two[0]["losses"][0]
    for key in ("held_out_loss", "overflowed", "load", "overflow"):
        assert one[0][key] == pytest.approx(two[0][key], abs=1e-3)
        assert two[0][key] == two[1][key]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"processes": [2, 4]}, "'processes' must begin with 1"),
        ({"processes": [1]}, "'processes' must begin with 1"),
        ({"processes": [1, 0]}, "'processes' must begin with 1"),
        ({"processes": []}, "'processes' must begin with 1"),
        ({"num_experts": 1, "processes": [1, 1]}, "'num_experts' must be at least 2"),
        ({"num_experts": 6}, "'num_experts' must be a multiple of each of 'processes' [1, 2, 4]"),
        ({"groups": 3}, "'groups' must be a multiple of each of 'processes'"),
        ({"training_processes": 0}, "'training_processes' must be at least 1"),
        ({"training_processes": 3}, "'training_processes' 3"),
        ({"group_size": 0}, "'group_size' must be at least 1"),
        ({"capacity_factor": 0.0}, "must be above 0"),
        ({"capacity_factors": []}, "must be above 0"),
        ({"router_aux_loss_coef": 0.0}, "'router_aux_loss_coef' must be above 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings, words):
    with pytest.raises(UserError) as error:
        ExpertParallelConfig(**settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_text_is_bytes_and_too_little_of_it_is_said():
    assert byte_stream(["né", "a"], 5).tolist() == [110, 195, 169, 10, 10, 97]
    with pytest.raises(UserError, match=r"dataset_name: 1,000 bytes of text are needed and these rows have 3"):
        byte_stream(["abc"], 1000)


def test_experts_that_cannot_be_spread_evenly_are_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 3)
    with pytest.raises(ValueError, match="4 experts cannot be spread evenly over 3 processes"):
        MixtureOfExperts(4, 4, 4, 1.0).spread()
