"""Names of emoji in twelve languages as JSONL: pairs for translation, short and real.

Reads DATA/emoji_captions/captions.jsonl (Unicode CLDR annotations; Unicode licence).

Run: python -m scripts.prepare_captions --data ../shared/data --output_dir runs/data/captions
"""

import argparse
from pathlib import Path

from recipes.core.errors import UserError, report_user_errors
from recipes.core.files import check_writable, write_text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/data/captions"))
    options = parser.parse_args(argv)
    with report_user_errors():
        source = options.data / "emoji_captions" / "captions.jsonl"
        if not source.is_file():
            raise UserError(f"{source}: no such file; --data names the folder that holds emoji_captions")
        check_writable(options.output_dir)
        target = options.output_dir / "train.jsonl"
        text = source.read_text(encoding="utf-8")
        write_text(target, text)
        print(f"{target}: {text.count(chr(10))} rows")


if __name__ == "__main__":
    main()
