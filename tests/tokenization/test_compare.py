"""The comparison on two small corpora, published tokenizers in every form, and how its corpora are prepared."""

import gzip
import json
from pathlib import Path

import pytest

from recipes.core import UserError
from recipes.tokenization.compare import CompareConfig, corpus_name
from recipes.tokenization.measure import measure
from recipes.tokenization.published import open_published
from recipes.tokenization.tokenizer_config import ALGORITHMS
from scripts.prepare_languages import poems, prepare

REAL_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def test_a_tokenizer_written_in_python_is_measured_too():
    from transformers import ByT5Tokenizer

    figures = measure(ByT5Tokenizer(), ["plain words", "Ünïcode"])
    assert (figures["bytes_per_token"], figures["round_trip_share"]) == (1.0, 1.0)


@pytest.fixture(scope="module")
def compared(main, corpus, tokenizer_of, tmp_path_factory):
    """The folder of a comparison of all six and one that is published, on two corpora."""
    folder = tmp_path_factory.mktemp("compare")
    english = [text for text in corpus if text.isascii()]
    for name, texts in {"english": english, "mixed": [text for text in corpus if not text.isascii()]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer_of("wordpiece").save_pretrained(folder / "made-before")
    (folder / "config.yaml").write_text("vocab_size: 600\n")
    main("tokenization/compare")(
        ["--config", str(folder / "config.yaml"), "--output_dir", str(folder / "run"), "--test_split_size", "0.2"]
        + ["--dataset_name", str(folder / "english.jsonl"), str(folder / "mixed.jsonl")]
        + ["--published", f"[{folder / 'made-before'}]", "--repeats", "1"]
    )
    return folder / "run"


def test_every_tokenizer_is_measured_on_every_corpus(compared):
    result = json.loads((compared / "result.json").read_text())
    table = result["metrics"]["tokenizers"]
    assert list(table) == [*ALGORITHMS, "made-before"]
    for name, row in table.items():
        assert list(row["corpora"]) == ["english", "mixed"]
        assert row["megabytes_per_second"] > 0
        assert (row["training_seconds"] is None) == (name == "made-before")
        assert row["vocab_size"] <= 600
        assert all(0 < figures["tokens_per_character"] < 1 for figures in row["corpora"].values())
    assert result["metrics"]["lossless_round_trip_share"] == 1
    assert result["metrics"]["bytes_per_token_unigram"] > 2


def test_the_table_and_the_plot_are_there(compared):
    lines = (compared / "table.md").read_text().splitlines()
    assert len(lines) == 2 + 2 * 7
    assert len({line.count("|") for line in lines}) == 1
    assert (compared / "plot.png").stat().st_size > 10_000


def test_a_corpus_is_called_by_its_file():
    assert corpus_name("runs/data/languages/chinese") == corpus_name("data/chinese.jsonl") == "chinese"


REFUSED = {
    "unknown": ({"algorithms": ["unigramm"]}, "'algorithms': no 'unigramm'; did you mean 'unigram'?"),
    "none": ({"algorithms": []}, "'algorithms' is empty"),
    "too small": ({"vocab_size": 200}, "'vocab_size' must be at least 259"),
    "never timed": ({"repeats": 0}, "'repeats' must be at least 1"),
}


@pytest.mark.parametrize(("settings", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused(settings, expected):
    with pytest.raises(UserError) as error:
        CompareConfig(**settings)
    assert expected in str(error.value)


# ------------------------------------------------------------------------------------------------------------- published
def test_a_published_wordpiece_file_is_opened(tmp_path):
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fox", "##es"]) + "\n"
    )
    tokenizer = open_published(str(tmp_path))
    assert tokenizer.tokenize("Foxes dog") == ["fox", "##es", "[UNK]"]


def test_published_merges_are_opened(tmp_path):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nf o\nfo x\nĠ fox\n")
    vocabulary = [*letters, "fo", "fox", "Ġfox", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    assert open_published(str(tmp_path)).tokenize("fox foxes") == ["fox", "Ġfox", "e", "s"]

    clip = tmp_path / "clip"
    clip.mkdir()
    with gzip.open(clip / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as file:
        file.write('"bpe_simple_vocab_16e6.txt#version: 0.2\nf o\nfo x</w>\n')
    assert open_published(str(clip)).tokenize("Fox foxes") == ["fox</w>", "fo", "x", "e", "s</w>"]


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=r"^published: .* holds none of"):
        open_published(str(tmp_path))
    with pytest.raises(UserError, match=r"^published: no tokenizer could be opened at "):
        open_published(str(tmp_path / "nowhere"))


PUBLISHED = {  # how each cuts a sentence, as its paper's library does; sizes as in the papers and model cards
    "tok_bert": (30_522, "unaffable people", ["una", "##ffa", "##ble", "people"]),
    "tok_bert_zh": (21_128, "人工智能 AI", ["人", "工", "智", "能", "ai"]),
    "tok_gpt2": (50_257, "Hello world", ["Hello", "Ġworld"]),
    "tok_clip": (49_408, "Hello world", ["hello</w>", "world</w>"]),
    "tok_t5": (32_100, "Hello world", ["▁Hello", "▁world"]),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_tokenizers_are_opened(name):
    size, text, tokens = PUBLISHED[name]
    tokenizer = open_published(str(REAL_DATA / name))
    assert len(tokenizer) == size
    assert tokenizer.tokenize(text) == tokens


@pytest.mark.real_data
def test_t5_is_cut_as_by_sentencepiece():
    import sentencepiece

    tokenizer = open_published(str(REAL_DATA / "tok_t5"))
    model = sentencepiece.SentencePieceProcessor(model_file=str(REAL_DATA / "tok_t5" / "t5_vocab"))
    text = (REAL_DATA / "wikitext2" / "test.txt").read_text(encoding="utf-8").replace("<unk>", "unknown")
    lines = [line.strip() for line in text.splitlines() if line.strip()][:500]
    assert [tokenizer.tokenize(line) for line in lines] == [model.encode(line, out_type=str) for line in lines]


# --------------------------------------------------------------------------------------------------------------- corpora
def test_poems_are_found_however_deep():
    nested = {"content": [{"title": "a", "content": [{"paragraphs": ["x", "y"], "tags": ["no"]}]}, {"para": ["z"]}]}
    assert list(poems([nested, {"content": ["v", "w"], "abstract": ["no"]}])) == ["x\ny", "z", "v\nw"]


@pytest.mark.real_data
def test_the_languages_are_real_and_held_out_texts_are_not_trained_on():
    languages = prepare(REAL_DATA)
    assert list(languages) == ["english", "chinese", "japanese"]
    for splits in languages.values():
        assert not set(splits["train"]) & set(splits["test"])
        assert 0.08 < len(splits["test"]) / sum(map(len, splits.values())) < 0.12
    chinese = "".join(languages["chinese"]["train"])
    assert len(chinese) > 800_000
    assert sum("\u4e00" <= character <= "\u9fff" for character in chinese) > 0.7 * len(chinese)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tiny-shakespeare\.txt: no such file"):
        prepare(tmp_path)
