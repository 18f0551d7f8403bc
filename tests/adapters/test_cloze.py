"""Cloze questions: where the pieces of a template come to stand, in masked models and in decoders."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from recipes.adapters.cloze import ClozeTemplate, Piece, Verbalizer
from recipes.core.errors import UserError

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "it",
    "was",
    ".",
    "a",
    "fine",
    "bad",
    "good",
    "film",
    "premise",
    "hypothesis",
    "yes",
    "?",
    "long",
    "##er",
]
IDS = {word: number for number, word in enumerate(WORDS)}
VOCABULARY = len(WORDS)


@pytest.fixture(scope="module")
def masked() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with BERT's special tokens."""
    backend = Tokenizer(models.WordPiece(IDS, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])]
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture
def decoder(tiny):
    """Byte-level BPE, which has blanks in its tokens, and no mask."""
    return AutoTokenizer.from_pretrained(tiny / "tokenizer")


def shown(row: dict) -> str:
    return " ".join(WORDS[i] if i < VOCABULARY else f"P{i - VOCABULARY}" for i in row["input_ids"])


def encode(template, tokenizer, max_length=64, **row):
    return ClozeTemplate(template).encode(tokenizer, row, vocabulary=VOCABULARY, max_length=max_length)


def test_pieces():
    assert ClozeTemplate("[P]*2 {text} It was [MASK] .").pieces == (
        Piece("pseudo"),
        Piece("pseudo"),
        Piece("column", "text", " "),
        Piece("text", "It was", " "),
        Piece("gap", space=" "),
        Piece("text", ".", " "),
    )
    assert [piece.kind for piece in ClozeTemplate("{a}[P]{b}[MASK]").pieces] == ["column", "pseudo", "column", "gap"]


def test_a_masked_model_reads_the_gap(masked):
    row = encode("[P]*2 {text} [P] it was [MASK] .", masked, text="a fine film")
    assert shown(row) == "[CLS] P0 P1 a fine film P2 it was [MASK] . [SEP]"
    assert row["input_ids"][row["answer_position"]] == masked.mask_token_id
    assert row["attention_mask"] == [1] * len(row["input_ids"])


def test_two_texts(masked):
    row = encode("{premise} ? [MASK] [P] {hypothesis}", masked, premise="a fine film", hypothesis="it was good")
    assert shown(row) == "[CLS] a fine film ? [MASK] P0 it was good [SEP]"


def test_without_pseudo_tokens_it_is_the_tokenizers_own_reading(masked):
    row = encode("{text} it was [MASK] .", masked, text="a fine film")
    assert row["input_ids"] == masked("a fine film it was [MASK] .")["input_ids"]


def test_a_decoder_answers_at_the_end(decoder):
    row = encode("[P] {text} one two[MASK]", decoder, text="the dog")
    assert row["input_ids"][0] == VOCABULARY
    assert row["input_ids"][1:] == decoder(" the dog one two", add_special_tokens=False)["input_ids"]
    assert row["answer_position"] == len(row["input_ids"]) - 1


def test_blanks_of_byte_level_vocabularies_stay(decoder):
    row = encode("{text} one[MASK]", decoder, text="  the dog ")
    assert row["input_ids"] == decoder("the dog one", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("max_length", "kept"), [(64, (4, 2)), (11, (3, 2)), (10, (2, 2)), (9, (1, 2)), (8, (1, 1))])
def test_the_longest_text_is_cut_first(masked, max_length, kept):
    row = encode("{a} [P] {b} it was [MASK]", masked, max_length, a="a a a a", b="fine fine")
    ids = row["input_ids"]
    assert (ids.count(IDS["a"]), ids.count(IDS["fine"])) == kept
    assert len(ids) <= max_length
    assert ids[row["answer_position"]] == masked.mask_token_id


def test_a_template_without_room_is_refused(masked):
    with pytest.raises(UserError, match=r"longer than max_length \(5 tokens\) without any text"):
        encode("{text} it was [MASK] .", masked, 5, text="a")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text} it was .", r"must have one \[MASK\], not 0"),
        ("{text} [MASK] [MASK]", r"must have one \[MASK\], not 2"),
        ("it was [MASK]", "must name the column of the text"),
    ],
)
def test_what_is_no_template_is_refused(template, message):
    with pytest.raises(UserError, match=message):
        ClozeTemplate(template)


def test_columns_and_the_gap_are_checked(masked, decoder):
    template = ClozeTemplate("{text} it was [MASK] .")
    template.check(masked, ["text", "label"])
    with pytest.raises(UserError, match="no column 'text'; did you mean 'texts'"):
        template.check(masked, ["texts", "label"])
    with pytest.raises(UserError, match=r"reads from left to right: \[MASK\] must be last"):
        template.check(decoder, ["text"])
    ClozeTemplate("{text} it was [MASK]").check(decoder, ["text"])


def test_scores_are_the_logits_of_the_words_at_the_gap(masked):
    words = Verbalizer({"neg": "bad", "pos": ["good", "fine"]}, masked, ClozeTemplate("{text} [MASK]"))
    logits = torch.randn(2, 6, VOCABULARY)
    scores = words.scores(logits, torch.tensor([3, 5]))
    for row, place in enumerate((3, 5)):
        at = logits[row, place]
        assert scores[row, 0] == at[IDS["bad"]]
        assert scores[row, 1] == (at[IDS["good"]] + at[IDS["fine"]]) / 2


def test_a_word_is_looked_up_as_it_would_stand(decoder):
    after_blank = Verbalizer({"x": "the"}, decoder, ClozeTemplate("{text} [MASK]"))
    at_once = Verbalizer({"x": "the"}, decoder, ClozeTemplate("{text}[MASK]"))
    assert decoder.decode(after_blank.tokens["x"]) == " the"
    assert decoder.decode(at_once.tokens["x"]) == "the"


def test_a_word_of_several_tokens_is_refused(masked):
    template = ClozeTemplate("{text} [MASK]")
    with pytest.raises(UserError, match="'longer' must be one token of the vocabulary, not 2: long ##er"):
        Verbalizer({"a": "bad", "b": "longer"}, masked, template)
    with pytest.raises(UserError, match=r"'wonderful' must be one token of the vocabulary, not 1: \[UNK\]"):
        Verbalizer({"a": "bad", "b": "wonderful"}, masked, template)
    with pytest.raises(UserError, match="'a' and 'b' have the word 'bad'"):
        Verbalizer({"a": "bad", "b": "bad"}, masked, template)
