"""Film reviews: punctuation as people write it, splits that share no sentence, and files that are not as published."""

import json
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from recipes.core import UserError
from scripts import prepare_reviews
from scripts.prepare_reviews import containing, detokenize, letters, prepare

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = {f"{folder}/{split}" for folder in ("sft", "pairs", "prompts", "judge") for split in ("train", "test")}


@pytest.mark.parametrize(
    ("spaced", "text"),
    [
        ("jonathan parker 's bartleby should n't have been", "jonathan parker's bartleby shouldn't have been"),
        ("i 'm sure you 'll say they 've won ; we 'd not", "i'm sure you'll say they've won; we'd not"),
        ("this is no `` waterboy ! ''", 'this is no "waterboy!"'),
        ('the " lord of the rings " trilogy , " huge "', 'the "lord of the rings" trilogy, "huge"'),
        ("` possession , ' based on the book", "'possession,' based on the book"),
        ("` we do n't try . '", "'we don't try.'"),
        ("slopped ` em together", "slopped 'em together"),
        ("the filmmakers ' paws -lrb- the characters ' -rrb-", "the filmmakers' paws (the characters')"),
        ("ends . . . or ... not . .", "ends... or... not."),
        (" ( wendigo is ) why : to be fed [ twice ] ? ", "(wendigo is) why: to be fed [twice]?"),
        ("comedy\\/drama and\\/or m \\* a \\* s \\* h", "comedy/drama and/or m * a * s * h"),
        ("a $ 40 film , 50 % off", "a $40 film, 50% off"),
        ("just right -- funny , well-made , in the '70s", "just right -- funny, well-made, in the '70s"),
        ("clever \x97 another \x91what you don't see' and it\x12s", "clever -- another 'what you don't see' and it's"),
        ("dr . hannibal lecter", "dr. hannibal lecter"),
        ("  ", ""),
    ],
)
def test_detokenize(spaced, text):
    assert detokenize(spaced) == text
    assert detokenize(text) == text


def test_containing():
    texts = ["it's great. see it. i can't wait", "You will see it soon", "a truly wonderful, wonderful film", "no"]
    assert containing(texts, ["A truly wonderful , wonderful film ."]) == {2}
    assert containing(texts, ["wonderful , wonderful film"]) == {2}
    assert containing(texts, ["see it ."]) == {0}  # a short one stands by itself
    assert containing(texts, ["...", "nothing of the kind was ever said"]) == set()


# ------------------------------------------------------------------------------------------------------- made-up files
def write_zip(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def data(tmp_path):
    """A folder in the published formats: 60 snippets; SST-2 tests on 0–9 and 30–39 and trains on 9–19 and 40–49."""
    rng = Random(0)
    words = ["film", "plot", "cast", "wit", "charm", "noise", "love", "war", "song", "joke"]
    snippets = [f"number{n}x starts , it 's " + " ".join(rng.choices(words, k=8 + n % 5)) + " . " for n in range(60)]
    sentences = [detokenize(snippet).replace("it's", "it 's").replace(",", " ,") for snippet in snippets]
    folder = tmp_path / "data"
    write_zip(
        folder / "nltk_text/sentence_polarity.zip",
        {
            "sentence_polarity/README.txt": "about",
            "sentence_polarity/rt-polarity.pos": "\n".join(snippets[:30]) + "\n",
            "sentence_polarity/rt-polarity.neg": "\n".join([*snippets[30:], "too short .", snippets[59]]) + "\n",
        },
    )
    write_zip(
        folder / "nltk_text/movie_reviews.zip",
        {
            "movie_reviews/README": "about",
            "movie_reviews/pos/cv000_1.txt": 'good " film " . \n----\n a joy , really . \n',
            "movie_reviews/neg/cv000_2.txt": "bad film . \n",
        },
    )
    (folder / "sent_conv").mkdir()
    splits = {
        "test": [*((1, n) for n in range(10)), *((0, n) for n in range(30, 40))],
        "train": [*((1, n) for n in range(9, 20)), *((0, n) for n in range(40, 50))],  # 9 is in both
    }
    for split, rows in splits.items():
        lines = [f"{label} {sentences[number]}\n" for label, number in rows]
        (folder / f"sent_conv/stsa.binary.{split}").write_text("".join(lines), encoding="utf-8")
    return folder


def number(text):
    return int(re.search(r"number(\d+)x", text)[1])


def test_made_up_files(data):
    files = prepare(data)
    assert set(files) == FILES
    assert all(
        row["prompt"] + row["completion"] == detokenize(row["prompt"] + row["completion"])
        for row in files["sft/train"]
    )
    assert {row["prompt"] for row in files["sft/test"]} == {
        f"number{n}x starts, it's" for n in [*range(9), *range(30, 40)]
    }
    assert sorted(number(row["prompt"]) for row in files["sft/train"]) == [*range(10, 30), *range(40, 60)]
    assert {row["label"] for row in files["sft/train"] if number(row["prompt"]) < 30} == {"positive"}
    assert {row["prompt"] for row in files["prompts/test"]} == {row["prompt"] for row in files["sft/test"]}
    assert {row["prompt"] for row in files["prompts/train"]} == {row["prompt"] for row in files["sft/train"]}
    for split, numbers in {"train": range(10, 20), "test": range(10)}.items():
        assert {number(row["chosen"]) for row in files[f"pairs/{split}"]} <= set(numbers)
        assert all(number(row["rejected"]) >= 30 for row in files[f"pairs/{split}"])
    assert sorted(files["judge/train"], key=str) == [
        {"text": "a joy, really.", "label": "positive"},
        {"text": "bad film.", "label": "negative"},
        {"text": 'good "film".', "label": "positive"},
    ]
    assert Counter(row["label"] for row in files["judge/test"]) == {"positive": 10, "negative": 10}


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare_reviews", *map(str, arguments)])
    prepare_reviews.main()


def test_command_writes_the_same_files_again(data, tmp_path, monkeypatch, capsys):
    written = []
    for _ in range(2):
        command(monkeypatch, "--data", data, "--output_dir", tmp_path / "out")
        paths = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
        assert {str(path.relative_to(tmp_path / "out")) for path in paths} == {f"{name}.jsonl" for name in FILES}
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in FILES
    }
    assert rows == prepare(data)
    assert f"{tmp_path}/out/judge/train.jsonl: 3 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    "missing", ["nltk_text/sentence_polarity.zip", "nltk_text/movie_reviews.zip", "sent_conv/stsa.binary.test"]
)
def test_missing_file(data, tmp_path, monkeypatch, capsys, missing):
    (data / missing).unlink()
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, "--data", data, "--output_dir", tmp_path / "out")
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert (
        error == f"error: {data}/{missing}: no such file or directory; see: python -m scripts.prepare_reviews --help\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("nltk_text/movie_reviews.zip", b"not an archive", "movie_reviews.zip: File is not a zip file"),
        ("sent_conv/stsa.binary.train", b"1 fine\n2 stars\n", "stsa.binary.train:2: must be 0 or 1"),
        ("sent_conv/stsa.binary.train", b"1 fine\n0 \n", "stsa.binary.train:2: must be 0 or 1"),
        ("sent_conv/stsa.binary.train", b"", "stsa.binary.train:1: must be 0 or 1"),
        ("sent_conv/stsa.binary.train", b"1 caf\xe9\n", "stsa.binary.train: not UTF-8 text"),
        ("sent_conv/stsa.binary.train", b"1 just one side\n", "nothing is left for pairs/train.jsonl"),
    ],
)
def test_files_that_are_not_as_published(data, file, content, message):
    (data / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        prepare(data)


def test_archive_that_is_not_as_published(data):
    archive = data / "nltk_text/sentence_polarity.zip"
    write_zip(archive, {"sentence_polarity/rt-polarity.pos": "a film"})
    with pytest.raises(UserError, match="not both positive and negative"):
        prepare(data)
    write_zip(archive, {"sentence_polarity/rt-polarity.pos": "caf\xe9".encode("latin-1")})
    with pytest.raises(UserError, match=r"rt-polarity\.pos: not UTF-8 text"):
        prepare(data)


# ---------------------------------------------------------------------------------------------------------- real files
@pytest.fixture(scope="module")
def real():
    return prepare(REAL_DATA)


@pytest.fixture(scope="module")
def sst():
    """The sentences of SST-2's splits, by letters and digits."""
    lines = {
        split: (REAL_DATA / f"sent_conv/stsa.binary.{split}").read_text(encoding="utf-8").strip().split("\n")
        for split in ("train", "test")
    }
    return {split: {letters(detokenize(line[2:])) for line in some} for split, some in lines.items()}


def sentences(rows):
    return [letters(row["prompt"] + row["completion"]) for row in rows]


@pytest.mark.real_data
def test_sizes(real):
    assert {name: len(rows) for name, rows in real.items()} == {
        "sft/train": 7953,
        "sft/test": 1512,
        "pairs/train": 3213,
        "pairs/test": 839,
        "prompts/train": 4000,
        "prompts/test": 400,
        "judge/train": 64563,
        "judge/test": 1821,
    }
    for name, rows in real.items():
        assert all(list(row) == list(rows[0]) and all(value.strip() for value in row.values()) for row in rows), name


@pytest.mark.real_data
def test_held_out_sentences_are_in_no_training_file(real, sst):
    train, test = (sentences(real[f"sft/{split}"]) for split in ("train", "test"))
    assert len({*train, *test}) == len(train) + len(test)
    everything = "\n".join(train)
    for sentence in test:
        assert sentence not in everything
        assert not any(trained in sentence for trained in sst["train"] if len(trained) >= prepare_reviews.SHORT)
    assert not [held for held in sst["test"] if len(held) >= prepare_reviews.SHORT and held in everything]
    assert sst["test"].isdisjoint(train)
    pairs = {
        split: {letters(row[side]) for row in real[f"pairs/{split}"] for side in ("chosen", "rejected")}
        for split in ("train", "test")
    }
    assert pairs["train"] <= sst["train"] - sst["test"]
    assert pairs["test"] <= sst["test"]
    assert {letters(row["text"]) for row in real["judge/test"]} == sst["test"]
    reviews = {letters(row["text"]) for row in real["judge/train"]}
    assert all(len(shared) < prepare_reviews.SHORT + 4 for shared in reviews & sst["test"])  # "a very funny movie."


@pytest.mark.real_data
def test_openings_are_distinct_and_begin_held_out_sentences(real):
    train, test = ([row["prompt"] for row in real[f"prompts/{split}"]] for split in ("train", "test"))
    assert len({*train, *test}) == len(train) + len(test)
    assert set(train) <= {row["prompt"] for row in real["sft/train"]}
    assert set(test) <= {row["prompt"] for row in real["sft/test"]}
    assert not {row["prompt"] for row in real["sft/train"]} & set(test)


@pytest.mark.real_data
def test_length_does_not_tell_the_better_sentence(real):
    for split in ("train", "test"):
        pairs = real[f"pairs/{split}"]
        assert all(len(row["chosen"].split()) == len(row["rejected"].split()) for row in pairs)
        assert 0.45 < sum(len(row["chosen"]) > len(row["rejected"]) for row in pairs) / len(pairs) < 0.57
        used = [row[side] for row in pairs for side in ("chosen", "rejected")]
        assert len(set(used)) == len(used)


@pytest.mark.real_data
def test_prompt_tokens_begin_the_tokens_of_the_whole(real):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REAL_DATA / "stories260k/hf")
    for row in [*real["sft/train"][:1000], *real["sft/test"][:1000]]:
        text = row["prompt"] + row["completion"]
        prompt, whole = (tokenizer(some)["input_ids"] for some in (row["prompt"], text))
        assert whole[: len(prompt)] == prompt
        assert tokenizer.unk_token_id not in whole
        assert tokenizer.decode(whole, skip_special_tokens=True) == text
