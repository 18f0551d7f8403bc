"""Every algorithm: what it learns, what AutoTokenizer makes of it, what comes back, and what it refuses."""

import json
import math

import pytest
from transformers import AutoTokenizer

from recipes.core import UserError
from recipes.tokenization import sentencepiece_model
from recipes.tokenization.algorithms import learn, wrap
from recipes.tokenization.measure import measure
from recipes.tokenization.tokenizer_config import ALGORITHMS, SENTENCEPIECE, TokenizerConfig

LOSSLESS = {
    "byte_bpe": {},
    "sentencepiece_unigram": {},
    "sentencepiece_bpe": {},
    "sentencepiece_unigram, no prefix": {"add_dummy_prefix": False},
    "sentencepiece_bpe, no prefix": {"add_dummy_prefix": False},
}


def lossless(tokenizer_of, name):
    return tokenizer_of(name.partition(",")[0], **LOSSLESS[name])


# ----------------------------------------------------------------------------------------------------------- all of them
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_special_tokens_come_first_and_have_their_roles(tokenizer_of, algorithm):
    tokenizer = tokenizer_of(algorithm)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<pad>", "</s>", "<unk>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.bos_token is tokenizer.mask_token is None
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer("the fox")["input_ids"] == tokenizer("the fox", add_special_tokens=False)["input_ids"]
    assert tokenizer("fox</s>")["input_ids"][-1] == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_vocabulary_is_as_large_as_was_asked_for(corpus, method, algorithm):
    asked = {"unigram": 240, "wordpiece": 350}.get(algorithm, 400)
    size = learn(corpus, method(algorithm, vocab_size=asked)).get_vocab_size()
    if algorithm.endswith("unigram"):  # pruning stops at a share, and may leave fewer
        assert 0.95 * asked <= size <= asked
    else:
        assert size == asked


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_learned_is_used(tokenizer_of, corpus, algorithm):
    figures = measure(tokenizer_of(algorithm), corpus)
    assert figures["bytes_per_token"] > 2.5
    assert figures["unknown_share"] == 0
    assert figures["characters_kept_share"] == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_is_the_same_every_time(corpus, method, algorithm):
    first, second = (learn(corpus, method(algorithm)).to_str() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("model_type", ["bert", "bart", "t5", "llama", "gpt2", "xlnet", "albert"])
@pytest.mark.parametrize("algorithm", ["byte_bpe", "wordpiece", "sentencepiece_unigram"])
def test_beside_a_model_of_any_kind_it_stays_what_it_is(tokenizer_of, tmp_path, algorithm, model_type):
    """AutoTokenizer looks at the model's config too, and knows other tokenizers for these."""
    tokenizer = tokenizer_of(algorithm)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "the quick fox, jumps\n over"
    assert AutoTokenizer.from_pretrained(tmp_path)(text) == tokenizer(text)


def test_digits_stand_alone_where_that_is_asked_for(tokenizer_of, corpus):
    for algorithm in ("byte_bpe", "unigram", *SENTENCEPIECE):
        for split in (True, False):
            tokens = tokenizer_of(algorithm, split_digits=split).tokenize("in 1984 and")
            longest = max(sum(character.isdigit() for character in token) for token in tokens if "0x" not in token)
            assert longest == 1 if split else longest > 1, (algorithm, split, tokens)


# -------------------------------------------------------------------------------------------------------- special tokens
def test_the_templates_of_bert_bart_and_t5(tokenizer_of):
    bert = tokenizer_of(
        "wordpiece",
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        single_template="[CLS] $A [SEP]",
        pair_template="[CLS] $A [SEP] $B:1 [SEP]:1",
    )
    pair = bert("the fox", "the dog")
    assert bert.convert_ids_to_tokens(pair["input_ids"]) == ["[CLS]", "the", "fox", "[SEP]", "the", "dog", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert bert.convert_ids_to_tokens(bert("the fox")["input_ids"]) == ["[CLS]", "the", "fox", "[SEP]"]
    assert (bert.cls_token, bert.sep_token, bert.mask_token) == ("[CLS]", "[SEP]", "[MASK]")

    bart = tokenizer_of(
        "byte_bpe",
        bos_token="<s>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        single_template="<s> $A </s>",
        pair_template="<s> $A </s> </s> $B </s>",
    )
    ids = bart("a", "b")["input_ids"]
    assert bart.convert_ids_to_tokens(ids) == ["<s>", "a", "</s>", "</s>", "b", "</s>"]
    assert list(bart("a")) == ["input_ids", "attention_mask"]
    assert bart.bos_token_id == bart.cls_token_id != bart.eos_token_id == bart.sep_token_id

    t5 = tokenizer_of("unigram", sentinels=100, single_template="$A </s>", pair_template="$A </s> $B </s>")
    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    assert t5.convert_tokens_to_ids(sentinels) == list(range(3, 103))
    ids = t5("the <extra_id_0> fox")["input_ids"]
    assert ids.count(3) == 1
    assert ids[-1] == t5.eos_token_id
    assert t5.decode(ids, skip_special_tokens=True).split() == ["the", "fox"]
    assert set(sentinels) <= set(t5.all_special_tokens)


@pytest.mark.parametrize("algorithm", SENTENCEPIECE)
def test_sentencepiece_keeps_the_ids_of_all_special_tokens(tokenizer_of, algorithm):
    tokenizer = tokenizer_of(
        algorithm,
        bos_token="<s>",
        cls_token="<s>",
        mask_token="<mask>",
        sep_token="</s>",
        extra_special_tokens=["<|user|>"],
        sentinels=2,
    )
    expected = ["<pad>", "</s>", "<s>", "<unk>", "<mask>", "<|user|>", "<extra_id_0>", "<extra_id_1>"]
    assert tokenizer.convert_ids_to_tokens(range(8)) == expected
    ids = tokenizer("<|user|>fox<extra_id_1>")["input_ids"]
    assert (ids.count(5), ids.count(7)) == (1, 1)
    for text in ("fox<|user|>", "<mask>", "<extra_id_1>"):
        assert set(tokenizer(text)["input_ids"]) & set(range(4, 8))


# ------------------------------------------------------------------------------------------------------------ round trip
@pytest.mark.parametrize("name", LOSSLESS)
def test_ten_thousand_hard_lines_come_back_exactly(tokenizer_of, hard_lines, name):
    assert any("\ufffd" in line for line in hard_lines)
    tokenizer = lossless(tokenizer_of, name)
    lines = hard_lines
    if name.startswith("sentencepiece"):  # its sign for a space cannot be told from a space
        lines = [line.replace("▁", "_") for line in hard_lines]
    encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]
    assert [line for line, ids in zip(lines, encoded) if tokenizer.decode(ids) != line] == []
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)


@pytest.mark.parametrize("algorithm", SENTENCEPIECE)
def test_the_sign_for_a_space_comes_back_as_a_space(tokenizer_of, algorithm):
    tokenizer = tokenizer_of(algorithm)
    assert tokenizer.decode(tokenizer("a▁b")["input_ids"]) == "a b"


@pytest.mark.parametrize("algorithm", ["char_bpe", "wordpiece", "unigram"])
def test_those_that_lose_something_say_so(tokenizer_of, corpus, algorithm):
    tokenizer = tokenizer_of(algorithm)
    texts = [*corpus[:50], "Ω is unknown", "tab\tand  spaces"]
    figures = measure(tokenizer, texts)
    assert 0 < figures["unknown_share"] < 0.05
    assert figures["round_trip_share"] < 1
    assert 0.9 < figures["characters_kept_share"] < 1
    assert tokenizer.unk_token_id in tokenizer("Ω")["input_ids"]


def test_unigram_without_unknown_characters_loses_nothing(tokenizer_of, corpus):
    assert measure(tokenizer_of("unigram"), [*corpus, "  the  fox ", "\tfox\n"])["round_trip_share"] == 1


def test_without_byte_fallback_a_rare_character_is_unknown(tokenizer_of):
    tokenizer = tokenizer_of("sentencepiece_unigram", byte_fallback=False, character_coverage=0.98)
    assert tokenizer.tokenize("the Ω") == ["▁the", "▁", "Ω"]
    assert tokenizer("the Ω")["input_ids"][-1] == tokenizer.unk_token_id
    assert "<0x41>" not in tokenizer.get_vocab()


def test_normalisation_is_done_once_and_before_all_else(tokenizer_of):
    for algorithm in ("byte_bpe", "unigram", *SENTENCEPIECE):
        tokenizer = tokenizer_of(algorithm, normalization="nfkc")
        assert tokenizer("ｆｏｘ ﬁ")["input_ids"] == tokenizer("fox fi")["input_ids"]
    tokenizer = tokenizer_of("wordpiece", normalization="bert_lowercase")
    assert tokenizer("The FÓX")["input_ids"] == tokenizer("the fox")["input_ids"]
    assert tokenizer.tokenize("人工") == tokenizer.tokenize("人 工")  # BERT takes each ideograph for a word


# --------------------------------------------------------------------------------------------- sentencepiece, converted
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("algorithm", SENTENCEPIECE)
def test_the_converted_model_gives_the_pieces_of_the_library(
    corpus, method, hard_lines, algorithm, prefix, byte_fallback
):
    settings = method(algorithm, byte_fallback=byte_fallback, add_dummy_prefix=prefix)
    model = sentencepiece_model.train(corpus, settings)
    converted = sentencepiece_model.convert(model, settings)
    lines = [line.replace("<0x41>", "") for line in [*corpus, *hard_lines[:2000]]]
    different = 0
    for line in lines:
        ours, theirs = converted.encode(line).ids, model.encode(line)
        if ours != theirs:
            different += 1
            assert algorithm == "sentencepiece_unigram"
            scores = [sum(model.get_score(index) for index in ids) for ids in (ours, theirs)]
            assert math.isclose(*scores, rel_tol=1e-6), line  # segmentations of equal probability
    assert different < 0.02 * len(lines)


def test_chinese_and_japanese_need_no_cutting_into_words(tokenizer_of):
    for algorithm in SENTENCEPIECE:
        tokenizer = tokenizer_of(algorithm, vocab_size=700)
        pieces = tokenizer.tokenize("机器学习是人工智能的一个分支。吾輩は猫である。")
        assert "".join(pieces).lstrip("▁") == "机器学习是人工智能的一个分支。吾輩は猫である。"
        assert max(map(len, pieces)) >= 3
        assert len(pieces) < 18


# --------------------------------------------------------------------------------------------------------------- refused
REFUSED = {
    "no unknown": ({"algorithm": "wordpiece", "unk_token": None}, "'unk_token' is missing; wordpiece needs one"),
    "no unknown for sentencepiece": (
        {"algorithm": "sentencepiece_bpe", "unk_token": None},
        "'unk_token' is missing; sentencepiece_bpe needs one",
    ),
    "pad is eos": ({"pad_token": "</s>"}, "'pad_token' must differ from 'eos_token'"),
    "mask is unknown": ({"mask_token": "<unk>"}, "'mask_token' and 'unk_token' must differ, both are '<unk>'"),
    "bos is eos": ({"bos_token": "</s>"}, "'bos_token' and 'eos_token' must differ"),
    "empty token": ({"cls_token": " "}, "'cls_token' is empty"),
    "template without its token": (
        {"single_template": "[CLS] $A", "pair_template": "[CLS] $A $B"},
        "'single_template': '[CLS]' is none of the special tokens",
    ),
    "template without the text": (
        {"single_template": "</s>", "pair_template": "$A $B"},
        "'single_template' must name $A once",
    ),
    "pair without the second text": (
        {"single_template": "$A </s>", "pair_template": "$A </s>"},
        "'pair_template' must name $B once",
    ),
    "one template": ({"single_template": "$A </s>"}, "belong together"),
    "fallback without bytes": ({"algorithm": "unigram", "byte_fallback": True}, "'byte_fallback' is for"),
    "digits of WordPiece": ({"algorithm": "wordpiece", "split_digits": True}, "'split_digits' is for byte_bpe"),
    "frequency of nothing": ({"algorithm": "unigram", "min_frequency": 3}, "'min_frequency' is for byte_bpe"),
    "coverage above one": (
        {"algorithm": "sentencepiece_bpe", "character_coverage": 1.5},
        "'character_coverage' must be above 0",
    ),
    "normalisation that is not there": (
        {"algorithm": "sentencepiece_bpe", "normalization": "bert"},
        "sentencepiece has none, nfkc and nmt_nfkc",
    ),
    "no room for the bytes": ({"vocab_size": 258}, "'vocab_size' must be at least 259 (256 bytes"),
    "no room for the sentinels": (
        {"algorithm": "unigram", "vocab_size": 100, "sentinels": 100},
        "'vocab_size' must be at least 103 (the special tokens)",
    ),
    "fewer than no sentinels": ({"sentinels": -1}, "'sentinels' must be at least 0"),
}


@pytest.mark.parametrize(("settings", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_read(method, settings, expected):
    settings = {"algorithm": "byte_bpe", **settings}
    with pytest.raises(UserError, match=r"^[^\n]+$") as error:
        method(settings.pop("algorithm"), **settings)
    assert expected in str(error.value)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "byte_bpe"])
def test_a_vocabulary_smaller_than_the_alphabet_is_refused(corpus, method, algorithm):
    size = 280 if algorithm in SENTENCEPIECE else 20
    with pytest.raises(UserError, match="'vocab_size'"):
        learn(corpus, method(algorithm, vocab_size=size))


def test_with_a_limit_the_rare_characters_are_unknown(corpus, method):
    settings = method("char_bpe", vocab_size=80, limit_alphabet=30)
    tokenizer = wrap(learn(corpus, settings), settings)
    assert len(tokenizer) == 80
    assert sum(len(token) == 1 for token in tokenizer.get_vocab()) == 30
    assert measure(tokenizer, corpus)["unknown_share"] > 0


def test_texts_of_nothing_but_control_characters_teach_nothing(method):
    with pytest.raises(UserError, match="hold nothing that wordpiece could learn from"):
        learn(["\x01\x02"], method("wordpiece", normalization="bert"))


def test_the_defaults_are_those_of_the_quickstart_before():
    settings = TokenizerConfig()
    assert (settings.algorithm, settings.min_frequency, settings.normalization) == ("byte_bpe", 2, "none")
    assert settings.special_tokens == ["<|pad|>", "<|end|>"]
