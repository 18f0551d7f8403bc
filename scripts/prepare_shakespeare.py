"""Tiny Shakespeare as nanoGPT splits it: the first nine tenths to train on, the rest to measure on, a document each.

Reads tiny-shakespeare.txt (github.com/jcjohnson/torch-rnn) from DATA/tinyshakespeare.

Run: python -m scripts.prepare_shakespeare --data ../shared/data --output_dir runs/data/shakespeare
"""

import argparse
import json
from pathlib import Path

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, write_text

TRAIN_SHARE = 0.9


def split(text: str) -> dict[str, str]:
    """The text of the splits `train` and `test`."""
    cut = int(len(text) * TRAIN_SHARE)
    return {"train": text[:cut], "test": text[cut:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of the public data.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/data/shakespeare"))
    options = parser.parse_args()
    file = options.data / "tinyshakespeare" / "tiny-shakespeare.txt"
    with report_user_errors():
        if not file.is_file():
            raise UserError(f"--data: no file {file}; see: python -m scripts.prepare_shakespeare --help")
        check_writable(options.output_dir)
        for name, text in split(file.read_text(encoding="utf-8")).items():
            write_text(options.output_dir / f"{name}.jsonl", json.dumps({"text": text}) + "\n")
            print(f"{options.output_dir / name}.jsonl: {len(text):,} characters")


if __name__ == "__main__":
    main()
