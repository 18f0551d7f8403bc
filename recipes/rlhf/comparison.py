"""Figures by which policies are compared: scores, wins with an interval, KL, and best-of-n."""

import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.rlhf.ppo_rewards import check_positions, checked, retokenize, same_tokenizer
from recipes.rlhf.ppo_values import ScalarModel
from recipes.rlhf.rewards import Reward
from recipes.rlhf.sampling import BATCH, Answers, log_probability, sample

RESAMPLES = 10_000
GIVEN = ("prompt", "completion", "completion_ids")  # a reward function's own arguments, beside the data's columns


@torch.inference_mode()
def score(rows: dict[str, list], answers: Answers, judge: Reward, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """What a reward model or function gives each answer, float64 [N].

    Args:
        rows: columns of N rows, one of them `prompt`; a function sees the others too.
        tokenizer: the policy's, in whose tokens the answers are.
    """
    prompts = rows["prompt"]
    chat = isinstance(prompts[0], list)
    completions = [[{"role": "assistant", "content": text}] if chat else text for text in answers.texts]
    if judge.tokenizer is None:
        columns = {name: column for name, column in rows.items() if name not in GIVEN}
        responses = zip(answers.tokens["response_ids"], answers.tokens["response_mask"].bool())
        completion_ids = [ids[real].tolist() for ids, real in responses]
        given = judge.func(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        return checked(given, judge.name, len(prompts)).double().numpy()
    if same_tokenizer(judge.tokenizer, tokenizer):
        tokens = answers.tokens
        ids = torch.cat([tokens["prompt_ids"], tokens["response_ids"]], dim=1)
        mask = torch.cat([tokens["prompt_mask"], tokens["response_mask"]], dim=1)
    else:
        ids, mask = retokenize(prompts, completions, answers.ended.tolist(), judge.tokenizer)
    check_positions(judge.func, int(mask.sum(dim=1).max()))
    model, device = ScalarModel(judge.func), judge.func.device
    parts = [model(some.to(device), real.to(device)) for some, real in zip(ids.split(BATCH), mask.split(BATCH))]
    return torch.cat(parts).double().cpu().numpy()


def win_rate(scores: np.ndarray, against: np.ndarray) -> dict[str, float]:
    """Share of prompts won, a tie counting half, with the 95 % interval of a bootstrap over prompts.

    Args:
        scores, against: what one judge gives two policies' answers to the same prompts, [N].
    """
    outcome = (scores > against) + 0.5 * (scores == against)
    draws = np.random.default_rng(0).integers(len(outcome), size=(RESAMPLES, len(outcome)))
    low, high = np.percentile(outcome[draws].mean(axis=1), [2.5, 97.5])
    return {"win_rate": float(outcome.mean()), "low": float(low), "high": float(high)}


def summary(columns: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, Any]:
    """Means over the prompts, the share of perfect gold scores, and wins against the reference by the gold judge."""
    means = {name: float(np.mean(values)) for name, values in columns.items()}
    if "kl" in columns:
        means["kl_standard_error"] = float(np.std(columns["kl"]) / math.sqrt(len(columns["kl"])))
    return means | win_rate(columns["gold_score"], reference["gold_score"])


def kl_of_samples(
    policy: PreTrainedModel, reference: PreTrainedModel, answers: Answers, temperature: float
) -> np.ndarray:
    """log π(answer) − log π_ref(answer) in nats of each answer that π gave, [N]; its mean estimates KL(π ‖ π_ref)."""
    temperature = temperature or 1.0  # greedy answers have no distribution of their own; the model's is taken
    ratio = log_probability(policy, answers, temperature) - log_probability(reference, answers, temperature)
    return ratio.double().cpu().numpy()


def best_of_n(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    judges: dict[str, Reward],
    sizes: list[int],
    response_length: int,
    temperature: float,
    seed: int,
) -> tuple[list[dict[str, float]], dict[str, np.ndarray], list[str]]:
    """The policy's answer with the highest reward among n samples, for each n.

    Returns:
        A point for each n (mean reward, mean gold score, KL = log n − (n − 1)/n, which bounds it from above), and the
        columns and texts for the largest n.
    """
    columns = rows[:]
    texts, lengths, ended, scores = [], [], [], {name: [] for name in judges}
    for draw in range(max(sizes)):
        answers = sample(policy, tokenizer, columns["prompt"], response_length, temperature, seed + 1 + draw)
        texts.append(answers.texts)
        lengths.append(answers.lengths.cpu().numpy())
        ended.append(answers.ended.cpu().numpy())
        for name, judge in judges.items():
            scores[name].append(score(columns, answers, judge, tokenizer))
    table = {name: np.stack(column) for name, column in scores.items()} | {
        "response_length": np.stack(lengths),
        "eos_share": np.stack(ended),
    }
    prompts = np.arange(len(rows))
    points = []
    for n in sorted(sizes):
        best = table["reward"][:n].argmax(axis=0)
        chosen = {name: column[best, prompts] for name, column in table.items()}
        points.append(
            {"n": n, "kl": math.log(n) - (n - 1) / n, **{name: float(chosen[name].mean()) for name in judges}}
        )
    return points, chosen, [texts[draw][prompt] for prompt, draw in enumerate(best)]
