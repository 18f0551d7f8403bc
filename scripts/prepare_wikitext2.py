"""Articles of WikiText-2 as JSONL, one a row: its test file becomes `train`, its validation file `test`.

Reads wikitext2/test.txt and valid.txt (Merity et al. 2016, arXiv 1609.07843; CC BY-SA) as they are published: one
paragraph a line, headings between equals signs, words apart from punctuation, rare words as `<unk>`.

Run: python -m scripts.prepare_wikitext2 --data ../shared/data --output_dir runs/data/wikitext2
"""

import argparse
import json
import re
from pathlib import Path

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, write_text

TITLE = re.compile(r"^ = [^=].* = \n", re.M)
SPLITS = {"train": "test.txt", "test": "valid.txt"}


def articles(text: str) -> list[str]:
    """The articles of a file, each with its title; lines without words are left out."""
    begins = [match.start() for match in TITLE.finditer(text)]
    parts = [text[begin:end] for begin, end in zip(begins, [*begins[1:], len(text)])]
    return ["\n".join(line.strip() for line in part.splitlines() if line.strip()) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds wikitext2/")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/data/wikitext2"), help="folder of the JSONL files"
    )
    options = parser.parse_args()
    with report_user_errors():
        check_writable(options.output_dir)
        texts = {}
        for split, name in SPLITS.items():
            file = options.data / "wikitext2" / name
            if not file.is_file():
                raise UserError(f"--data: no file {file}")
            texts[split] = articles(file.read_text(encoding="utf-8"))
        for split, rows in texts.items():
            write_text(
                options.output_dir / f"{split}.jsonl",
                "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows),
            )
            print(f"{options.output_dir}/{split}.jsonl: {len(rows)} articles")


if __name__ == "__main__":
    main()
