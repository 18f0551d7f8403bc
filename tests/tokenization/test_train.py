"""The quickstart's tokenizer, made from a small text: nothing is lost, specials stay whole, one template for all."""

import json

import pytest

NASTY = {
    "empty": "",
    "spaces": "  two  spaces   three ",
    "tabs and newlines": "\ttab\r\n\r\nreturn\n\x0b\x0c end\n",
    "emoji": "👋🏽 family 👨‍👩‍👧‍👦 flag 🇳🇴 heart ❤️",
    "combining marks": "e\u0301 vs é, n\u0303, q\u0307\u0323, Z͑ͫ̓ͪ̂ͫ̽a̴l",
    "compatibility forms": "ﬁ ① ％ ｆｕｌｌ ² ℌ",
    "right to left": "שלום עולם \u202e مرحبا بالعالم \u202c",
    "Chinese, Japanese, Korean": "你好，世界 こんにちは 세계",
    "Indic and Thai": "नमस्ते दुनिया สวัสดีชาวโลก",
    "invisible": "zero\u200bwidth\u200djoiner\ufeffbom\u00a0nbsp\u00adshy\u2028line",
    "control characters": "\x00\x01\x07\x1b[31m\x7f",
    "outside the basic plane": "𝕬𐍈🜁𠜎",
    "private and last": "\ue000\uf8ff\U0010ffff",
    "numbers": "3.14159 1,000,000 007 1e-5 ½",
    "code": "def f(x):\n\treturn {'a': [1, 2], \"b\": x != y}  # ok\n",
    "contractions": "don't I'll they've 's 'S",
    "looks like the word mark": "Ġword Ċ ĉ",
    "looks like a special": "< |user| > <|user <|nobody|> |>",
    "long run": "a" * 1000 + " " * 300 + "!?" * 200,
}


@pytest.fixture(scope="module")
def trained(main, root_of_repository, tmp_path_factory):
    """The run's folder: the quickstart config with a smaller vocabulary and its own text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    sentence = "the quick brown fox jumps over the lazy dog and says hello to everyone in 1984 "
    texts = [sentence[start:] + sentence[:start] + sentence for start in range(0, len(sentence), 4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    configs = root_of_repository / "configs" / "tokenization" / "train"
    argv = ["--config", str(configs / "quickstart.yaml"), "--chat_template_path", str(configs / "chat_template.jinja")]
    argv += ["--dataset_name", str(folder / "rows.jsonl"), "--test_split_size", "0.2", "--vocab_size", "300"]
    main("tokenization/train")([*argv, "--output_dir", str(folder / "run")])
    return folder / "run"


@pytest.fixture(scope="module")
def root_of_repository(request):
    return request.config.rootpath


@pytest.fixture(scope="module")
def tokenizer(trained):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(trained)


@pytest.mark.parametrize("text", NASTY.values(), ids=NASTY)
def test_every_text_comes_back_as_it_went_in(tokenizer, text):
    for ids in (tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]):
        assert tokenizer.decode(ids) == text
        assert None not in ids


def test_every_byte_has_a_token(tokenizer):
    from tokenizers.pre_tokenizers import ByteLevel

    vocabulary = tokenizer.get_vocab()
    assert all(character in vocabulary for character in ByteLevel.alphabet())
    assert tokenizer.unk_token is None


def test_the_vocabulary_has_the_size_that_was_asked_for(tokenizer, trained):
    result = json.loads((trained / "result.json").read_text())
    assert len(tokenizer) == result["metrics"]["vocab_size"] == 300
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))
    assert result["metrics"]["round_trip_share"] == 1.0
    assert result["metrics"]["bytes_per_token"] > 1.5


def test_special_tokens_stay_whole_and_differ(tokenizer):
    specials = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    ids = tokenizer.convert_tokens_to_ids(specials)
    assert len(set(ids)) == len(specials)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    assert set(specials) <= set(tokenizer.all_special_tokens)
    for special, number in zip(specials, ids):
        for text in (special, f"a{special}b", f" {special} ", f"{special}{special}", f"1{special}\n"):
            assert tokenizer(text)["input_ids"].count(number) == text.count(special), text
    assert tokenizer.decode(tokenizer("a<|end|>b<|user|>")["input_ids"], skip_special_tokens=True) == "ab"


def test_digits_stand_alone(tokenizer):
    tokens = tokenizer.tokenize("in 1984 and 1984")
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("19841984")


def test_nothing_is_put_before_or_after_a_text(tokenizer):
    """There is no BOS, so that none can be doubled; EOS is the template's and the trainer's to write."""
    assert tokenizer.bos_token is None
    for text in NASTY.values():
        assert tokenizer(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


DIALOGUES = {
    "one turn": [("user", "hello"), ("assistant", "the fox says hello")],
    "with a system": [("system", "be brief"), ("user", "hello"), ("assistant", "hello")],
    "three turns": [
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
        ("assistant", "d"),
        ("user", "e"),
        ("assistant", "f"),
    ],
    "spaces and lines": [("user", " \n x "), ("assistant", "\n y \n\n")],
    "empty answer": [("user", "x"), ("assistant", "")],
}


@pytest.fixture(params=DIALOGUES.values(), ids=DIALOGUES)
def dialogue(request):
    return [{"role": role, "content": content} for role, content in request.param]


def test_the_prompt_is_a_prefix_of_the_whole(tokenizer, dialogue):
    for tokenize in (False, True):
        whole = tokenizer.apply_chat_template(dialogue, tokenize=tokenize, return_dict=False)
        for turn, message in enumerate(dialogue):
            if message["role"] == "assistant":
                prompt = tokenizer.apply_chat_template(
                    dialogue[:turn], tokenize=tokenize, add_generation_prompt=True, return_dict=False
                )
                assert whole[: len(prompt)] == prompt
        before = tokenizer.apply_chat_template(dialogue[:-1], tokenize=tokenize, return_dict=False)
        assert whole[: len(before)] == before


def test_every_answer_ends_with_eos_and_no_other_turn_does(tokenizer, dialogue):
    text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    answers = [message["content"] for message in dialogue if message["role"] == "assistant"]
    assert text.count("<|end|>") == len(answers)
    assert text.endswith(f"<|assistant|> {answers[-1]}<|end|>")
    ids = tokenizer.apply_chat_template(dialogue, return_dict=False)
    assert ids == tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id


def test_the_template_marks_the_answers_and_their_ends(tokenizer, dialogue):
    rendered = tokenizer.apply_chat_template(dialogue, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mask in zip(rendered["input_ids"], rendered["assistant_masks"]) if mask]
    answers = [message["content"] for message in dialogue if message["role"] == "assistant"]
    assert marked == tokenizer("".join(f" {answer}<|end|>" for answer in answers))["input_ids"]


def test_the_template_puts_a_space_before_each_content_and_changes_nothing_in_it(tokenizer, dialogue):
    text = tokenizer.apply_chat_template(dialogue, tokenize=False)
    expected = "".join(
        f"<|{message['role']}|> {message['content']}" + "<|end|>" * (message["role"] == "assistant")
        for message in dialogue
    )
    assert text == expected
