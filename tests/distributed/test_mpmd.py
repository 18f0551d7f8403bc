"""Rollout and learner against one process that does both: the same samples, and so the same rewards."""

import pytest
import torch

from recipes.distributed import rollout_and_learner as mpmd
from recipes.distributed import timeline
from recipes.distributed.processes import spawn
from recipes.distributed.small_llama import SmallLlamaConfig

TINY = SmallLlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_length=6)
JOB = mpmd.Job(TINY, batch_size=8, max_steps=10, learning_rate=1e-2, cliprange=0.2)
SEED = 3


def one_process(job: mpmd.Job, behind: int) -> list[float]:
    """Mean reward of each update: generate both shares, learn from them together, with weights kept for `behind` updates."""
    model, optimizer = job.start(SEED)
    old = [{name: weight.clone() for name, weight in model.state_dict().items()}]
    generator, means = job.start(SEED)[0], []
    for update in range(job.max_steps):
        generator.load_state_dict(old[max(0, update - behind)])
        rows, drawn = map(torch.cat, zip(*(job.generate(generator, SEED, update, share) for share in range(2))))
        rewards = mpmd.reward(rows)
        means.append(rewards.mean().item())
        others = [torch.cat([rewards[:i], rewards[i + 1 :]]).mean() for i in range(len(rewards))]
        logprobs = model(input_ids=rows).logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
        advantages = (rewards - torch.stack(others))[:, None]
        ratio = (logprobs - drawn).exp()
        torch.maximum(-ratio * advantages, -ratio.clamp(0.8, 1.2) * advantages).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        old.append({name: weight.clone() for name, weight in model.state_dict().items()})
    return means


def work(rank: int) -> dict:
    model, _ = JOB.start(SEED)
    rows, drawn = JOB.generate(model, SEED, 0, 0)
    with torch.no_grad():
        again = model(input_ids=rows).logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    return {
        "forms": mpmd.compare(rank, JOB, [SEED], 2),
        "one process": [one_process(JOB, behind) for behind in (0, 2)],
        "rows": [rows, JOB.generate(model, SEED, 0, 0)[0], JOB.generate(model, SEED, 0, 1)[0]],
        "drawn": (drawn, again),
    }


@pytest.fixture(scope="module")
def ranks():
    return spawn(work, 2)


def test_every_form_earns_what_one_process_earns(ranks):
    in_turn, behind = ranks[0]["one process"]
    for rank in ranks:
        forms = {name: runs[0]["rewards"] for name, runs in rank["forms"].items()}
        assert forms["SPMD"] == pytest.approx(in_turn, abs=1e-6)
        assert forms["MPMD"] == pytest.approx(in_turn, abs=1e-6)
        assert forms["MPMD behind"] == pytest.approx(behind, abs=1e-6)
    assert in_turn != pytest.approx(behind, abs=1e-3), "older weights draw other samples"


def test_generation_is_decided_by_seed_update_and_share(ranks):
    first, again, other = ranks[0]["rows"]
    assert first.shape == (4, 6)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, ranks[1]["rows"][0])
    torch.testing.assert_close(*ranks[0]["drawn"])


def test_the_two_programs_take_turns_unless_the_weights_may_be_older(ranks):
    spans = {name: [rank["forms"][name][0]["timeline"] for rank in ranks] for name in ranks[0]["forms"]}
    assert [what for what, _, _ in spans["SPMD"][1]] == ["generate", "learn"] * JOB.max_steps
    for name in ("MPMD", "MPMD behind"):
        assert [{what for what, _, _ in both} for both in spans[name]] == [{"generate"}, {"learn"}]
    assert timeline.share_with_several(spans["MPMD"]) == 0
    assert timeline.share_with_several(spans["SPMD"]) > 0


def test_weights_and_rows_are_all_that_is_sent(ranks):
    count, rows = sum(weight.numel() for weight in TINY.build(0).parameters()), 8 * (6 * 8 + 5 * 4 + 4)
    for name, unused in (("MPMD", 1), ("MPMD behind", 3)):
        rollout, learner = (rank["forms"][name][0]["sent"] for rank in ranks)
        assert rollout == rows
        assert learner == pytest.approx(4 * count * (JOB.max_steps - unused) / JOB.max_steps)
    assert ranks[0]["forms"]["SPMD"][0]["sent"] == 4 * count + 8 * 4 / 2


def test_with_the_latest_weights_the_loss_has_the_gradient_of_reinforce():
    model = TINY.build(0)
    rows = torch.randint(0, 256, (8, 6), generator=torch.Generator().manual_seed(0))
    advantages = torch.randn(8, generator=torch.Generator().manual_seed(1))
    logprobs = model(input_ids=rows).logits[:, :-1].log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
    reinforce = torch.autograd.grad(-(logprobs * advantages[:, None]).mean(), list(model.parameters()))
    loss = JOB.loss(model, rows, logprobs.detach(), advantages)
    torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), reinforce, rtol=1e-4, atol=1e-7)


def test_a_ratio_out_of_range_has_no_gradient():
    model, rows = TINY.build(0), torch.randint(0, 256, (2, 6), generator=torch.Generator().manual_seed(0))
    JOB.loss(model, rows, torch.full((2, 5), -50.0), torch.ones(2)).backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_the_reward_and_its_baseline_worked_by_hand():
    rows = torch.tensor([list(b"?abZ "), list(b"aABCD"), list(b"?xyz{")])
    assert mpmd.reward(rows).tolist() == [0.5, 0.0, 0.75]
    assert mpmd.against_the_others(torch.tensor([1.0, 2.0, 6.0])).tolist() == pytest.approx([-3.0, -1.5, 4.5])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seeds", "[1]"], "'seeds' must be two or more different numbers"),
        (["--seeds", "[1, 1]"], "'seeds' must be two or more different numbers"),
        (["--batch_size", "5"], "'batch_size' must be an even number of at least 4"),
        (["--updates_behind", "0"], "'updates_behind' must be at least 1"),
        (["--max_steps", "9"], "'max_steps' must be at least 10"),
        (["--cliprange", "0"], "'cliprange' must be above 0"),
    ],
)
def test_a_mistake_is_one_line(main, capfd, tmp_path, root, flags, said):
    config = root / "configs/distributed/mpmd/quickstart.yaml"
    with pytest.raises(SystemExit):
        main("distributed/mpmd")(["--config", str(config), "--runs_dir", str(tmp_path), *flags])
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and "\n" not in error
    assert not any(tmp_path.iterdir())
