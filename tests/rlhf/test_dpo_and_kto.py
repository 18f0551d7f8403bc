"""DPO and KTO: the loss against the paper's formula, the reference, and what becomes of the data."""

import json
import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes.core import UserError
from recipes.rlhf.preferences import unpaired, with_prompts

PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"say {word}"}],
        "chosen": [{"role": "assistant", "content": f"{word} it is"}],
        "rejected": [{"role": "assistant", "content": "no please"}],
    }
    for word in ["one", "two", "three", "four", "five", "six", "seven", "yes"]
]
PLAIN = [{"chosen": f"it is {row} dog", "rejected": f"it is {row}s and no"} for row in ["one", "the", "fox"]]


def splits(rows: list[dict]) -> DatasetDict:
    return DatasetDict(train=Dataset.from_list(rows))


@pytest.fixture
def trainer(trainer_of, tiny, tmp_path):
    def build(recipe: str, rows: list[dict] = PAIRS, **config):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"model_name_or_path": str(tiny / "model"), "dataset_name": str(tmp_path / "rows.jsonl")}
        base = {"dataset_test_split": None, "max_length": 64, "per_device_train_batch_size": 4, "beta": 0.3}
        return trainer_of(recipe, {**source, **base, **config})

    return build


def moved(model) -> None:
    """The policy a step away from its reference."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)


def log_probability(model, tokenizer, prompt: list, answer: list) -> float:
    """log p(answer | prompt) in nats, from the chat template alone."""
    start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    assert whole.startswith(start) and whole.endswith(tokenizer.eos_token)
    prompt_ids, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, whole))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logits[at - 1, ids[at]].item() for at in range(len(prompt_ids), len(ids)))


def loss_of(trainer, rows: int) -> float:
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(rows)])
    trainer.model.train()
    return trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch)).item()


def test_the_loss_of_dpo_is_equation_7(trainer, tiny):
    """−log σ(β log π(y_w|x)/π_ref(y_w|x) − β log π(y_l|x)/π_ref(y_l|x)), Rafailov et al. 2023."""
    dpo = trainer("rlhf/dpo")
    assert loss_of(dpo, 4) == pytest.approx(math.log(2))
    moved(dpo.model)
    reference = AutoModelForCausalLM.from_pretrained(tiny / "model").eval()
    expected = 0.0
    for row in PAIRS[:4]:
        ratio = {
            key: log_probability(dpo.model, dpo.processing_class, row["prompt"], row[key])
            - log_probability(reference, dpo.processing_class, row["prompt"], row[key])
            for key in ("chosen", "rejected")
        }
        expected += math.log(1 + math.exp(-0.3 * (ratio["chosen"] - ratio["rejected"]))) / 4
    assert expected != pytest.approx(math.log(2), rel=1e-2)
    assert loss_of(dpo, 4) == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_kto_is_equation_7(trainer, tiny):
    """λ − λ σ(β (r − z)) of a desirable answer, λ − λ σ(β (z − r)) of another; z: mean r of answers to other prompts."""
    kto = trainer("rlhf/kto", desirable_weight=1.5)
    moved(kto.model)
    reference = AutoModelForCausalLM.from_pretrained(tiny / "model").eval()
    rows = [kto.train_dataset[row] for row in range(4)]

    def ratio(prompt: list, answer: list) -> float:
        both = (log_probability(model, kto.processing_class, prompt, answer) for model in (kto.model, reference))
        return next(both) - next(both)

    answers = [row["completion"] for row in rows]
    others = [answers[-1], *answers[:-1]]
    z = max(0.0, sum(ratio(row["prompt"], other) for row, other in zip(rows, others)) / 4)
    expected = 0.0
    for row in rows:
        sign, weight = (1, 1.5) if row["label"] else (-1, 1.0)
        inside = 0.3 * sign * (ratio(row["prompt"], row["completion"]) - z)
        expected += weight * (1 - 1 / (1 + math.exp(-inside))) / 4
    assert {row["label"] for row in rows} == {True, False}, "a batch has both"
    assert loss_of(kto, 4) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("recipe", ["rlhf/dpo", "rlhf/kto"])
def test_the_reference_of_a_merged_adapter_is_the_merged_model(recipe, trainer, tiny, tmp_path):
    """TRL would take the model under the adapter: the name in the merged model's config is still that one's."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny / "model"), LoraConfig(task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(tmp_path / "adapter")

    built = trainer(recipe, model_name_or_path=str(tmp_path / "adapter"))
    for name, parameter in built.model.named_parameters():
        assert torch.equal(parameter, built.ref_model.get_parameter(name)), name
    assert built.ref_model is not built.model


# ---------------------------------------------------------------------------------------------------------------- data
def test_unpairing_gives_every_answer_once_with_its_label():
    answers = unpaired(splits(PAIRS), None, seed=0)["train"]

    def key(prompt, completion, label):
        return prompt[0]["content"], completion[0]["content"], label

    expected = [key(row["prompt"], row["chosen"], True) for row in PAIRS]
    expected += [key(row["prompt"], row["rejected"], False) for row in PAIRS]
    assert sorted(key(row["prompt"], row["completion"], row["label"]) for row in answers) == sorted(expected)


def test_good_and_bad_answers_are_mixed():
    rows = unpaired(splits(PAIRS * 50), None, seed=0)["train"]
    shares = [sum(rows["label"][start : start + 32]) / 32 for start in range(0, 800, 32)]
    assert min(shares) > 0.2 and max(shares) < 0.8
    assert rows["label"][:] != unpaired(splits(PAIRS * 50), None, seed=1)["train"]["label"][:]


def test_labels_in_words_become_true_and_false():
    rows = [{"prompt": "a", "completion": str(number), "label": ["good", "bad"][number % 2]} for number in range(6)]
    answers = unpaired(splits(rows), "good", seed=0)["train"]
    assert {(row["completion"], row["label"]) for row in answers} == {(str(n), n % 2 == 0) for n in range(6)}


def test_labels_that_say_nothing_are_refused():
    rows = splits([{"prompt": "a", "completion": "b", "label": "good"}])
    with pytest.raises(UserError, match=r"must be true or false, not 'good'; say with desirable_label"):
        unpaired(rows, None, seed=0)
    with pytest.raises(UserError, match=r"desirable_label: no row has 'god'; did you mean 'good'"):
        unpaired(rows, "god", seed=0)


def test_what_two_texts_share_is_their_prompt_and_no_word_is_cut():
    pairs = with_prompts(splits([*PLAIN, {"chosen": "fine", "rejected": "finer"}]))["train"]
    assert pairs["prompt"][:] == ["it is", "it is", "it is", ""]
    for row, given in zip(pairs, PLAIN):
        assert row["prompt"] + row["chosen"] == given["chosen"]
        assert row["prompt"] + row["rejected"] == given["rejected"]


@pytest.mark.parametrize("recipe", ["rlhf/dpo", "rlhf/kto"])
def test_what_max_length_leaves_out_is_counted(recipe, trainer):
    from recipes.rlhf.preferences import check_completions

    long = {**PAIRS[0], "prompt": [{"role": "user", "content": "please " * 40}]}
    built = trainer(recipe, [*PAIRS, long])
    rows = 9 if recipe == "rlhf/dpo" else 18
    assert check_completions(built, rows) == {"dropped_rows": rows // 9, "supervised_eos_share": 1}
