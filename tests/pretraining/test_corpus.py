"""A streamed corpus is the corpus in memory: same tokens, same losses, from any kind of file; its mistakes are named."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

WORDS = ["alpha", "beta", "gamma", "delta", "Ünïcode", "漢字", "🙂", "tab\there", "x" * 30]


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny / "tokenizer")


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_a_text_are_left_out_where_that_is_asked(streaming, tokenizer, tmp_path):
    from recipes.core import UserError

    rows = texts(8)
    write(tmp_path / "whole.jsonl", rows)
    write(tmp_path / "gaps.jsonl", ["", *rows[:4], "  ", *rows[4:]])
    settings = {"dataset_test_split": None, "dataset_streaming": streaming}
    kept = tokens(tmp_path / "gaps.jsonl", tokenizer, drop_empty_rows=True, **settings)["train"].ids
    assert np.array_equal(kept[:], tokens(tmp_path / "whole.jsonl", tokenizer, **settings)["train"].ids[:])
    with pytest.raises(UserError, match="row 1, column 'text': is empty; drop_empty_rows: true leaves such rows out"):
        tokens(tmp_path / "gaps.jsonl", tokenizer, **settings)


def write(path, rows: list[str], column: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".txt":
        path.write_text("\n\n".join(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps([{column: text} for text in rows]))
    else:
        from datasets import Dataset

        dataset = Dataset.from_dict({column: rows})
        dataset.to_parquet(path) if path.suffix == ".parquet" else dataset.to_csv(path)


def tokens(name, tokenizer, separator=1, **settings) -> dict:
    from recipes.pretraining.corpus import CorpusConfig

    return CorpusConfig(dataset_name=str(name), **settings).tokens(tokenizer, separator)


def by_hand(rows: list[str], tokenizer, separator=1) -> list[int]:
    end = [] if separator is None else [separator]
    return [token for text in rows for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], *end]]


@pytest.mark.parametrize("separator", [1, None])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt", ".parquet", ".csv"])
def test_a_streamed_file_has_the_tokens_of_the_file_in_memory(suffix, separator, tokenizer, tmp_path):
    rows = {"train": texts(300), "test": texts(40, seed=1)}
    for split in rows:
        write(tmp_path / f"{split}{suffix}", rows[split])
    memory = tokens(tmp_path, tokenizer, separator)
    stream = tokens(tmp_path, tokenizer, separator, dataset_streaming=True)
    for split in rows:
        expected = by_hand(rows[split], tokenizer, separator)
        assert memory[split].ids.tolist() == expected
        assert len(stream[split].ids) == len(expected)
        assert stream[split].ids[:].tolist() == expected
        assert stream[split].ids[7:19].tolist() == expected[7:19]
        assert stream[split].ids[-5:].tolist() == expected[-5:]
        assert memory[split].bytes == stream[split].bytes == sum(len(text.encode()) for text in rows[split])


def test_pieces_are_put_together_without_a_seam(tokenizer, tmp_path, monkeypatch):
    """Far less is read and tokenized at once than a document is long."""
    from recipes.pretraining import corpus

    rows = texts(200)
    for suffix in (".jsonl", ".txt"):
        write(tmp_path / f"train{suffix}", rows)
    expected = by_hand(rows, tokenizer)
    for piece in (16, 100, 1000):
        monkeypatch.setattr(corpus, "PIECE", piece)
        for suffix in (".jsonl", ".txt"):
            read = list(corpus.read(tmp_path / f"train{suffix}", "text"))
            assert read == rows
            parts = [ids for ids, _ in corpus.encode(read, tokenizer, 1)]
            assert len(parts) > 1
            assert np.concatenate(parts).tolist() == expected


def test_a_folder_of_any_number_of_files(tokenizer, tmp_path):
    rows = texts(90)
    for part in range(3):
        write(tmp_path / "a" / "train" / f"part-{part}.jsonl", rows[30 * part : 30 * part + 30], "content")
        write(tmp_path / "b" / f"{part}{['.jsonl', '.parquet', '.txt'][part]}", rows[30 * part : 30 * part + 30])
    write(tmp_path / "a" / "test-00000-of-00001.parquet", rows[:5], "content")
    (tmp_path / "a" / "README.md").write_text("not data")
    both = tokens(tmp_path / "a", tokenizer, dataset_streaming=True, dataset_columns={"text": "content"})
    assert both["train"].ids[:].tolist() == by_hand(rows, tokenizer)
    assert both["test"].ids[:].tolist() == by_hand(rows[:5], tokenizer)
    alone = tokens(tmp_path / "b", tokenizer, dataset_streaming=True, dataset_test_split=None)
    assert list(alone) == ["train"]
    assert alone["train"].ids[:].tolist() == by_hand(rows, tokenizer)


def test_documents_are_drawn_for_the_test_split_once_and_for_all(tokenizer, tmp_path):
    rows = [f"{number} {text}" for number, text in enumerate(texts(2000))]
    write(tmp_path / "all.jsonl", rows)
    settings = {"dataset_streaming": True, "test_split_size": 0.1}

    def documents(part) -> list[str]:
        return tokenizer.decode(part.ids[:]).split(tokenizer.eos_token)[:-1]

    drawn = tokens(tmp_path / "all.jsonl", tokenizer, **settings)
    train, test = documents(drawn["train"]), documents(drawn["test"])
    assert sorted([*train, *test]) == sorted(rows)
    assert train == [text for text in rows if text in set(train)], "in the order of the file"
    assert abs(len(test) - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5
    other = tokens(tmp_path / "all.jsonl", tokenizer, **settings, dataset_seed=1)
    assert set(documents(other["test"])) != set(test)
    few = tokens(tmp_path / "all.jsonl", tokenizer, **settings, max_train_samples=7, max_test_samples=3)
    assert documents(few["train"]) == train[:7]
    assert documents(few["test"]) == test[:3]


def test_the_text_is_tokenized_once_for_each_tokenizer_and_again_when_it_changes(tokenizer, tmp_path, monkeypatch):
    from recipes.pretraining import corpus

    written = []
    write_file = corpus._write
    monkeypatch.setattr(corpus, "_write", lambda *args: written.append(args[0]) or write_file(*args))
    write(tmp_path / "train.jsonl", texts(20))

    def read() -> list[int]:
        return tokens(tmp_path, tokenizer, dataset_streaming=True, dataset_test_split=None)["train"].ids[:].tolist()

    first = read()
    assert read() == first
    assert len(written) == 1
    write(tmp_path / "train.jsonl", texts(21))
    assert read() == by_hand(texts(21), tokenizer)
    assert len(set(written)) == 2
    tokens(tmp_path, tokenizer, separator=None, dataset_streaming=True, dataset_test_split=None)
    assert len(set(written)) == 3


def test_what_was_half_written_is_written_anew(tokenizer, tmp_path, monkeypatch):
    from recipes.pretraining import corpus

    write(tmp_path / "train.jsonl", texts(50))
    monkeypatch.setattr(corpus, "PIECE", 200)
    encode = corpus.encode

    def stop_early(*args):
        for index, piece in enumerate(encode(*args)):
            if index == 3:
                raise KeyboardInterrupt
            yield piece

    settings = {"dataset_streaming": True, "dataset_test_split": None}
    monkeypatch.setattr(corpus, "encode", stop_early)
    with pytest.raises(KeyboardInterrupt):
        tokens(tmp_path, tokenizer, **settings)
    monkeypatch.setattr(corpus, "encode", encode)
    assert tokens(tmp_path, tokenizer, **settings)["train"].ids[:].tolist() == by_hand(texts(50), tokenizer)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_corpus_gives_the_losses_of_the_corpus_in_memory(workers, main, job, log_of, tmp_path):
    for split, seed in (("train", 0), ("test", 1)):
        write(tmp_path / "data" / f"{split}.jsonl", texts(80, seed))

    def run(*more: str) -> list[dict]:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        name = ["--dataset_name", str(tmp_path / "data"), "--test_split_size", "null", "--logging_steps", "1"]
        main("pretraining/causal")(job("pretraining/causal", folder, *name, *more))
        result = json.loads((folder / "result.json").read_text())
        return [*log_of(folder), result["metrics"], result["baselines"]]

    streamed = run("--dataset_streaming", "true", "--dataloader_num_workers", str(workers))
    assert streamed == run("--dataset_streaming", "false")
    assert len([entry for entry in streamed if "grad_norm" in entry]) == 6


MISTAKES = {
    "empty row": ('{"text": "a b"}\n{"text": " "}\n', "bad.jsonl row 2, column 'text': is empty"),
    "number for text": ('{"text": 5}\n', "bad.jsonl row 1, column 'text': must be text, not 5"),
    "not JSON": ('{"text": "a"}\n{"text": \n', "bad.jsonl: row 2: not valid JSON"),
    "not UTF-8": (b'{"text": "\xff\xfe"}\n', "bad.jsonl: row 1: not UTF-8 text"),
    "no such column": ('{"body": "a"}\n', "needs the column 'text', has body"),
    "empty file": ("", "bad.jsonl: is empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_data_is_one_line_and_nothing_is_written(name, main, job, tmp_path, capfd):
    content, expected = MISTAKES[name]
    (tmp_path / "bad.jsonl").write_bytes(content if isinstance(content, bytes) else content.encode())
    data = ["--dataset_name", str(tmp_path / "bad.jsonl"), "--dataset_streaming", "true"]
    with pytest.raises(SystemExit) as stopped:
        main("pretraining/causal")(job("pretraining/causal", tmp_path / "run", *data))
    assert stopped.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert not (tmp_path / "run").exists()


def test_a_corpus_without_a_test_split_says_what_to_do(tokenizer, tmp_path):
    from recipes.core import UserError

    write(tmp_path / "all.jsonl", texts(5))
    with pytest.raises(UserError, match=r"test_split_size: 0\.05"):
        tokens(tmp_path / "all.jsonl", tokenizer, dataset_streaming=True)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="holds no file of a known kind"):
        tokens(tmp_path / "nothing", tokenizer, dataset_streaming=True)


def test_embedded_text_can_be_streamed_too(tokenizer, monkeypatch):
    from recipes.embedded import text

    rows = {"train": [{"text": each} for each in texts(30)], "test": [{"text": each} for each in texts(9, seed=1)]}
    monkeypatch.setattr(text, "documents", lambda seed: rows)
    for streaming in (False, True):
        found = tokens("embedded/text", tokenizer, dataset_streaming=streaming)
        for split in rows:
            assert found[split].ids[:].tolist() == by_hand([row["text"] for row in rows[split]], tokenizer)


def test_each_split_of_a_streamed_hub_dataset_is_its_own(tokenizer, monkeypatch):
    import datasets
    import huggingface_hub

    from recipes.pretraining.corpus import CorpusConfig

    source = {name: datasets.Dataset.from_dict({"text": [f"{name} text"]}) for name in ("train", "test")}
    streamed = {name: rows.to_iterable_dataset() for name, rows in source.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: streamed)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="0"))
    found = CorpusConfig("somebody/texts", dataset_streaming=True).tokens(tokenizer, separator=None)
    assert {name: tokenizer.decode(each.ids[:]) for name, each in found.items()} == {
        "train": "train text",
        "test": "test text",
    }
