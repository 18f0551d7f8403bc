"""English, Chinese and Japanese for tokenization/compare: from public files as they are published to one JSONL file a split.

Reads DATA/tinyshakespeare and the questions of DATA/gsm8k (github.com/openai/grade-school-math, MIT) as English,
DATA/chinese_poetry (github.com/chinese-poetry/chinese-poetry, MIT) and DATA/belle_zh (github.com/LianjiaTech/BELLE,
ODC-By 1.0) as Chinese, and the Japanese names of emoji in DATA/emoji_captions (Unicode CLDR) as Japanese.

A text that occurs twice is written once. Which split it is in follows from its hash alone: one in ten is held out.

Run: python -m scripts.prepare_languages --data ../shared/data --output_dir runs/data/languages
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, write_text

TEST_SHARE = 0.1
LINES = ("paragraphs", "content", "para")  # what the poems call their lines
HELP = "see: python -m scripts.prepare_languages --help"


def english(data: Path) -> Iterator[str]:
    """Speeches of Shakespeare, and problems of primary-school arithmetic."""
    yield from read(data / "tinyshakespeare" / "tiny-shakespeare.txt").split("\n\n")
    for name in ("train", "test"):
        for line in read(data / "gsm8k" / f"{name}.jsonl").splitlines():
            yield json.loads(line)["question"]


def chinese(data: Path) -> Iterator[str]:
    """Poems and classics of three thousand years, and instructions with answers of today."""
    for file in sorted((data / "chinese_poetry").glob("*/*.json")):
        yield from poems(json.loads(read(file)))
    for line in read(data / "belle_zh" / "eval" / "eval_set.json").splitlines():
        row = json.loads(line)
        yield from (row["question"], row["std_answer"])
    for line in read(data / "belle_zh" / "data" / "1.5M" / "zh_seed_tasks.json").splitlines():
        task = json.loads(line)
        yield task["instruction"]
        yield from (instance["output"] for instance in task["instances"])


def japanese(data: Path) -> Iterator[str]:
    """What each emoji is called."""
    for line in read(data / "emoji_captions" / "captions.jsonl").splitlines():
        yield json.loads(line)["ja"]


def poems(value: Any) -> Iterator[str]:
    """Every poem or chapter, its lines joined, however deep it stands in the file."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in LINES and isinstance(inner, list) and all(isinstance(line, str) for line in inner):
                yield "\n".join(inner)
            else:
                yield from poems(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from poems(inner)


def read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror.lower()}; {HELP}") from None


def prepare(data: Path) -> dict[str, dict[str, list[str]]]:
    """The texts of each split, by language."""
    languages = {}
    for language, texts in {"english": english, "chinese": chinese, "japanese": japanese}.items():
        splits: dict[str, list[str]] = {"train": [], "test": []}
        for text in dict.fromkeys(text.strip() for text in texts(data) if text and text.strip()):
            fraction = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
            splits["test" if fraction < TEST_SHARE else "train"].append(text)
        languages[language] = splits
    return languages


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="default: ../shared/data")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/data/languages"), help="default: runs/data/languages"
    )
    options = parser.parse_args()
    with report_user_errors():
        check_writable(options.output_dir)
        for language, splits in prepare(options.data).items():
            for split, texts in splits.items():
                path = options.output_dir / language / f"{split}.jsonl"
                write_text(path, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
                print(f"{path}: {len(texts)} texts, {sum(len(text.encode()) for text in texts):,} bytes")


if __name__ == "__main__":
    main()
