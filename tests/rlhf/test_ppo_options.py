"""What PPO can be told beyond its core: adapters in every role, PPO-ptx, bounds, early stops, normalised rewards."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from test_ppo_trainer import (
    assert_same,
    even_share,
    logs_of,
    make_config,
    make_model,
    make_prompts,
    make_reward_model,
    make_tokenizer,
    make_trainer,
    sample,
    weights_of,
)
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, set_seed

from recipes.core.errors import UserError
from recipes.rlhf import ppo_math
from recipes.rlhf.ppo_guards import preflight
from recipes.rlhf.ppo_values import VALUE_ADAPTER
from recipes.rlhf.trunk import adapter, on_device

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


def texts(count=12):
    return Dataset.from_list(
        [{"text": " ".join(f"w{(i * 7 + j) % 34}" for j in range(2 + i % 5))} for i in range(count)]
    )


# ---- one base, several adapters ----


@pytest.fixture
def base_and_reward(tmp_path):
    """A base on disk, and the folder of a reward model that is an adapter on it, with the scores it should give."""
    base = make_model()
    base.save_pretrained(tmp_path / "base")
    scorer = LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    set_seed(5)
    scorer = get_peft_model(scorer, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"))
    for name, parameter in scorer.named_parameters():
        if "lora_" in name or "score" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    scorer.save_pretrained(tmp_path / "reward")
    return tmp_path / "base", tmp_path / "reward", scorer.eval()


def adapter_trainer(path, base, reward_funcs=even_share, **options):
    arguments = {"peft_config": LORA, "value_model": "adapter"} | options.pop("arguments", {})
    policy = AutoModelForCausalLM.from_pretrained(base)
    return make_trainer(path, reward_funcs, model=policy, arguments=arguments, **options)


def test_a_reward_adapter_on_the_policys_base_scores_as_the_whole_model(tmp_path, base_and_reward):
    base, reward, scorer = base_and_reward
    trainer = adapter_trainer(tmp_path, base, str(reward))
    batch = sample(trainer, list(trainer.train_dataset.select(range(6))), range(6))
    for row in range(6):
        ids = [batch[f"{side}_ids"][row][batch[f"{side}_mask"][row].bool()] for side in ("prompt", "response")]
        expected = scorer(torch.cat(ids)[None]).logits[0, 0]
        torch.testing.assert_close(batch["scores"][row, 0], expected, atol=1e-5, rtol=0)


def test_the_value_adapter_starts_as_the_reward_adapter(tmp_path, base_and_reward):
    base, reward, scorer = base_and_reward
    trainer = adapter_trainer(tmp_path, base, str(reward))
    batch = sample(trainer, list(trainer.train_dataset.select(range(3))), range(3))
    response = batch["response_ids"][0][batch["response_mask"][0].bool()]
    prompt = batch["prompt_ids"][0][batch["prompt_mask"][0].bool()]
    before_the_last = torch.cat([prompt, response[:-1]])
    expected = scorer(before_the_last[None]).logits[0, 0]
    torch.testing.assert_close(batch["values"][0][len(response) - 1], expected, atol=1e-5, rtol=0)


def test_with_adapters_the_base_and_the_reward_stay_and_policy_and_value_learn(tmp_path, base_and_reward):
    base, reward, _ = base_and_reward
    trainer = adapter_trainer(tmp_path, base, str(reward), kl_coef=0.1)
    before = weights_of(trainer)
    trainer.train()
    after = weights_of(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".default." in name for name in changed)
    assert any(f".{VALUE_ADAPTER}." in name for name in changed)
    assert "value.weight" in changed
    learning = (".default.", f".{VALUE_ADAPTER}.", "value.weight")
    assert not [name for name in changed if "reward" in name or not any(part in name for part in learning)]


def test_the_reference_of_adapters_is_the_base(tmp_path, base_and_reward):
    base, reward, _ = base_and_reward
    trainer = adapter_trainer(tmp_path, base, str(reward), learning_rate=0.05)
    trainer.train()
    batch = sample(trainer, list(trainer.train_dataset.select(range(4))), range(4))
    plain = make_trainer(tmp_path / "plain", model=AutoModelForCausalLM.from_pretrained(base))
    sequence = {name: batch[name] for name in ("prompt_ids", "prompt_mask", "response_ids", "response_mask")}
    expected = plain.model(**sequence, temperature=0.9, with_value=False)["logprobs"]
    torch.testing.assert_close(batch["ref_logprobs"], expected, atol=1e-5, rtol=0)
    assert (batch["logprobs"] - batch["ref_logprobs"]).abs().max() > 1e-3


@pytest.mark.parametrize("step", [4, 6])
def test_a_run_with_adapters_resumes_exactly(tmp_path, base_and_reward, step):
    base, reward, _ = base_and_reward

    def run():
        return adapter_trainer(tmp_path, base, str(reward), max_steps=10, save_strategy="steps", save_steps=step)

    undisturbed, resumed = run(), run()
    undisturbed.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same(weights_of(undisturbed), weights_of(resumed))
    assert logs_of(undisturbed) == logs_of(resumed)


def test_the_saved_model_is_the_policys_adapter_alone(tmp_path, base_and_reward):
    base, reward, _ = base_and_reward
    trainer = adapter_trainer(tmp_path / "run", base, str(reward))
    trainer.train()
    trainer.save_model()
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "run").eval()
    ids = torch.tensor([[1, 7, 9, 20]])
    assert torch.allclose(opened(ids).logits, trainer.model.policy(ids).logits, atol=1e-6)
    assert set(trainer.model.policy.peft_config) == {"default", VALUE_ADAPTER, "reward_reward"}


def test_switching_adapters_changes_nothing_that_is_trained(tmp_path, base_and_reward):
    base, reward, _ = base_and_reward
    policy = adapter_trainer(tmp_path, base, str(reward)).model.policy
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    for name in (None, VALUE_ADAPTER):
        with adapter(policy, name):
            pass
    assert trained == [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[-2] for name in trained} == {"default", VALUE_ADAPTER}


def test_a_value_adapter_needs_an_adapter_on_the_policy(tmp_path):
    with pytest.raises(UserError, match="needs an adapter on the policy"):
        make_trainer(tmp_path, arguments={"value_model": "adapter"})


def test_an_adapter_that_cannot_be_switched_off_has_no_reference(tmp_path):
    config = LoraConfig(r=4, bias="all", target_modules=["q_proj"])
    with pytest.raises(UserError, match="cannot be switched off"):
        make_trainer(tmp_path, model=make_model(attention_bias=True), arguments={"peft_config": config})
    make_trainer(tmp_path, model=make_model(attention_bias=True), arguments={"peft_config": config}, kl_coef=0.0)


def test_a_reward_adapter_of_another_base_is_refused(tmp_path, base_and_reward):
    _, reward, _ = base_and_reward
    make_model(seed=3).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="train both on one base"):
        adapter_trainer(tmp_path, tmp_path / "other", str(reward))


# ---- PPO-ptx ----


def test_ptx_adds_the_language_modelling_loss(tmp_path):
    """In the first step both runs have one policy, so that their losses differ by that of the texts drawn."""
    plain, mixed = (
        make_trainer(
            tmp_path / str(coefficient),
            arguments={"ptx_dataset": texts()},
            ptx_coef=coefficient,
            max_steps=1,
            logging_steps=1,
        )
        for coefficient in (0.0, 2.0)
    )
    drawn, add = [], mixed._add_pretraining

    def spy(micro_batches):
        add(micro_batches)
        drawn.extend(micro_batches)

    mixed._add_pretraining = spy
    for trainer in (plain, mixed):
        trainer.train()
    model, nll, count = make_model(), 0.0, 0
    for micro_batch in drawn:
        rows = [micro_batch["ptx"][key] for key in ("prompt_ids", "response_ids", "response_mask")]
        for first, rest, mask in zip(*rows, strict=True):
            ids = torch.cat([first, rest[mask.bool()]])
            nll -= model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None]).sum().item()
            count += len(ids) - 1
    losses = [trainer.state.log_history[0]["loss"] for trainer in (plain, mixed)]
    assert losses[1] - losses[0] == pytest.approx(2.0 * nll / count, abs=1e-4)


def test_ptx_in_bf16_leaves_autocast_off(tmp_path):
    make_trainer(tmp_path, arguments={"ptx_dataset": texts()}, ptx_coef=1.0, bf16=True, max_steps=2).train()
    assert not torch.is_autocast_enabled("cpu")


def test_ptx_keeps_the_language_modelling_loss_lower(tmp_path):
    data = {"train": texts(24), "test": texts(24)}
    losses = []
    for coefficient in (0.0, 1.0):
        arguments = {"ptx_dataset": data, "eval_dataset": make_prompts(4)}
        trainer = make_trainer(
            tmp_path / str(coefficient), arguments=arguments, ptx_coef=coefficient, max_steps=24, learning_rate=3e-3
        )
        trainer.train()
        losses.append(trainer.evaluate()["eval_lm_loss"])
    assert losses[1] < losses[0] - 0.2


def test_the_held_out_loss_is_that_of_the_texts(tmp_path):
    arguments = {"ptx_dataset": {"train": texts(), "test": texts(9)}, "eval_dataset": make_prompts(4)}
    trainer = make_trainer(tmp_path, arguments=arguments, per_device_eval_batch_size=4)
    found = trainer.evaluate()["eval_lm_loss"]
    model, total, count = make_model(), 0.0, 0
    for text in texts(9)["text"]:
        ids = torch.tensor(make_tokenizer()(text)["input_ids"])
        total -= model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None]).sum().item()
        count += len(ids) - 1
    assert found == pytest.approx(total / count, abs=1e-5)


def test_ptx_without_texts_is_refused(tmp_path):
    with pytest.raises(UserError, match="give ptx_dataset"):
        make_trainer(tmp_path, ptx_coef=1.0)


# ---- rewards, clips and stops ----


def test_prompts_can_be_cut_to_their_openings(tmp_path):
    seen = []

    def reward(prompts, completions, **kwargs):
        seen.extend(prompts)
        return [0.0] * len(prompts)

    trainer = make_trainer(tmp_path, reward, prompt_length=3, max_steps=1)
    trainer.train()
    assert max(len(ids) for ids in trainer.train_dataset["prompt_ids"]) == 3
    assert max(len(prompt.replace("<s>", "").split()) for prompt in seen) == 2
    chat = Dataset.from_list([{"prompt": [{"role": "user", "content": "w1"}]}] * 16)
    with pytest.raises(UserError, match="prompt_length cuts plain text"):
        make_trainer(tmp_path, arguments={"train_dataset": chat}, prompt_length=3)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
    old, new = torch.zeros(1, 4), torch.tensor([[2.0, 2.0, -2.0, 0.1]])
    advantages = torch.tensor([[-1.0, 1.0, -1.0, -1.0]])
    plain, ratio, _ = ppo_math.policy_loss(new, old, advantages, 0.2)
    bounded, _, decides = ppo_math.policy_loss(new, old, advantages, 0.2, dual_clip=3.0)
    assert plain[0, 0].item() == pytest.approx(ratio[0, 0].item())  # 7.39, unbounded
    assert bounded[0].tolist() == pytest.approx([3.0, plain[0, 1].item(), plain[0, 2].item(), plain[0, 3].item()])
    assert decides[0, 0]


def test_joined_moments_are_those_of_all_values():
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3 + n for n in (5, 1, 8)]
    moments = torch.zeros(3, dtype=torch.float64)
    for part in parts:
        moments = ppo_math.joined_moments(moments, part)
    whole = torch.cat(parts).double()
    assert moments.tolist() == pytest.approx([14, whole.mean().item(), ((whole - whole.mean()) ** 2).sum().item()])
    expected = (parts[2].double() - whole.mean()) / whole.std()
    torch.testing.assert_close(ppo_math.normalized(parts[2], moments).double(), expected, atol=1e-5, rtol=0)


def test_normalized_rewards_do_not_depend_on_scale_and_shift(tmp_path):
    def scaled(**kwargs):
        return [100 * reward - 7 for reward in even_share(**kwargs)]

    runs = [make_trainer(tmp_path / f.__name__, f, normalize_rewards=True, max_steps=8) for f in (even_share, scaled)]
    for run in runs:
        run.train()
    assert_same(weights_of(runs[0]), weights_of(runs[1]), atol=1e-4)


def test_kl_stop_skips_the_steps_left_on_a_rollout(tmp_path):
    free, stopped = (
        make_trainer(tmp_path / str(limit), kl_stop=limit, learning_rate=0.02, max_steps=4) for limit in (1e9, 1e-9)
    )
    steps = {}
    for trainer in (free, stopped):
        trainer.train()
        steps[trainer] = logs_of(trainer)[-1]["steps_taken"]
    assert steps[free] == 4
    assert steps[stopped] == 2  # in the first step the policy is still the rollout's
    two = make_trainer(tmp_path / "two", learning_rate=0.02, max_steps=4)
    take, taken = two._take_step, []
    two._take_step = lambda step: (take(step), taken.append(step))
    update = two.compute_loss

    def only_two(model, inputs, **kwargs):
        two.stopped = len(taken) >= 2
        return update(model, inputs, **kwargs)

    two.compute_loss = only_two
    two.train()
    assert_same(weights_of(stopped), weights_of(two))


def test_frozen_models_visit_the_device_and_go_home(monkeypatch):
    """On a machine without an accelerator there is one place; what is looked at is where they are sent."""
    model, visits = torch.nn.Linear(2, 2), []
    monkeypatch.setattr(model, "to", visits.append)
    with on_device(model, torch.device("cuda")):
        assert visits == [torch.device("cuda")]
    assert visits == [torch.device("cuda"), torch.device("cpu")]
    with on_device(model, torch.device("cpu")):
        assert len(visits) == 2


def test_frozen_models_kept_in_the_hosts_memory_change_nothing(tmp_path):
    weights = []
    for offload in (False, True):
        trainer = make_trainer(tmp_path / str(offload), make_reward_model(), offload_frozen=offload)
        trainer.train()
        weights.append(weights_of(trainer))
    assert_same(*weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_kl": 1e-6, "learning_rate": 0.02}, "above max_kl"),
        ({"min_eos_share": 0.99}, "fewer than min_eos_share"),
    ],
)
def test_a_run_that_leaves_its_bounds_stops_with_its_last_checkpoint(tmp_path, options, message):
    trainer = make_trainer(tmp_path, max_steps=12, save_strategy="steps", save_steps=2, **options)
    with pytest.raises(UserError, match=message):
        trainer.train()
    if "max_kl" in options:
        assert (tmp_path / "checkpoint-4").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
        ({"kl_stop": 0.0}, "kl_stop must be above 0"),
        ({"max_kl": 3.0, "kl_coef": 0.0}, "max_kl needs a reference"),
        ({"min_eos_share": 0.5, "stop_token": None}, "min_eos_share needs a stop token"),
        ({"min_eos_share": 1.5}, "must lie between 0 and 1"),
        ({"ptx_coef": -1.0}, "ptx_coef must be at least 0"),
        ({"ptx_length": 1}, "ptx_length must be at least 2"),
        ({"kl_coef": -0.1}, "kl_coef must be at least 0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        make_config(tmp_path, **options)


def test_the_table_before_the_first_update_warns(tmp_path):
    for name, metrics in (("sft", {"supervised_eos_share": 0.5}), ("reward", {"pair_accuracy": 0.55})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps({"metrics": metrics}))
    metrics = {"response_length": 9.0, "eos_share": 0.0, "reward": 1.0, "reward_std": 0.0}
    batch = {"prompt_mask": torch.ones(2, 3)}
    table = preflight(batch, metrics, str(tmp_path / "sft"), [str(tmp_path / "reward")], {"policy": 2**20})
    assert "EOS was supervised in 50% of its demonstrations" in table
    assert "is right in 55.0% of held-out pairs only" in table
    assert "there is nothing to learn from" in table
    assert "no response ends by itself" in table
    assert "policy 1 MiB" in table


def test_the_table_is_printed_once_and_seconds_are_logged_by_phase(tmp_path, capsys):
    trainer = make_trainer(tmp_path, make_reward_model(), max_steps=8)
    trainer.train()
    assert capsys.readouterr().out.count("before the first update") == 1
    log = next(log for log in trainer.state.log_history if "reward" in log)
    phases = {name for name in log if name.startswith("seconds/")}
    assert phases == {f"seconds/{name}" for name in ("generation", "log-probabilities", "scoring", "optimisation")}
    assert log["kl_k3"] >= 0
    assert log["tokens_per_second"] > 0
