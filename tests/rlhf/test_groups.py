"""RLOO and GRPO: what is sampled, what the reward model reads, what is learned, and the reward of GSM8K."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from recipes.rlhf.groups import GroupRewardsConfig, reward_functions
from recipes.rlhf.gsm8k import last_number_is_right

METHODS = ["rlhf/rloo", "rlhf/grpo"]
CHAT = [{"prompt": [{"role": "user", "content": f"say {word}"}]} for word in ["one", "two please", "three", "yes"]]
PLAIN = [{"prompt": f"say {word}:"} for word in ["one", "two please", "three", "yes"]]


def longest(completions, **_):
    return [float(len(completion[0]["content"])) for completion in completions]


@pytest.fixture
def trainer(trainer_of, tiny, tmp_path):
    def build(recipe: str, rows: list[dict] = CHAT, **config):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"model_name_or_path": str(tiny / "model"), "dataset_name": str(tmp_path / "rows.jsonl")}
        rewards = {"reward_funcs": [str(tiny / "scorer")], "missing_eos_penalty": 1.0, "reward_weights": [2.0]}
        base = {"dataset_test_split": None, "per_device_train_batch_size": 8, "num_generations": 2, "beta": 0.1}
        return trainer_of(recipe, {**source, **rewards, **base, "max_completion_length": 6, **config})

    return build


def sampled(trainer) -> dict:
    torch.manual_seed(0)
    trainer.model.train()
    rows = [row for row in trainer.train_dataset for _ in range(2)]
    return trainer._generate_and_score_completions(rows)


@pytest.mark.parametrize("rows", [CHAT, PLAIN], ids=["chat", "plain"])
@pytest.mark.parametrize("ends", [True, False], ids=["ended", "cut"])
def test_the_reward_model_reads_the_tokens_that_were_sampled(rows, ends, tiny, tmp_path):
    """TRL would end every conversation with EOS and no plain text; here the EOS stands where it was sampled."""
    from trl import RLOOConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    scorer = AutoModelForSequenceClassification.from_pretrained(tiny / "scorer").eval()
    training = RLOOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none")
    method = GroupRewardsConfig(reward_funcs=[str(tiny / "scorer")], missing_eos_penalty=0.5)
    scored, penalty = reward_functions(method, training, tokenizer, "float32")
    assert training.reward_weights == [1.0, 1.0]
    assert (scored.__name__, penalty.__name__) == ("scorer", "missing_eos")

    prompts = [row["prompt"] for row in rows]
    answers = [
        tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * ends for text in (" one", " two three", "!", "dog")
    ]
    given = scored(prompts=prompts, completions=["not read"] * 4, completion_ids=answers)
    for prompt, answer, reward in zip(prompts, answers, given):
        if isinstance(prompt, list):
            prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] + answer
        with torch.no_grad():
            assert reward == pytest.approx(scorer(torch.tensor([ids])).logits.item(), abs=1e-5)
    assert penalty(completion_ids=answers) == [0 if ends else -0.5] * 4


@pytest.mark.parametrize("recipe", METHODS)
def test_two_rewards_of_one_name_are_logged_apart(recipe, trainer, tiny):
    built = trainer(recipe, reward_funcs=[str(tiny / "scorer")] * 2, reward_weights=[1.0, 0.0])
    assert built.reward_func_names == ["scorer", "scorer_1", "missing_eos"]


@pytest.mark.parametrize("recipe", METHODS)
def test_the_rewards_of_a_rollout_are_weighted_and_logged(recipe, trainer):
    built = trainer(recipe)
    batch = sampled(built)
    metrics = {name: values[-1] for name, values in built._metrics["train"].items()}
    cut = 1 - (batch["completion_ids"] == built.processing_class.eos_token_id).any(dim=1).float().mean().item()
    assert metrics["rewards/missing_eos/mean"] == pytest.approx(-cut)
    expected = 2 * metrics["rewards/scorer/mean"] + metrics["rewards/missing_eos/mean"]
    assert metrics["reward"] == pytest.approx(expected, abs=1e-5)


def test_the_advantage_of_rloo_is_the_reward_less_the_mean_of_the_others(trainer, monkeypatch):
    monkeypatch.setattr("recipes.embedded.instructions.longest", longest, raising=False)
    built = trainer("rlhf/rloo", reward_funcs=["recipes.embedded.instructions:longest"], missing_eos_penalty=None)
    batch = sampled(built)
    texts = built.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    lengths = torch.tensor([2.0 * len(text.strip()) for text in texts]).view(-1, 2)
    assert lengths.std() > 0
    assert torch.allclose(batch["advantages"].view(-1, 2), lengths - lengths.flip(1), atol=1e-4)


@pytest.mark.parametrize("recipe", METHODS)
def test_the_models_own_generation_config_does_not_shape_the_samples(recipe, trainer, tiny, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model.generation_config = GenerationConfig(do_sample=True, min_p=0.9, no_repeat_ngram_size=1, top_k=1)
    model.save_pretrained(tmp_path / "shaped")
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(tmp_path / "shaped")
    plain, shaped = trainer(recipe), trainer(recipe, model_name_or_path=str(tmp_path / "shaped"))
    assert torch.equal(sampled(plain)["completion_ids"], sampled(shaped)["completion_ids"])


@pytest.mark.parametrize("recipe", METHODS)
def test_nothing_in_the_policy_is_random(recipe, trainer):
    built = trainer(recipe, peft={"method": "lora", "r": 4, "lora_dropout": 0.5, "target_modules": "all-linear"})
    assert {module.p for module in built.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


@pytest.mark.parametrize("recipe", METHODS)
def test_an_evaluation_repeats_itself_and_leaves_the_trainings_random_numbers_alone(recipe, trainer):
    built = trainer(recipe, CHAT * 2, dataset_test_split="test", test_split_size=0.5, per_device_eval_batch_size=4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = built.evaluate()
    assert torch.equal(torch.rand(3), expected)
    assert built.evaluate()["eval_reward"] == first["eval_reward"]


@pytest.mark.parametrize("recipe", METHODS)
def test_a_system_prompt_makes_conversations_of_plain_prompts(recipe, trainer):
    built = trainer(recipe, PLAIN, system_prompt="be brief")
    assert built.train_dataset[1]["prompt"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "say two please:"},
    ]
    assert trainer(recipe, CHAT, system_prompt="be brief").train_dataset[1]["prompt"] == CHAT[1]["prompt"]


GSM8K = {
    "The answer is 1,234.": 1,
    "5 + 5 = 10, so 1234": 1,
    "1234.00 dollars": 1,
    "\\boxed{1234}": 1,
    "1234 of 5": 0,
    "-1234": 0,
    "no number": 0,
    "": 0,
}


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_the_reward_of_gsm8k_is_the_last_number(chat):
    completions = [[{"role": "assistant", "content": text}] if chat else text for text in GSM8K]
    answers = ["He has 12 * 3 = <<12*3=36>>36.\n#### 1,234"] * len(GSM8K)
    assert last_number_is_right(completions=completions, answer=answers) == list(GSM8K.values())
