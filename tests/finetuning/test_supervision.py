"""What the loss of SFT sees: the answer and its end, never the prompt, never the padding."""

import json

import pytest

WORDS = ["one", "two three", "four five six", "yes", "no please", "seven"]
PLAIN = [{"prompt": f"say {word}:", "completion": f" {word} it is"} for word in WORDS]
CHAT = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["completion"]}],
    }
    for row in PLAIN
]
TWO_TURNS = [
    {
        "prompt": [*row["prompt"], {"role": "assistant", "content": "what?"}, {"role": "user", "content": "again"}],
        "completion": row["completion"],
    }
    for row in CHAT
]
FORMS = {"plain": PLAIN, "chat": CHAT, "two turns": TWO_TURNS}


@pytest.fixture
def sft_trainer(trainer_of, tiny, tmp_path):
    def build(rows: list[dict], **config):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"model_name_or_path": str(tiny / "model"), "dataset_name": str(tmp_path / "rows.jsonl")}
        return trainer_of("finetuning/sft", {**source, "dataset_test_split": None, "max_length": 96, **config})

    return build


def by_hand(row: dict, tokenizer) -> tuple[list[int], list[int]]:
    """Tokens of prompt and answer, without TRL: the answer ends with EOS."""
    if isinstance(row["prompt"], str):
        prompt, whole = row["prompt"], row["prompt"] + row["completion"] + tokenizer.eos_token
    else:
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        assert whole.startswith(prompt), "the template at inference is the one at training"
    prompt_ids, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole))
    assert ids[: len(prompt_ids)] == prompt_ids
    return prompt_ids, ids[len(prompt_ids) :]


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>"], ids=["pad-of-its-own", "pad-is-eos"])
@pytest.mark.parametrize("form", FORMS)
def test_the_answer_and_its_end_are_supervised_and_nothing_else(sft_trainer, form, pad):
    trainer = sft_trainer(FORMS[form], tokenizer_kwargs={"pad_token": pad})
    tokenizer = trainer.processing_class
    assert tokenizer.pad_token == pad
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(len(WORDS))])
    assert (batch["attention_mask"] == 0).any(), "there is padding to be left out"
    for row, ids, labels, mask in zip(FORMS[form], batch["input_ids"], batch["labels"], batch["attention_mask"]):
        prompt, answer = by_hand(row, tokenizer)
        assert ids[mask.bool()].tolist() == prompt + answer
        assert answer[-1] == tokenizer.eos_token_id
        assert labels[mask.bool()].tolist() == [-100] * len(prompt) + answer
        assert set(labels[~mask.bool()].tolist()) <= {-100}


@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>"], ids=["pad-of-its-own", "pad-is-eos"])
@pytest.mark.parametrize("form", FORMS)
def test_the_shares_are_those_counted_by_hand(sft_trainer, form, pad):
    from recipes.finetuning.supervision import check_supervision

    trainer = sft_trainer(FORMS[form], tokenizer_kwargs={"pad_token": pad})
    parts = [by_hand(row, trainer.processing_class) for row in FORMS[form]]
    answers, everything = sum(len(answer) for _, answer in parts), sum(len(p) + len(a) for p, a in parts)
    shares = check_supervision(trainer)
    assert shares == {"supervised_share": pytest.approx(answers / everything), "supervised_eos_share": 1.0}
    assert 0 < shares["supervised_share"] < 1


def test_a_text_is_supervised_whole(sft_trainer):
    from recipes.finetuning.supervision import check_supervision

    shares = check_supervision(sft_trainer([{"text": row["prompt"]} for row in PLAIN]))
    assert shares == {"supervised_share": 1.0, "supervised_eos_share": 1.0}


def test_answers_that_are_cut_lower_the_share_of_ends(sft_trainer):
    from recipes.finetuning.supervision import check_supervision

    trainer = sft_trainer(PLAIN)
    lengths = sorted(
        len(prompt) + len(answer) for prompt, answer in (by_hand(r, trainer.processing_class) for r in PLAIN)
    )
    cut = sft_trainer(PLAIN, max_length=lengths[3], overwrite="always")
    whole = sum(length <= lengths[3] for length in lengths)
    assert 0 < whole < len(PLAIN)
    assert check_supervision(cut)["supervised_eos_share"] == pytest.approx(whole / len(PLAIN))


@pytest.mark.parametrize(
    ("long", "max_length", "message"),
    [
        ("prompt", 24, "no token is supervised: every answer lies beyond max_length"),
        ("completion", 40, "no answer ends in a supervised <|end|>, so the model would never stop"),
    ],
)
def test_when_every_answer_is_cut_it_refuses(main, tiny, tmp_path, capfd, long, max_length, message):
    rows = [{**row, long: row[long] + "#" * 60} for row in PLAIN]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model_name_or_path": str(tiny / "model"),
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "dataset_test_split": None,
        "max_length": max_length,
        "output_dir": str(tmp_path / "run"),
        "bf16": False,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as stop:
        main("finetuning/sft")(["--config", str(tmp_path / "config.yaml")])
    assert stop.value.code == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_template_that_ends_no_turn_is_refused(main, tiny, tmp_path, capfd):
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    config = {
        "model_name_or_path": str(tiny / "model"),
        "tokenizer_kwargs": {"chat_template": template},
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "dataset_test_split": None,
        "output_dir": str(tmp_path / "run"),
        "bf16": False,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        main("finetuning/sft")(["--config", str(tmp_path / "config.yaml")])
    assert "let the chat template end an assistant's turn with it" in capfd.readouterr().err


def test_a_tokenizer_that_writes_bos_writes_it_once(sft_trainer, tiny, tmp_path):
    """Its template begins with BOS too, as Llama's does."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer", bos_token="<|system|>")
    bos = tokenizer.bos_token_id
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", bos)]
    )
    tokenizer.save_pretrained(tmp_path / "bos")
    assert AutoTokenizer.from_pretrained(tmp_path / "bos")("a")["input_ids"][0] == bos
    for form in FORMS:
        trainer = sft_trainer(FORMS[form], tokenizer_name_or_path=str(tmp_path / "bos"), overwrite="always")
        for index in range(len(WORDS)):
            ids = trainer.train_dataset[index]["input_ids"]
            ids = ids if isinstance(ids, list) else ids.tolist()
            assert ids.count(bos) == 1, form
            assert ids[0] == bos
