"""The figures that policies are compared by: wins, KL, best-of-n, and that sampling does not depend on the batch."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import load_peft_weights
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from recipes.rlhf import sampling
from recipes.rlhf.comparison import best_of_n, kl_of_samples, score, win_rate
from recipes.rlhf.rewards import Reward, load_reward
from scripts.report import gap_closed

PROMPTS = [[{"role": "user", "content": text}] for text in ("one two", "three", "four five six seven", "yes")]


@pytest.fixture(scope="module")
def policy(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny / "model")


def length_of(prompts, completions, **columns):
    return [float(len(completion[-1]["content"])) for completion in completions]


def test_win_rate_counts_a_tie_as_half():
    outcome = win_rate(np.array([1.0, 0.0, 0.5, 0.5]), np.array([0.0, 1.0, 0.5, 0.5]))
    assert outcome["win_rate"] == 0.5
    assert outcome["low"] <= 0.5 <= outcome["high"]


def test_the_interval_of_the_win_rate_is_that_of_a_mean():
    rng = np.random.default_rng(1)
    wins = (rng.random(400) < 0.7).astype(float)
    outcome = win_rate(wins, np.full(400, 0.5))
    standard_error = math.sqrt(wins.var() / 400)
    assert outcome["low"] == pytest.approx(wins.mean() - 1.96 * standard_error, abs=0.006)
    assert outcome["high"] == pytest.approx(wins.mean() + 1.96 * standard_error, abs=0.006)


def test_an_answer_does_not_depend_on_its_batch(policy, tokenizer, monkeypatch):
    whole = sampling.sample(policy, tokenizer, PROMPTS, 8, 1.0, seed=3)
    monkeypatch.setattr(sampling, "BATCH", 1)
    assert sampling.sample(policy, tokenizer, PROMPTS, 8, 1.0, seed=3).texts == whole.texts
    assert sampling.sample(policy, tokenizer, PROMPTS, 8, 1.0, seed=4).texts != whole.texts


def test_the_log_probability_is_that_of_the_plain_model(policy, tokenizer):
    answers = sampling.sample(policy, tokenizer, PROMPTS, 8, 0.7, seed=0)
    found = sampling.log_probability(policy, answers, 0.7)
    for row in range(len(PROMPTS)):
        prompt = answers.tokens["prompt_ids"][row][answers.tokens["prompt_mask"][row].bool()]
        response = answers.tokens["response_ids"][row][answers.tokens["response_mask"][row].bool()]
        logits = policy(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        expected = logits.log_softmax(-1).gather(1, response[:, None]).sum()
        assert found[row].item() == pytest.approx(expected.item(), abs=1e-4)


def test_padding_may_be_a_token_that_the_other_policy_lacks(policy, tokenizer):
    answers = sampling.sample(policy, tokenizer, PROMPTS, 8, 0.7, seed=0)
    expected = sampling.log_probability(policy, answers, 0.7)
    for side in ("prompt", "response"):
        padding = answers.tokens[f"{side}_mask"] == 0
        answers.tokens[f"{side}_ids"] = answers.tokens[f"{side}_ids"].masked_fill(padding, policy.config.vocab_size)
    assert sampling.log_probability(policy, answers, 0.7).equal(expected)


def test_the_kl_of_a_policy_to_itself_is_zero(policy, tokenizer):
    answers = sampling.sample(policy, tokenizer, PROMPTS, 8, 1.0, seed=0)
    assert np.abs(kl_of_samples(policy, policy, answers, 1.0)).max() == 0


def test_best_of_n_never_loses_reward_as_n_grows(policy, tokenizer):
    rows = Dataset.from_dict({"prompt": PROMPTS})
    judges = {"reward": Reward("length_of", length_of), "gold_score": Reward("length_of", length_of)}
    points, columns, texts = best_of_n(policy, tokenizer, rows, judges, [1, 2, 4], 8, 1.0, seed=0)
    assert [point["n"] for point in points] == [1, 2, 4]
    assert points[0]["kl"] == 0
    assert points[2]["kl"] == pytest.approx(math.log(4) - 3 / 4)
    rewards = [point["reward"] for point in points]
    assert rewards == sorted(rewards) and rewards[2] > rewards[0]
    assert [len(text) for text in texts] == columns["reward"].tolist()


def test_a_function_sees_the_tokens_of_the_answers(policy, tokenizer):
    answers = sampling.sample(policy, tokenizer, PROMPTS, 8, 1.0, seed=0)

    def tokens_of(prompts, completions, completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    found = score({"prompt": PROMPTS}, answers, Reward("tokens", tokens_of), tokenizer)
    assert found.tolist() == answers.lengths.tolist()


def test_a_reward_model_that_is_an_adapter_opens_with_its_one_score(main, job, tmp_path):
    main("rlhf/reward")(
        job("rlhf/reward", tmp_path / "run", "--peft", "{method: lora, r: 2, target_modules: all-linear}")
    )
    loaded = load_reward(str(tmp_path / "run"))
    saved = load_peft_weights(str(tmp_path / "run"), device="cpu")
    assert loaded.func.config.num_labels == 1
    assert loaded.func.score.weight.equal(
        next(weight for key, weight in saved.items() if key.endswith("score.weight"))
    )


@pytest.mark.parametrize(("gold", "expected"), [({"sft": 0.5, "ppo": 0.8}, 0.6), ({"sft": -3.0, "ppo": 2.0}, None)])
def test_a_gap_is_closed_only_where_one_is_perfect(gold, expected):
    assert gap_closed({"gold_score": gold}) == (expected if expected is None else pytest.approx(expected))


def test_a_reward_model_scores_the_same_with_more_padding(policy, tokenizer, tiny):
    judge = Reward("scorer", AutoModelForSequenceClassification.from_pretrained(tiny / "scorer").eval(), tokenizer)
    answers = sampling.sample(policy, tokenizer, PROMPTS, 8, 1.0, seed=0)
    rows = {"prompt": PROMPTS}
    expected = score(rows, answers, judge, tokenizer)
    for side, amount in (("prompt", (3, 0)), ("response", (0, 5))):
        for kind, fill in (("ids", tokenizer.pad_token_id), ("mask", 0)):
            name = f"{side}_{kind}"
            answers.tokens[name] = torch.nn.functional.pad(answers.tokens[name], amount, value=fill)
    assert score(rows, answers, judge, tokenizer) == pytest.approx(expected, abs=1e-5)
