"""The formulas of PPO for language models, as pure functions of tensors.

Shapes: B responses, R response positions (right-padded), V tokens in the vocabulary. `mask` [B, R] is 1 at the real
tokens of a response, its stop token included, and 0 at the padding after it.

Papers: Schulman et al. 2016, High-Dimensional Continuous Control Using Generalized Advantage Estimation,
        arXiv 1506.02438.
        Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv 1707.06347.
        Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593.
        Ye et al. 2020, Mastering Complex Control in MOBA Games with Deep Reinforcement Learning, arXiv 1912.09729.
        Schulman 2020, Approximating KL Divergence, http://joschu.net/blog/kl-approx.html.
        Huang et al. 2024, The N+ Implementation Details of RLHF with PPO, arXiv 2403.17031.
"""

import torch
from torch import Tensor


def inverse_cdf_sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draws one token from each row of `probabilities` [B, V] with a uniform number in [0, 1) [B]; returns tokens [B].

    One number decides a token, so that a sample is a function of its own numbers and of nothing else: not of the
    batch it is drawn in, nor of the padding, nor of how many processes share the work.
    """
    cdf = probabilities.cumsum(-1)
    target = uniforms.unsqueeze(-1) * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp(max=probabilities.size(-1) - 1)


def response_mask(tokens: Tensor, stop_token_id: int | None) -> Tensor:
    """1 up to and including the first stop token of each row, 0 after it: int64 [B, R], as are the tokens."""
    if stop_token_id is None:
        return torch.ones_like(tokens)
    stops = (tokens == stop_token_id).long()
    return (stops.cumsum(-1) - stops == 0).long()


def last_real_token(mask: Tensor) -> Tensor:
    """Index [B] of the last position of each row of `mask` [B, T] that is 1, whatever side the padding is on."""
    positions = torch.arange(mask.size(-1), device=mask.device)
    return (mask * positions).argmax(-1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits) [B, R, V] at the given tokens [B, R]; returns [B, R]."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) [B, R, V] in nats; returns [B, R]."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` over the real tokens; both [B, R], returns a scalar."""
    return (values * mask).sum() / mask.sum()


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scales `values` [B, R] to variance 1 over the real tokens, and to mean 0 unless `shift_mean` is off.

    Padding stays out of the statistics and comes back as 0. The variance is the unbiased one (Huang et al. 2024).
    """
    mean = masked_mean(values, mask)
    variance = ((values - mean) ** 2 * mask).sum() / (mask.sum() - 1).clamp(min=1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean) * mask


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from the sampled tokens; all [B, R] (Schulman 2020).

    `k1`, log p - log q, is unbiased and may be negative. `k3`, (q/p - 1) - log(q/p), is unbiased, never negative and
    of lower variance.
    """
    log_ratio = ref_logprobs - logprobs
    return -log_ratio if estimator == "k1" else torch.expm1(log_ratio) - log_ratio


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward of each token [B, R]: minus kl_coef times its KL [B, R], plus, at the last real token, the score [B].

    Ziegler et al. 2019, eq. 2.
    """
    rewards = -kl_coef * kl * mask
    return rewards.scatter_add(1, last_real_token(mask).unsqueeze(1), scores.unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; all [B, R]; returns (advantages, returns), 0 at the padding.

    A_t = sum_l (gamma lam)^l delta_(t+l) with delta_t = r_t + gamma V_(t+1) - V_t (Schulman et al. 2016, eq. 16). An
    episode ends with its last real token: the value of what would follow is 0.
    """
    values, rewards = values * mask, rewards * mask
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))
    for t in reversed(range(values.size(1))):
        next_values = values[:, t + 1] if t + 1 < values.size(1) else 0.0
        following = (rewards[:, t] + gamma * next_values - values[:, t]) + gamma * lam * following
        advantages[:, t] = following
    return advantages * mask, (advantages + values) * mask


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float, dual_clip: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped surrogate loss of each token; all [B, R]; returns (loss, ratio, where the clip decides).

    -min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange) A), Schulman et al. 2017, eq. 7. With `dual_clip` c the loss of
    a negative advantage is at most -c A, however large the ratio (Ye et al. 2020, eq. 5).
    """
    ratio = (logprobs - old_logprobs).exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss, decides = torch.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is not None:
        bound = -dual_clip * advantages
        decides = decides | ((advantages < 0) & (loss > bound))
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    return loss, ratio, decides


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> tuple[Tensor, Tensor]:
    """Clipped squared error of each token's value; all [B, R]; returns (loss, where the clip decides).

    0.5 max((V - R)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - R)^2), Huang et al. 2024.
    """
    clipped_values = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    unclipped, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """Share of the returns' variance that the values explain, over the real tokens: 1 is perfect, 0 a constant."""

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)


def joined_moments(moments: Tensor, values: Tensor) -> Tensor:
    """(count, mean, sum of squared deviations) of all values so far, float64 [3], with the given ones [B] added.

    Chan et al. 1983, Algorithms for Computing the Sample Variance, eq. 1.5.
    """
    count, mean, squares = moments
    values = values.double()
    added, shift = len(values), values.mean() - mean
    total = count + added
    squares = squares + ((values - values.mean()) ** 2).sum() + shift**2 * count * added / total
    return torch.stack([total, mean + shift * added / total, squares])


def normalized(values: Tensor, moments: Tensor) -> Tensor:
    """Values [B] less the mean, over the standard deviation, that `joined_moments` holds."""
    count, mean, squares = moments
    deviation = (squares / (count - 1).clamp(min=1)).sqrt().clamp(min=1e-8)
    return ((values - mean) / deviation).to(values.dtype)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: int) -> float:
    """The next KL coefficient of the proportional controller of Ziegler et al. 2019, section 2.2, in its code's form.

    `kl` is the rollout's mean KL per response, `episodes` the rollout's size; the coefficient can change by at most
    20 % over `horizon` episodes.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)
