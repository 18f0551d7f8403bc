"""PPOTrainer on models so small that each run takes a second: invariances, resuming, learning, and bad input."""

import json
import math
import random

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from recipes.rlhf import ppo_math
from recipes.rlhf.ppo_config import PPOConfig
from recipes.rlhf.ppo_data import prompt_token_ids
from recipes.rlhf.ppo_models import PolicyWithValue
from recipes.rlhf.ppo_rewards import retokenize
from recipes.rlhf.ppo_trainer import PPOTrainer
from recipes.rlhf.ppo_values import ScalarModel, value_model_from

PAD, BOS, EOS = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def make_tokenizer(words=34, **special):
    vocabulary = ["<pad>", "<s>", "</s>", "[user]", "[assistant]", "[system]", *(f"w{i}" for i in range(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special)


def make_model(cls=LlamaForCausalLM, seed=0, **options):
    set_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"vocab_size": 40, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return cls(LlamaConfig(**(sizes | tokens | {"max_position_embeddings": 64, "initializer_range": 0.2} | options)))


def make_reward_model(seed=1, **options):
    return make_model(LlamaForSequenceClassification, seed, **({"num_labels": 1} | options))


def make_prompts(count=48):
    numbers = random.Random(0)
    texts = [" ".join(f"w{numbers.randrange(34)}" for _ in range(numbers.randint(1, 7))) for _ in range(count)]
    return Dataset.from_list([{"prompt": f"<s> {text}", "topic": i % 3} for i, text in enumerate(texts)])


def even_share(prompts, completions, completion_ids, **kwargs):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def noisy(prompts, completions, completion_ids, **kwargs):
    return [share + random.random() for share in even_share(prompts, completions, completion_ids)]


def make_config(path, **options):
    defaults = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "response_length": 10,
        "temperature": 0.9,
        "learning_rate": 1e-3,
        "max_steps": 4,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PPOConfig(output_dir=str(path), **(defaults | options))


def make_trainer(path, reward_funcs=even_share, model=None, arguments=None, **options):
    parts = {"train_dataset": make_prompts(), "processing_class": make_tokenizer()} | (arguments or {})
    return PPOTrainer(model or make_model(), reward_funcs, make_config(path, **options), **parts)


every_value_model = pytest.mark.parametrize("value_model", ["separate", "shared"])


def logs_of(trainer):
    """The logs of training, without what depends on the clock."""
    times = ("runtime", "per_second", "seconds/", "flos", "train_loss")
    logs = [log for log in trainer.state.log_history if "reward" in log]
    return [{name: log[name] for name in log if not any(word in name for word in times)} for log in logs]


def weights_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **({"atol": 0, "rtol": 0} | tolerance), msg=name)


# ---- what a rollout depends on ----


def sample(trainer, examples, rows, **options):
    for name, value in options.items():
        setattr(trainer.args, name, value)
    trainer.model.eval()
    return trainer._sample(trainer.model, examples, [(1, 0, row) for row in rows])


def test_a_sample_depends_on_its_own_numbers_and_not_on_the_batch(tmp_path):
    trainer = make_trainer(tmp_path, [make_reward_model(), even_share])
    examples = list(trainer.train_dataset.select(range(12)))
    whole = sample(trainer, examples, range(12))
    chunked = sample(trainer, examples, range(12), local_rollout_forward_batch_size=5)
    assert_same(whole, chunked, atol=1e-5)
    alone = sample(trainer, examples[7:8], [7])
    length = int(whole["response_mask"][7].sum())
    assert torch.equal(alone["response_ids"][0], whole["response_ids"][7, :length])
    for name in ("logprobs", "ref_logprobs", "values", "entropy"):
        torch.testing.assert_close(alone[name][0], whole[name][7, :length], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone["scores"][0], whole["scores"][7], atol=1e-5, rtol=0)
    other = sample(trainer, examples[7:8], [8])
    assert not torch.equal(other["response_ids"], alone["response_ids"])


def test_samples_are_drawn_from_the_policy_at_its_temperature(tmp_path):
    trainer = make_trainer(tmp_path, response_length=1, temperature=0.7, local_rollout_forward_batch_size=2000)
    example = trainer.train_dataset[0]
    batch = sample(trainer, [example] * 4000, range(4000))
    with torch.no_grad():
        logits = trainer.model.policy(torch.tensor([example["prompt_ids"]])).logits[0, -1]
    expected = (logits / 0.7).log_softmax(-1)
    shares = torch.bincount(batch["response_ids"][:, 0], minlength=40) / 4000
    torch.testing.assert_close(shares, expected.exp(), atol=0.03, rtol=0)
    torch.testing.assert_close(batch["logprobs"][:, 0], expected[batch["response_ids"][:, 0]], atol=1e-5, rtol=0)


def test_the_models_own_generation_settings_change_nothing(tmp_path):
    plain = make_trainer(tmp_path)
    model = make_model()
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=9.0, min_new_tokens=9)
    tuned = make_trainer(tmp_path, model=model)
    examples = list(plain.train_dataset.select(range(8)))
    assert_same(sample(plain, examples, range(8)), sample(tuned, examples, range(8)))
    assert tuned.model.policy.generation_config.top_k == 1


def test_padding_changes_neither_logprobs_nor_values_nor_scores():
    policy = make_model()
    value = value_model_from(policy)
    torch.nn.init.normal_(value.score.weight)
    both, reward = PolicyWithValue(policy, ScalarModel(value)).eval(), ScalarModel(make_reward_model()).eval()
    prompt, response = torch.tensor([[BOS, 7, 9]]), torch.tensor([[5, 8, 13, EOS]])

    def padded(left, right):
        def fill(n, value):
            return torch.full((1, n), value)

        batch = {
            "prompt_ids": torch.cat([fill(left, EOS), prompt], 1),  # as if padding and EOS were one token
            "prompt_mask": torch.cat([fill(left, 0), fill(3, 1)], 1),
            "response_ids": torch.cat([response, fill(right, EOS)], 1),
            "response_mask": torch.cat([fill(4, 1), fill(right, 0)], 1),
        }
        ids, mask = torch.cat(list(batch.values())[::2], 1), torch.cat(list(batch.values())[1::2], 1)
        with torch.no_grad():
            outputs = both(**batch, temperature=0.7, with_entropy=True)
            return {name: tensor[:, :4] for name, tensor in outputs.items()} | {"score": reward(ids, mask)}

    bare = padded(0, 0)
    for left, right in [(5, 0), (0, 5), (3, 2)]:
        assert_same(bare, padded(left, right), atol=1e-5)

    ids = torch.cat([prompt, response], 1)
    with torch.no_grad():
        hidden = reward.model.base_model(ids).last_hidden_state
        expected = policy(ids).logits[:, 2:-1].div(0.7).log_softmax(-1).gather(-1, response[..., None])[..., 0]
        trunk = value.base_model(ids).last_hidden_state
    torch.testing.assert_close(bare["score"], reward.model.score(hidden)[:, -1, 0])
    torch.testing.assert_close(bare["logprobs"], expected)
    torch.testing.assert_close(bare["values"], value.score(trunk)[:, 2:-1, 0])


def test_the_rollout_is_what_the_formulas_say(tmp_path):
    trainer = make_trainer(tmp_path, [make_reward_model(), even_share], reward_weights=[0.5, 2.0], max_steps=1)
    kept = {}
    sample_once = trainer._sample
    trainer._sample = lambda *args: kept.setdefault("batch", sample_once(*args))
    trainer.train()
    batch, rollout, mask = kept["batch"], trainer._rollout, trainer._rollout["response_mask"].bool()

    ended = 0
    for row in range(16):
        tokens = batch["response_ids"][row][mask[row]].tolist()
        assert EOS not in tokens[:-1]
        ended += tokens[-1] == EOS
        assert tokens[-1] == EOS or len(tokens) == 10
        rewards = -0.05 * (batch["logprobs"] - batch["ref_logprobs"])[row, : len(tokens)]
        rewards[-1] += 0.5 * batch["scores"][row, 0] + 2.0 * batch["scores"][row, 1]
        _, returns = ppo_math.gae(
            rewards[None], batch["values"][row : row + 1, : len(tokens)], torch.ones(1, len(tokens)), 1.0, 0.95
        )
        torch.testing.assert_close(rollout["returns"][row, : len(tokens)], returns[0])
    assert 0 < ended < 16
    for name in ("logprobs", "values", "advantages", "returns"):
        assert rollout[name][~mask].eq(0).all()
    advantages = rollout["advantages"][mask]
    assert advantages.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantages.std().item() == pytest.approx(1, abs=1e-4)


# ---- the update ----


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_ratio_is_one_before_the_first_update_dropout_or_not(tmp_path, family, caplog):
    if family == "llama":
        model = make_model(attention_dropout=0.5)
    else:
        set_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=40,
                n_positions=64,
                n_embd=32,
                n_layer=2,
                n_head=4,
                eos_token_id=EOS,
                resid_pdrop=0.5,
                embd_pdrop=0.5,
                attn_pdrop=0.5,
            )
        )
    trainer = make_trainer(tmp_path, model=model, num_ppo_epochs=1, num_mini_batches=1, max_steps=1)
    trainer.train()
    log = logs_of(trainer)[0]
    assert log["ratio"] == pytest.approx(1, abs=1e-5)
    assert log["approx_kl"] == pytest.approx(0, abs=1e-9)
    assert log["kl"] == pytest.approx(0, abs=1e-5)
    assert log["clip_fraction"] == 0
    assert log["policy_loss"] == pytest.approx(0, abs=1e-5)  # advantages are whitened
    assert "mean |ratio - 1|" not in caplog.text
    assert getattr(trainer.model.config, "attention_dropout", 0.5) == 0.5


def test_a_policy_that_is_not_the_one_of_the_rollout_is_reported(tmp_path, caplog):
    trainer = make_trainer(tmp_path, max_steps=1)
    make = trainer._make_rollout

    def make_and_move(*args):
        make(*args)
        trainer._rollout["logprobs"] -= 0.1 * trainer._rollout["response_mask"]

    trainer._make_rollout = make_and_move
    with caplog.at_level("WARNING"):
        trainer.train()
    assert "mean |ratio - 1|" in caplog.text


@pytest.mark.parametrize("options", [{}, {"entropy_coef": 0.01, "whiten_rewards": True, "kl_estimator": "k3"}])
def test_splitting_a_mini_batch_changes_nothing(tmp_path, options):
    runs = []
    for size, accumulation in [(8, 1), (4, 2), (2, 4), (1, 8)]:
        trainer = make_trainer(
            tmp_path,
            [make_reward_model(), even_share],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=8,
            optim="sgd",  # Adam would blow up what rounding leaves of gradients that are 0
            max_grad_norm=1.0,
            learning_rate=1e-2,
            **options,
        )
        trainer.train()
        runs.append((weights_of(trainer), logs_of(trainer)))
    for weights, logs in runs[1:]:
        assert_same(runs[0][0], weights, atol=1e-6)
        for log, expected in zip(logs, runs[0][1], strict=True):
            assert log == pytest.approx(expected, abs=1e-5)


def test_every_sample_is_in_one_mini_batch_of_each_epoch(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=8)
    seen = []
    compute = trainer.compute_loss

    def spy(model, inputs, **kwargs):
        step = trainer.state.global_step
        seen.extend(
            (step, tuple(ids[mask.bool()].tolist())) for ids, mask in zip(*list(inputs.values())[:2], strict=True)
        )
        return compute(model, inputs, **kwargs)

    trainer.compute_loss = spy
    trainer.train()
    prompts = [sorted(ids for step, ids in seen if step in steps) for steps in ((0, 1), (2, 3), (4, 5), (6, 7))]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    assert len(set(prompts[0])) > 12
    orders = [[ids for step, ids in seen if step in steps] for steps in ((0, 1), (2, 3))]
    assert orders[0] != orders[1]


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path):
    def huge(prompts, **kwargs):
        return [3e38 * (-1) ** i for i in range(len(prompts))]

    trainer = make_trainer(tmp_path, huge)
    before = weights_of(trainer)
    with pytest.raises(ValueError, match="loss is not finite at optimizer step 1"):
        trainer.train()
    assert_same(before, weights_of(trainer))


@every_value_model
def test_it_learns_a_programmatic_reward(tmp_path, value_model):
    trainer = make_trainer(
        tmp_path,
        arguments={"value_model": value_model},
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        num_mini_batches=2,
        num_ppo_epochs=4,
        total_episodes=30 * 32,
        max_steps=-1,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        kl_coef=0.01,
        temperature=1.0,
    )
    trainer.train()
    logs = logs_of(trainer)
    assert len(logs) == 30
    assert logs[-1]["episodes"] == 960
    assert logs[0]["reward"] < 0.6
    assert sum(log["reward"] for log in logs[-5:]) / 5 > 0.85
    assert logs[-1]["value_loss"] < 0.5 * logs[0]["value_loss"]


# ---- resuming and saving ----


@every_value_model
@pytest.mark.parametrize("step", [4, 6, 14])  # between two rollouts, inside one, inside one of the second epoch
def test_a_resumed_run_is_the_undisturbed_run(tmp_path, step, value_model):
    options = {"max_steps": 16, "logging_steps": 3, "kl_target": 0.1, "kl_horizon": 50, "save_strategy": "steps"}
    arguments = {"eval_dataset": make_prompts(6), "value_model": value_model}
    options |= {"save_steps": step, "eval_strategy": "steps", "eval_steps": 5, "value_head_learning_rate": 0.01}

    def run(path):
        return make_trainer(path, [make_reward_model(), noisy], arguments=arguments, **options)

    undisturbed = run(tmp_path)
    undisturbed.train()
    resumed = run(tmp_path)
    for parameter in resumed.model.parameters():
        torch.nn.init.normal_(parameter)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same(weights_of(undisturbed), weights_of(resumed))
    assert logs_of(undisturbed) == logs_of(resumed)
    assert undisturbed.kl_coef == resumed.kl_coef != 0.05


@pytest.mark.parametrize(
    "options", [{"num_mini_batches": 4}, {"num_ppo_epochs": 4}, {"gradient_accumulation_steps": 1}]
)
def test_options_that_do_not_fit_the_checkpoint_are_refused(tmp_path, options):
    make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=3).train()
    with pytest.raises(ValueError, match="resume with the options it was saved with"):
        make_trainer(tmp_path, max_steps=8, **options).train(resume_from_checkpoint=True)


def test_the_saved_policy_opens_as_a_causal_language_model(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.save_model()
    ids = torch.tensor([[BOS, 7, 9, 20]])
    expected = trainer.model.policy(ids).logits
    for folder in (tmp_path, tmp_path / "checkpoint-4"):
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected)
    assert set(load_file(tmp_path / "model.safetensors")) == set(trainer.model.policy.state_dict())
    assert not (tmp_path / "value_model").exists()
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4" / "value_model")
    assert_same(value.state_dict(), trainer.model.value.model.state_dict())


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    trainer = make_trainer(tmp_path, arguments={"eval_dataset": make_prompts(20)}, learning_rate=3e-3, **options)
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert trainer.state.best_global_step == 4
    assert_same(best, {name: trainer.model.policy.state_dict()[name] for name in best})


# ---- adapters ----


@pytest.mark.parametrize("ready_made", [False, True])
def test_an_adapters_reference_is_its_base_which_is_not_trained(tmp_path, ready_made):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    base, arguments = make_model(), {"peft_config": config}
    if ready_made:
        base, arguments = PeftModel(base, config), {"value_model": value_model_from(make_model())}
    trainer = make_trainer(tmp_path, model=base, arguments=arguments, max_steps=8, learning_rate=1e-2)
    assert trainer.ref_model is None
    trainer.train()
    logs = logs_of(trainer)
    assert abs(logs[0]["kl"]) < 1e-5  # the policy's is of generation, the reference's of a pass over the responses
    assert abs(logs[1]["kl"]) > 1e-3

    trainer.save_model()
    adapter = load_file(tmp_path / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)
    plain = make_model()
    ids = torch.tensor([[BOS, 7, 9, 20]])
    policy = trainer.model.policy
    with policy.disable_adapter():
        assert torch.equal(policy(ids).logits, plain(ids).logits)
    expected = policy(ids).logits
    torch.testing.assert_close(PeftModel.from_pretrained(plain, tmp_path).eval()(ids).logits, expected)


@every_value_model
def test_an_adapter_run_resumes_exactly(tmp_path, value_model):
    def run():
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 7, "learning_rate": 1e-2}
        return make_trainer(tmp_path, arguments={"peft_config": config, "value_model": value_model}, **options)

    undisturbed, resumed = run(), run()
    undisturbed.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(weights_of(undisturbed), weights_of(resumed))


# ---- rewards ----


def test_a_reward_of_weight_zero_is_only_logged(tmp_path):
    def gold(prompts, **kwargs):
        return [100.0] * len(prompts)

    both = make_trainer(tmp_path, [even_share, gold], reward_weights=[1.0, 0.0])
    one = make_trainer(tmp_path, even_share)
    both.train()
    one.train()
    assert_same(weights_of(both), weights_of(one))
    assert logs_of(both)[0]["reward/gold"] == 100
    assert logs_of(both)[0]["reward/even_share"] == logs_of(both)[0]["reward"] == logs_of(one)[0]["reward"]


def test_clipping_and_the_penalty_for_a_missing_stop_token(tmp_path):
    trainer = make_trainer(tmp_path, reward_clip=0.4, missing_eos_penalty=3.0)
    batch = {
        "scores": torch.tensor([[0.1], [0.9], [-0.9]]),
        "response_ids": torch.tensor([[5, EOS, EOS], [5, 6, EOS], [5, 6, 7]]),
        "response_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1]]),
    }
    assert trainer.rewards.ended(batch).tolist() == [True, True, False]
    torch.testing.assert_close(trainer.rewards.total(batch), torch.tensor([0.1, 0.4, -3.4]))


def test_reward_functions_see_conversations_and_columns(tmp_path):
    seen = {}

    def spy(prompts, completions, completion_ids, topic, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, topic=topic)
        return [0.0] * len(prompts)

    rows = [{"prompt": [{"role": "user", "content": f"w{i} w3"}], "topic": i} for i in range(16)]
    trainer = make_trainer(tmp_path, spy, arguments={"train_dataset": Dataset.from_list(rows)}, max_steps=1)
    trainer.train()
    assert trainer.train_dataset[4]["prompt_ids"] == [BOS, 3, 10, 9, 4]  # <s> [user] w4 w3 [assistant]
    assert sorted(seen["topic"]) == list(range(16))
    for prompt, completion, ids, topic in zip(*seen.values(), strict=True):
        assert prompt == [{"role": "user", "content": f"w{topic} w3"}]
        text = trainer.processing_class.decode([token for token in ids if token != EOS], skip_special_tokens=True)
        assert completion == [{"role": "assistant", "content": text}]


def test_a_reward_model_with_its_own_tokenizer_scores_the_text(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"w{i} w3"}]} for i in range(16)]
    data = {"train_dataset": Dataset.from_list(rows)}
    shared = make_reward_model()
    same = make_trainer(tmp_path, shared, arguments=data, response_length=1)

    # the same model under another numbering of the same words, with some more
    other = make_tokenizer(words=40)
    renumbered = make_reward_model(vocab_size=46)
    old = shared.base_model.embed_tokens.weight.detach()
    renumbered.load_state_dict(
        shared.state_dict() | {"model.embed_tokens.weight": torch.cat([old, torch.zeros(6, 32)])}
    )
    own = make_trainer(tmp_path, renumbered, arguments=data | {"reward_processing_classes": other})
    examples = list(same.train_dataset)
    one, two = (trainer.rewards.tokenizers for trainer in (same, own))
    assert (one, two) == ([None], [other])
    batch = sample(same, examples, range(16))
    mine = same.rewards.score(examples, batch, same.accelerator)
    theirs = own.rewards.score(examples, batch, own.accelerator)
    ends = batch["response_ids"][:, 0] == EOS
    words = (batch["response_ids"][:, 0] > 5) & ~ends  # special tokens do not survive the text
    torch.testing.assert_close(mine[words], theirs[words], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("w1 w2", [7, 8]), ("<s> w1 w2", [BOS, 7, 8]), ([{"role": "user", "content": "w1"}], [BOS, 3, 7, 4])],
)
def test_prompts_have_one_bos_and_no_eos(prompt, expected):
    assert prompt_token_ids(prompt, make_tokenizer()) == expected


def test_what_a_tokenizer_adds_by_itself_is_put_right():
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert prompt_token_ids("w1 w2", tokenizer) == [BOS, 7, 8]
    assert prompt_token_ids("<s> w1 w2", tokenizer) == [BOS, 7, 8]
    assert prompt_token_ids([{"role": "user", "content": "w1"}], tokenizer) == [BOS, 3, 7, 4]


# ---- options, evaluation ----


def test_evaluation_measures_and_does_not_disturb(tmp_path):
    arguments = {"eval_dataset": make_prompts(10)}
    quiet = make_trainer(tmp_path, noisy, max_steps=8)
    watched = make_trainer(tmp_path, noisy, arguments=arguments, max_steps=8, eval_strategy="steps", eval_steps=3)
    before = watched.evaluate()
    names = {"eval_reward", "eval_reward/noisy", "eval_kl", "eval_response_length", "eval_eos_share"}
    assert names <= before.keys()
    assert before["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert watched.evaluate()["eval_response_length"] == before["eval_response_length"]
    quiet.train()
    watched.train()
    assert_same(weights_of(quiet), weights_of(watched))
    assert sum("eval_reward" in log for log in watched.state.log_history) >= 2


def test_an_evaluation_is_the_same_in_batches_of_any_size(tmp_path):
    sizes = {}
    for size in (1, 4, 16):
        trainer = make_trainer(tmp_path, [make_reward_model(), even_share], per_device_eval_batch_size=size)
        metrics = trainer.evaluate(make_prompts(10))
        sizes[size] = {name: value for name, value in metrics.items() if "second" not in name and "time" not in name}
    assert sizes[1] == pytest.approx(sizes[16], abs=1e-5)
    assert sizes[4] == pytest.approx(sizes[16], abs=1e-5)


def test_without_kl_there_is_no_reference(tmp_path):
    trainer = make_trainer(tmp_path, kl_coef=0.0)
    assert trainer.ref_model is None
    trainer.train()
    assert "kl" not in logs_of(trainer)[0]


def test_without_stop_token_every_response_has_full_length(tmp_path):
    trainer = make_trainer(tmp_path, stop_token=None)
    trainer.train()
    assert logs_of(trainer)[0]["response_length"] == 10
    assert logs_of(trainer)[0]["eos_share"] == 0


def test_the_value_model_starts_as_the_reward_model_or_at_zero(tmp_path):
    reward_model = make_reward_model()
    trainer = make_trainer(tmp_path, [even_share, reward_model])
    assert_same(reward_model.state_dict(), trainer.model.value.model.state_dict())
    assert trainer.model.value.model is not reward_model
    value = make_trainer(tmp_path, even_share).model.value.model
    assert value.score.weight.eq(0).all()
    assert_same(value.base_model.state_dict(), make_model().base_model.state_dict())


def test_a_named_value_model_is_trained_whole_and_a_new_head_says_nothing(tmp_path):
    base = make_model()
    base.save_pretrained(tmp_path / "base")
    scorer = LlamaForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    get_peft_model(scorer, adapter).save_pretrained(tmp_path / "adapter")
    for name in ("base", "adapter"):
        trainer = make_trainer(tmp_path / "run", arguments={"value_model": str(tmp_path / name)})
        value = trainer.model.value.model
        assert all(parameter.requires_grad for parameter in value.parameters())
        assert value.score.weight.eq(0).all() == (name == "base")
        same = value.model.layers[0].self_attn.q_proj.weight.equal(base.model.layers[0].self_attn.q_proj.weight)
        assert same == (name == "base")


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["prompt tuning", "P-tuning", "prefix-tuning"],
)
def test_under_virtual_tokens_a_sample_does_not_depend_on_the_batch(tmp_path, config):
    trainer = make_trainer(tmp_path, arguments={"peft_config": config, "value_model": "shared"})
    for parameter in trainer.model.policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    examples = list(trainer.train_dataset.select(range(6)))
    whole = sample(trainer, examples, range(6))
    for row in range(6):
        alone, length = sample(trainer, [examples[row]], [row]), int(whole["response_mask"][row].sum())
        assert torch.equal(alone["response_ids"][0], whole["response_ids"][row, :length])
        for name in ("logprobs", "ref_logprobs", "values"):
            torch.testing.assert_close(alone[name][0], whole[name][row, :length], atol=1e-5, rtol=0)


def test_unused_columns_can_be_dropped(tmp_path):
    seen = []

    def columns_of(prompts, completions, completion_ids, **columns):
        seen.append(set(columns))
        return even_share(prompts, completions, completion_ids)

    make_trainer(tmp_path, columns_of, remove_unused_columns=True).train()
    assert seen and all("topic" not in columns for columns in seen)


def test_the_best_policy_is_that_of_the_highest_reward(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 4}
    parts = {"eval_dataset": make_prompts(8)}
    trainer = make_trainer(
        tmp_path, arguments=parts, load_best_model_at_end=True, max_steps=12, learning_rate=3e-2, **options
    )
    trainer.train()
    rewards = {log["step"]: log["eval_reward"] for log in trainer.state.log_history if "eval_reward" in log}
    assert trainer.state.best_metric == max(rewards.values())
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert_same(best, {name: tensor for name, tensor in trainer.model.policy.state_dict().items() if name in best})


def test_a_reward_model_with_its_own_template_reads_turns_as_they_were_left(tmp_path):
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} </s> {% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokenizer = make_tokenizer(words=20)
    tokenizer.chat_template = template
    asked, begun = [{"role": "user", "content": "w1"}], {"role": "assistant", "content": "w2 "}
    answer = [{"role": "assistant", "content": "w3"}]
    ids, mask = retokenize([asked, asked, [*asked, begun]], [answer] * 3, [True, False, True], tokenizer)
    texts = [tokenizer.decode(row[real.bool()]) for row, real in zip(ids, mask)]
    assert texts == [
        "[user] w1 </s> [assistant] w3 </s>",
        "[user] w1 </s> [assistant] w3",
        "[user] w1 </s> [assistant] w2 w3 </s>",
    ]


def test_a_shared_value_reads_the_policys_own_states_and_shapes_them(tmp_path):
    trainer = make_trainer(tmp_path, arguments={"value_model": "shared"}, save_strategy="steps", save_steps=4)
    policy, head = trainer.model.policy, trainer.model.value
    assert {name for name, _ in trainer.model.named_parameters() if not name.startswith("policy.")} == {"value.weight"}
    assert head.weight.eq(0).all()

    torch.nn.init.normal_(head.weight)
    batch = sample(trainer, list(trainer.train_dataset.select(range(6))), range(6))
    for row in range(6):
        prompt, response = (
            batch[f"{part}_ids"][row][batch[f"{part}_mask"][row] > 0] for part in ("prompt", "response")
        )
        hidden = policy.base_model(torch.cat([prompt, response])[None]).last_hidden_state[0]
        expected = (hidden @ head.weight[0])[len(prompt) - 1 : -1]
        torch.testing.assert_close(batch["values"][row][: len(response)], expected)

    inputs = {name: batch[name] for name in ("prompt_ids", "prompt_mask", "response_ids", "response_mask")}
    trainer.model(**inputs, temperature=0.9)["values"].sum().backward()
    assert policy.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0

    trainer.train()
    saved = load_file(tmp_path / "checkpoint-4" / "value_model" / "value_head.safetensors")
    assert_same(saved, dict(head.state_dict()))
    trainer.save_model()
    assert set(load_file(tmp_path / "model.safetensors")) == set(policy.state_dict())


@every_value_model
def test_the_values_head_can_have_a_learning_rate_of_its_own(tmp_path, value_model):
    """Adam's first step moves a weight by its learning rate, whatever the gradient."""
    options = {"learning_rate": 1e-4, "value_head_learning_rate": 0.01, "adam_epsilon": 1e-20, "max_steps": 1}
    options |= {"max_grad_norm": 0.0, "weight_decay": 0.0}
    trainer = make_trainer(tmp_path, arguments={"value_model": value_model}, lr_scheduler_type="constant", **options)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    first = trainer.optimizer
    steps = {name: (weight - before[name]).abs() for name, weight in trainer.model.named_parameters()}
    (head,) = (name for name in steps if name in ("value.weight", "value.model.score.weight"))
    torch.testing.assert_close(steps.pop(head), torch.full_like(before[head], 0.01))
    assert 0.9e-4 < max(step.max() for step in steps.values()) < 1.1e-4
    trainer.train()
    assert trainer.optimizer is first


def test_the_heads_learning_rate_follows_the_schedule(tmp_path):
    rates = {"learning_rate": 1e-3, "value_head_learning_rate": 0.02}
    trainer = make_trainer(tmp_path, lr_scheduler_type="linear", max_steps=6, **rates)
    trainer.create_optimizer_and_scheduler(6)
    for step in range(6):
        now = sorted({group["lr"] for group in trainer.optimizer.param_groups})
        assert now == pytest.approx([1e-3 * (1 - step / 6), 0.02 * (1 - step / 6)])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    trained = [weight for group in trainer.optimizer.param_groups for weight in group["params"]]
    assert len(trained) == len({id(weight) for weight in trained}) == len([*trainer.model.parameters()])


def test_an_optimizer_that_is_passed_has_the_heads_rate_too(tmp_path):
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="value_head_learning_rate: the optimizer that was passed has its own rates"):
        make_trainer(tmp_path, arguments={"optimizers": (optimizer, None)}, value_head_learning_rate=0.1)


def test_activation_checkpointing_changes_no_number(tmp_path):
    plain, saving = make_trainer(tmp_path), make_trainer(tmp_path, activation_checkpointing=True)
    plain.train()
    saving.train()
    assert_same(weights_of(plain), weights_of(saving), atol=1e-6)


def test_half_precision_trains(tmp_path, caplog):
    trainer = make_trainer(tmp_path, [make_reward_model(), even_share], bf16=True)
    trainer.train()
    assert math.isfinite(logs_of(trainer)[0]["policy_loss"])
    assert "mean |ratio - 1|" not in caplog.text
    assert trainer.model.policy.dtype == torch.float32


def test_the_config_parses_and_logs_once_per_rollout(tmp_path):
    path = tmp_path / "config.json"
    options = {"output_dir": str(tmp_path), "bf16": False, "num_mini_batches": 3, "reward_weights": [1.0, 0.0]}
    path.write_text(json.dumps(options | {"use_cpu": True}))
    (config,) = HfArgumentParser(PPOConfig).parse_json_file(str(path))
    assert config.logging_steps == 12
    assert config.stop_token == "eos"
    assert config.adam_epsilon == 1e-5
    arguments = ["--output_dir", "x", "--stop_token_id", "5", "--kl_target", "6", "--bf16", "False", "--use_cpu"]
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(arguments)
    assert (config.stop_token_id, config.kl_target) == (5, 6.0)
    assert all(field.metadata.get("help") for field in PPOConfig.__dataclass_fields__.values() if field.init)


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_coef": -0.1}, "kl_coef must be at least 0, not -0.1"),
        ({"cliprange": 0.0}, "cliprange must be above 0"),
        ({"cliprange_value": -1.0}, "cliprange_value must be above 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"value_head_learning_rate": 0.0}, "value_head_learning_rate must be above 0"),
        ({"num_mini_batches": 0}, "num_mini_batches must be at least 1"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs must be at least 1"),
        ({"response_length": 0}, "response_length must be at least 1"),
        ({"gamma": 1.5}, "gamma must lie between 0 and 1"),
        ({"kl_estimator": "k2"}, "kl_estimator must be 'k1' or 'k3'"),
        ({"stop_token": "</s>"}, "stop_token must be 'eos' or None"),
        ({"stop_token": None, "missing_eos_penalty": 1.0}, "missing_eos_penalty needs a stop token"),
        ({"kl_target": 5.0, "kl_coef": 0.0}, "kl_target adapts kl_coef"),
        ({"total_episodes": 100}, "total_episodes and max_steps"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"kl_stop": 0.1, "fp16": True}, "kl_stop skips optimizer steps, whose gradients fp16 would scale"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor has no effect in PPO"),
        ({"data_seed": 1}, "data_seed has no effect in PPO"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy has no effect in PPO"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha has no effect in PPO"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches is for tensors"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make_config(tmp_path, **options)
    assert "\n" not in str(error.value)


def returns(value):
    def reward(prompts, **kwargs):
        return value(len(prompts))

    return reward


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda n: [1.0] * (n - 1), "reward function reward must return one number for each of 16 responses"),
        (lambda n: None, "reward function reward must return a list of numbers"),
        (lambda n: [1.0] * (n - 1) + [None], "reward function reward must return a list of numbers"),
        (lambda n: [1.0] * (n - 1) + [math.nan], "returned nan for response 15"),
        (lambda n: ["good"] * n, "reward function reward must return a list of numbers"),
        (lambda n: 1.0, "one number for each of 16 responses"),
    ],
)
def test_bad_rewards(tmp_path, value, message):
    trainer = make_trainer(tmp_path, returns(value))
    with pytest.raises(ValueError, match=message):
        trainer.train()


def prompts_of(*texts):
    return Dataset.from_list([{"prompt": text} for text in texts])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"train_dataset": Dataset.from_list([{"text": "w1"}])}, {}, "train_dataset has no column prompt, only text"),
        ({"train_dataset": make_prompts().select([])}, {}, "train_dataset is empty"),
        ({"train_dataset": [{"prompt": "w1"}]}, {}, "train_dataset must be a datasets.Dataset, not list"),
        ({"train_dataset": prompts_of("w1", "")}, {}, "without a single token, in row 1"),
        (
            {"train_dataset": prompts_of(*["w1"] * 14, "w1 " * 60, "w1 " * 55)},
            {},
            r"2 of 16 prompts of train_dataset are longer than the 54 tokens .* \(the longest has 60\)",
        ),
        ({"train_dataset": make_prompts(15)}, {}, r"one rollout takes 16 .*lower num_mini_batches to 1 or give"),
        ({"train_dataset": make_prompts(7)}, {}, "lower gradient_accumulation_steps to 1 or give"),
        ({"train_dataset": make_prompts(3)}, {}, "lower per_device_train_batch_size to 3 or give"),
        (
            {"processing_class": make_tokenizer(eos_token=None)},
            {},
            "the tokenizer has no EOS token: set stop_token_id",
        ),
        (
            {"processing_class": make_tokenizer(eos_token=None, pad_token=None)},
            {},
            "neither a padding nor an EOS token",
        ),
        ({"value_model": make_reward_model(vocab_size=50)}, {}, "value_model has a vocabulary of 50 tokens"),
        ({"value_model": make_reward_model(num_labels=2)}, {}, "value_model needs a single label"),
        ({"ref_model": make_model(vocab_size=50)}, {}, "ref_model has a vocabulary of 50 tokens"),
        ({"reward_funcs": make_reward_model(num_labels=3)}, {}, "has 3 labels: load it with num_labels=1"),
        (
            {"reward_funcs": make_reward_model(max_position_embeddings=16)},
            {},
            "has 16 positions, and a prompt and its response up to 18 tokens",
        ),
        ({"reward_funcs": make_reward_model(vocab_size=50)}, {}, "give its tokenizer in reward_processing_classes"),
        ({"reward_funcs": "a/name"}, {}, "a/name is read as an adapter and the policy has none"),
        ({"reward_funcs": 3}, {}, "a reward function is a model or a Python function, not int"),
        ({}, {"reward_weights": [1.0, 2.0]}, "reward_weights has 2 entries for 1 reward functions"),
    ],
)
def test_bad_arguments(tmp_path, arguments, options, message):
    parts = {"train_dataset": make_prompts(), "processing_class": make_tokenizer(), "reward_funcs": even_share}
    with pytest.raises(ValueError, match=message) as error:
        PPOTrainer(make_model(), args=make_config(tmp_path, **options), **(parts | arguments))
    assert "\n" not in str(error.value)


def test_conversations_need_a_chat_template(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "w1"}]}])
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        make_trainer(tmp_path, arguments={"train_dataset": data, "processing_class": tokenizer})


def test_models_that_cannot_play_two_roles(tmp_path):
    model, reward_model = make_model(), make_reward_model()
    with pytest.raises(ValueError, match="ref_model is the policy itself"):
        make_trainer(tmp_path, model=model, arguments={"ref_model": model})
    with pytest.raises(ValueError, match="cannot be a reward model too"):
        make_trainer(tmp_path, reward_model, arguments={"value_model": reward_model})
