"""PPO's formulas against numpy, brute force and numbers worked by hand."""

import numpy as np
import pytest
import torch

from recipes.rlhf import ppo_math

LENGTHS = [7, 1, 4, 6]


@pytest.fixture
def mask():
    return (torch.arange(7) < torch.tensor(LENGTHS).unsqueeze(1)).long()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- sampling and masks ----


def test_inverse_cdf_draws_each_token_with_its_probability():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -torch.inf])
    uniforms = (torch.arange(20000) + 0.5) / 20000
    tokens = ppo_math.inverse_cdf_sample(logits.softmax(-1).expand(20000, -1), uniforms)
    shares = torch.bincount(tokens, minlength=5) / 20000
    torch.testing.assert_close(shares, logits.softmax(-1), atol=1e-4, rtol=0)


def test_inverse_cdf_draws_no_impossible_token_at_the_ends():
    shares = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    assert ppo_math.inverse_cdf_sample(shares, torch.tensor([0.0])).item() == 1
    assert ppo_math.inverse_cdf_sample(shares, torch.tensor([1 - 2**-23])).item() == 3


def test_inverse_cdf_of_a_row_does_not_depend_on_the_other_rows():
    shares, uniforms = normal(6, 50).softmax(-1), torch.linspace(0.05, 0.95, 6)
    together = ppo_math.inverse_cdf_sample(shares, uniforms)
    alone = torch.cat([ppo_math.inverse_cdf_sample(shares[i : i + 1], uniforms[i : i + 1]) for i in range(6)])
    assert torch.equal(together, alone)


def test_response_mask_ends_with_the_first_stop_token():
    tokens = torch.tensor([[5, 2, 2, 7], [2, 5, 5, 5], [5, 6, 7, 8]])
    expected = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    assert torch.equal(ppo_math.response_mask(tokens, stop_token_id=2), expected)
    assert torch.equal(ppo_math.response_mask(tokens, stop_token_id=None), torch.ones_like(tokens))


def test_last_real_token_whatever_the_side_of_the_padding():
    masks = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0]])
    assert ppo_math.last_real_token(masks).tolist() == [2, 4, 3, 0]


# ---- log-probabilities ----


def test_token_logprobs_and_entropy_equal_torchs():
    logits, tokens = normal(3, 5, 11), torch.arange(15).view(3, 5) % 11
    distribution = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(ppo_math.token_logprobs(logits, tokens), distribution.log_prob(tokens))
    torch.testing.assert_close(ppo_math.token_entropy(logits), distribution.entropy())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_have_the_true_kl_as_their_mean(estimator):
    policy, reference = normal(40, seed=1).log_softmax(-1), normal(40, seed=2).log_softmax(-1)
    estimate = ppo_math.kl_penalty(policy, reference, estimator)
    true_kl = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * estimate).sum(), true_kl)
    assert (estimate.min() >= 0) == (estimator == "k3")
    assert torch.equal(ppo_math.kl_penalty(policy, policy, estimator), torch.zeros(40))


# ---- statistics over real tokens ----


def test_whitening_is_over_real_tokens_only(mask):
    values = normal(4, 7)
    real = values[mask.bool()].numpy()
    whitened = ppo_math.masked_whiten(values, mask)
    np.testing.assert_allclose(whitened[mask.bool()], (real - real.mean()) / real.std(ddof=1), atol=1e-6)
    assert whitened[mask == 0].eq(0).all()
    kept = ppo_math.masked_whiten(values, mask, shift_mean=False)[mask.bool()]
    np.testing.assert_allclose(kept, (real - real.mean()) / real.std(ddof=1) + real.mean(), atol=1e-6)


def test_padding_changes_no_statistic(mask):
    values, garbage = normal(4, 7), normal(4, 7, seed=5) * 1e3
    padded = torch.where(mask.bool(), values, garbage)
    assert torch.equal(ppo_math.masked_mean(values, mask), ppo_math.masked_mean(padded, mask))
    torch.testing.assert_close(ppo_math.masked_whiten(values, mask), ppo_math.masked_whiten(padded, mask))


def test_whitening_a_single_token_is_finite():
    assert ppo_math.masked_whiten(torch.ones(1, 1), torch.ones(1, 1)).isfinite().all()


def test_explained_variance(mask):
    returns = normal(4, 7)
    assert ppo_math.explained_variance(returns, returns, mask).item() == 1
    assert ppo_math.explained_variance(torch.full_like(returns, 3.0), returns, mask).item() == pytest.approx(
        0, abs=1e-6
    )


# ---- rewards and advantages ----


def test_token_rewards_worked_by_hand():
    kl = torch.tensor([[1.0, 2.0, 9.0], [0.5, 0.5, 0.5]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    rewards = ppo_math.token_rewards(torch.tensor([10.0, -1.0]), kl, mask, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 9.8, 0.0], [-0.05, -0.05, -1.05]]))


def brute_force_gae(rewards, values, lengths, gamma, lam):
    """Eq. 16 of arXiv 1506.02438 as the double sum it is written as."""
    advantages = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        following = np.append(values[row, 1:length], 0.0)
        delta = rewards[row, :length] + gamma * following - values[row, :length]
        for t in range(length):
            advantages[row, t] = sum((gamma * lam) ** (i - t) * delta[i] for i in range(t, length))
    return advantages


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_double_sum(mask, gamma, lam):
    rewards, values = normal(4, 7), normal(4, 7, seed=3)
    advantages, returns = ppo_math.gae(rewards, values, mask, gamma, lam)
    expected = brute_force_gae(rewards.numpy(), values.numpy(), LENGTHS, gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    torch.testing.assert_close(returns, (advantages + values) * mask)
    assert advantages[mask == 0].eq(0).all()


def test_gae_without_discount_is_what_is_left_to_collect_minus_the_value(mask):
    rewards, values = normal(4, 7), normal(4, 7, seed=3)
    _, returns = ppo_math.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    left = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, left)


def test_gae_does_not_see_the_padding(mask):
    rewards, values, garbage = normal(4, 7), normal(4, 7, seed=3), torch.full((4, 7), 1e4)
    advantages, _ = ppo_math.gae(rewards, values, mask, 0.9, 0.9)
    padded, _ = ppo_math.gae(
        torch.where(mask.bool(), rewards, garbage), torch.where(mask.bool(), values, garbage), mask, 0.9, 0.9
    )
    assert torch.equal(advantages, padded)


# ---- losses ----


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.1, 2.0, -2.2, False),
        (1.5, 2.0, -2.4, True),  # a gain beyond the range does not count
        (0.5, 2.0, -1.0, False),  # a loss does
        (0.5, -2.0, 1.6, True),
        (1.5, -2.0, 3.0, False),
    ],
)
def test_policy_loss_worked_by_hand(ratio, advantage, loss, clipped):
    result, ratios, where = ppo_math.policy_loss(
        torch.tensor([[ratio]]).log(), torch.zeros(1, 1), torch.tensor([[advantage]]), cliprange=0.2
    )
    assert result.item() == pytest.approx(loss, abs=1e-6)
    assert ratios.item() == pytest.approx(ratio)
    assert where.item() == clipped


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped"),
    [(1.1, 1.0, 2.0, 0.405, False), (1.9, 1.0, 2.0, 0.32, True), (0.0, 1.0, 2.0, 2.0, False)],
)
def test_value_loss_worked_by_hand(value, old, target, loss, clipped):
    result, where = ppo_math.value_loss(
        torch.tensor([[value]]), torch.tensor([[old]]), torch.tensor([[target]]), cliprange_value=0.2
    )
    assert result.item() == pytest.approx(loss, abs=1e-6)
    assert where.item() == clipped


def test_a_clipped_token_has_no_gradient():
    logprobs = torch.tensor([[0.5, 0.0]], requires_grad=True)
    loss, _, _ = ppo_math.policy_loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2), cliprange=0.2)
    loss.sum().backward()
    assert logprobs.grad.tolist() == [[0.0, -1.0]]


def test_adapted_kl_coef_moves_towards_the_target_and_at_most_a_fifth_per_horizon():
    def adapt(kl):
        return ppo_math.adapted_kl_coef(0.1, kl, target=6.0, episodes=500, horizon=1000)

    assert adapt(6.0) == 0.1
    assert adapt(6.6) == pytest.approx(0.1 * 1.05)
    assert adapt(600.0) == pytest.approx(0.1 * 1.1)
    assert adapt(0.0) == pytest.approx(0.1 * 0.9)


# ---- the whole of TRL 1.12's arithmetic, written again in numpy ----


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_full_length_responses_give_the_numbers_of_trl(estimator, whiten_rewards):
    """Where no response ends early, TRL's positions and ours are the same ones."""
    kl_coef, gamma, lam, clip, clip_value = 0.07, 0.97, 0.9, 0.2, 0.15
    old, ref, new = (-normal(5, 6, seed=seed).abs() for seed in (1, 2, 3))
    values, new_values, scores = normal(5, 6, seed=4), normal(5, 6, seed=5), normal(5, seed=6)
    mask = torch.ones(5, 6, dtype=torch.long)

    kl = ppo_math.kl_penalty(old, ref, estimator)
    rewards = ppo_math.token_rewards(scores, kl, mask, kl_coef)
    if whiten_rewards:
        rewards = ppo_math.masked_whiten(rewards, mask, shift_mean=False)
    advantages, returns = ppo_math.gae(rewards, values, mask, gamma, lam)
    advantages = ppo_math.masked_whiten(advantages, mask)
    policy, _, _ = ppo_math.policy_loss(new, old, advantages, clip)
    value, _ = ppo_math.value_loss(new_values, values, returns, clip_value)

    def whiten(x, shift):
        scaled = (x - x.mean()) / np.sqrt(x.var(ddof=1) + 1e-8)
        return scaled if shift else scaled + x.mean()

    o, r, n, v, nv = (x.double().numpy() for x in (old, ref, new, values, new_values))
    expected_kl = o - r if estimator == "k1" else np.exp(r - o) - 1 - (r - o)
    expected_rewards = -kl_coef * expected_kl
    expected_rewards[:, -1] += scores.double().numpy()
    if whiten_rewards:
        expected_rewards = whiten(expected_rewards, shift=False)
    raw = brute_force_gae(expected_rewards, v, [6] * 5, gamma, lam)
    expected_advantages, ratio = whiten(raw, shift=True), np.exp(n - o)
    expected_policy = np.maximum(
        -expected_advantages * ratio, -expected_advantages * np.clip(ratio, 1 - clip, 1 + clip)
    ).mean()
    clipped = np.clip(nv, v - clip_value, v + clip_value)
    expected_value = 0.5 * np.maximum((nv - (raw + v)) ** 2, (clipped - (raw + v)) ** 2).mean()

    np.testing.assert_allclose(rewards, expected_rewards, atol=1e-6)
    np.testing.assert_allclose(returns, raw + v, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(advantages, expected_advantages, atol=1e-6, rtol=1e-6)
    assert ppo_math.masked_mean(policy, mask).item() == pytest.approx(expected_policy, abs=1e-6)
    assert ppo_math.masked_mean(value, mask).item() == pytest.approx(expected_value, abs=1e-6)
