"""Datasets by name: embedded, local files, or the Hub; checked so that a bad row is named before training starts."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
READER_OPTIONS = {".tsv": {"sep": "\t"}, ".txt": {"sample_by": "paragraph"}}  # of the readers
TEXT_OR_MESSAGES = ("prompt", "completion", "chosen", "rejected")
DROP_EMPTY_ROWS = "drop_empty_rows: true leaves such rows out"
TEXT = ("text", "text_pair", "source", "target", "question", "context")


@dataclass
class DataConfig:
    """Which rows to learn from and which to measure on."""

    dataset_name: str | list[str] = field(
        metadata={
            "help": "embedded/<name>, a local file or folder (JSON, JSONL, CSV, Parquet, text), or a Hub name; "
            "a list is joined."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str | None = field(default="test", metadata={"help": "Split to measure on; null for none."})
    test_split_size: float | None = field(
        default=None, metadata={"help": "Share of the training rows to hold out where the data has no test split."}
    )
    dataset_columns: dict[str, str] | None = field(
        default=None, metadata={"help": "The recipe's column name: the column's name in your data."}
    )
    dataset_seed: int = field(default=0, metadata={"help": "Seed of embedded data and of a held-out share."})
    drop_empty_rows: bool = field(
        default=False,
        metadata={"help": "Leave out rows that hold an empty text, as Wikipedia's; else they are an error."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only the first rows of the training split."}
    )
    max_test_samples: int | None = field(default=None, metadata={"help": "Use only the first rows of the test split."})

    def __post_init__(self):
        if not self.dataset_name:
            raise UserError("'dataset_name' is empty; name embedded/<name>, a file, a folder, or a Hub dataset")
        for key in ("max_train_samples", "max_test_samples"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"'{key}' must be at least 1, not {getattr(self, key)}")
        if self.test_split_size is not None and not 0 < self.test_split_size < 1:
            raise UserError(f"'test_split_size' must lie between 0 and 1, not {self.test_split_size}")

    @property
    def names(self) -> list[str]:
        return [self.dataset_name] if isinstance(self.dataset_name, str) else self.dataset_name

    def check_names(self) -> None:
        """Raise a UserError for an embedded name or a local path that does not exist; reads no rows."""
        ours = [name for name in self.names if name.startswith("embedded/") or looks_local(name)]
        if self.dataset_config is not None and ours == self.names:
            raise UserError(
                f"dataset_config: '{self.dataset_config}' is of a Hub dataset, and {ours[0]} is none; drop it"
            )
        for name in self.names:
            if name.startswith("embedded/"):
                from recipes import embedded

                if name.removeprefix("embedded/") not in embedded.names():
                    raise UserError(
                        f"dataset_name: no dataset '{name}'"
                        + did_you_mean(name, ["embedded/" + known for known in embedded.names()])
                    )
            elif looks_local(name) and not Path(name).exists():
                hint = " (environment variables are not expanded)" if "$" in name else ""
                raise UserError(f"dataset_name: no file or folder '{name}'{hint}")

    def load(self, *forms: Sequence[str], mixed: bool = False) -> "DatasetDict":
        """The dataset with splits `train` and (unless null) `test`, in the first of the forms that its columns fill.

        Args:
            forms: alternatives, each the columns that a recipe can work with, such as `("prompt", "completion")`.
            mixed: joined datasets may each have a form of their own.

        Raises:
            UserError: a missing file, split or column, an empty split, a row that cannot be read or holds nothing.
        """
        from datasets import DatasetDict, concatenate_datasets

        self.check_names()
        parts, taken = [], {}
        for name in self.names:
            part = self._rename(name, self._splits(name))
            for split, dataset in part.items():
                if not len(dataset):
                    raise UserError(f"{name}: split '{split}' is empty")
                form = taken[name] = self._form(name, dataset, forms)
                if self.drop_empty_rows:
                    texts = [column for column in form if column in (*TEXT, *TEXT_OR_MESSAGES, "messages")]
                    part[split] = dataset = dataset.filter(
                        lambda row, texts=texts: not any(_holds_nothing(row[text], text) for text in texts)
                    )
                    if not len(dataset):
                        raise UserError(f"{name}: split '{split}' holds empty rows only")
                for column in form:
                    _check_column(f"{name}: {split}", dataset, column)
            if self.dataset_test_split is not None and "test" not in part:
                part = self._hold_out(name, part["train"])
            parts.append(part)
        first, *others = taken
        for other in others:
            if taken[other] != taken[first] and not mixed:
                raise UserError(
                    f"dataset_name: {first} has the columns {' + '.join(taken[first])} and {other} "
                    f"{' + '.join(taken[other])}; data that are joined must be of one form"
                )
        try:
            splits = DatasetDict({split: concatenate_datasets([part[split] for part in parts]) for split in parts[0]})
        except (ValueError, TypeError) as error:  # a column of text here and of numbers there
            raise UserError(f"dataset_name: {', '.join(self.names)} cannot be joined: {error}") from None
        for split, limit in (("train", self.max_train_samples), ("test", self.max_test_samples)):
            if limit and split in splits:
                splits[split] = splits[split].select(range(min(limit, len(splits[split]))))
        return splits

    def _splits(self, name: str) -> "dict[str, Dataset]":
        """`train` and, where the source has it, `test`, whatever the source calls them."""
        if name.startswith("embedded/"):
            from recipes import embedded

            source = embedded.load(name.removeprefix("embedded/"), seed=self.dataset_seed)
        elif looks_local(name):
            source = _load_local(Path(name))
        else:
            from datasets import load_dataset

            try:
                source = load_dataset(name, self.dataset_config)
            except Exception as error:  # the Hub client raises many kinds; the user needs its last line only
                raise UserError(f"dataset '{name}' could not be loaded: {str(error).splitlines()[-1]}") from None
        if self.dataset_train_split not in source:
            raise UserError(
                f"{name}: no split '{self.dataset_train_split}'{did_you_mean(self.dataset_train_split, source)}"
            )
        train = source[self.dataset_train_split]
        if self.dataset_test_split is None:
            return {"train": train}
        if self.dataset_test_split in source:
            return {"train": train, "test": source[self.dataset_test_split]}
        if self.test_split_size is None:
            raise UserError(
                f"{name}: no split '{self.dataset_test_split}' to measure on; set test_split_size: 0.05 to hold rows "
                "out, or dataset_test_split: null to measure nothing"
            )
        return {"train": train}

    def _hold_out(self, name: str, train: "Dataset") -> "dict[str, Dataset]":
        """Rows for a test split taken off the training rows, after these were checked under their own numbers."""
        try:
            return dict(train.train_test_split(self.test_split_size, seed=self.dataset_seed))
        except ValueError as error:  # too few rows
            raise UserError(f"{name}: test_split_size: {error}") from None

    def _rename(self, name: str, splits: "dict[str, Dataset]") -> "dict[str, Dataset]":
        for ours, theirs in (self.dataset_columns or {}).items():
            for split, dataset in splits.items():
                if theirs not in dataset.column_names:
                    raise UserError(
                        f"dataset_columns: {name} has no column '{theirs}'{did_you_mean(theirs, dataset.column_names)}"
                    )
                if ours != theirs:
                    dataset = dataset.remove_columns([ours]) if ours in dataset.column_names else dataset
                    splits[split] = dataset.rename_column(theirs, ours)
        return splits

    @staticmethod
    def _form(name: str, dataset: "Dataset", forms: Sequence[Sequence[str]]) -> Sequence[str]:
        """The first form whose columns the dataset has."""
        for form in forms:
            if set(form) <= set(dataset.column_names):
                return form
        wanted = " or ".join(" + ".join(f"'{column}'" for column in form) for form in forms)
        raise UserError(
            f"{name}: needs the columns {wanted}, has {', '.join(dataset.column_names)}; "
            "name yours with dataset_columns: {ours: yours}"
        )


def _check_column(where: str, dataset: "Dataset", column: str) -> None:
    """Raise a UserError that names the first row whose cell is of the wrong kind or holds nothing."""
    messages = column == "messages" or (column in TEXT_OR_MESSAGES and isinstance(dataset[0][column], list))
    if not messages and column not in (*TEXT, *TEXT_OR_MESSAGES):
        return
    if type(dataset.features[column]).__name__ == "ClassLabel":  # numbers that have names
        return
    wanted = "a list of messages with 'role' and 'content'" if messages else "text"
    for row, cell in enumerate(dataset[column], 1):
        if not (_is_conversation(cell) if messages else isinstance(cell, str)):
            raise UserError(f"{where} row {row}, column '{column}': must be {wanted}, not {_shorten(cell)}")
        if _holds_nothing(cell, column):
            raise UserError(f"{where} row {row}, column '{column}': is empty; {DROP_EMPTY_ROWS}")


def _holds_nothing(cell: Any, column: str) -> bool:
    """Whether a text, or the last turn of a conversation, is empty."""
    if column in ("chosen", "rejected"):  # to say nothing is an answer to compare, too
        return cell == []
    if isinstance(cell, list):
        return not cell or (_is_conversation(cell) and not cell[-1]["content"].strip())
    return isinstance(cell, str) and not cell.strip()


def looks_local(name: str) -> bool:
    return Path(name).exists() or name.startswith((".", "/", "~", "$")) or Path(name).suffix in READERS


def _is_conversation(cell: Any) -> bool:
    return isinstance(cell, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in cell
    )


def _shorten(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _load_local(path: Path) -> "dict[str, Dataset]":
    """A file is one split, `train`; a folder has one file a split, named after it (`train.jsonl`, `test.jsonl`)."""
    files = sorted(file for file in path.iterdir() if file.suffix in READERS) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no file of a known kind ({', '.join(READERS)})")
    if path.is_file() and path.suffix not in READERS:
        raise UserError(f"{path}: unknown kind of file '{path.suffix}'; known: {', '.join(READERS)}")
    return {file.stem if path.is_dir() else "train": _read(file) for file in files}


def _read(file: Path) -> "Dataset":
    from datasets import load_dataset

    if not file.stat().st_size:
        raise UserError(f"{file}: is empty")
    options = READER_OPTIONS.get(file.suffix, {})
    try:
        dataset = load_dataset(READERS[file.suffix], data_files=str(file), split="train", **options)
        dataset.data.table.validate(full=True)  # the JSON reader lets bytes pass that are not UTF-8
        return dataset
    except Exception as error:  # pyarrow, pandas and datasets raise many kinds and seldom name the row
        raise UserError(first_bad_row(file) or f"{file}: {error.__cause__ or error}") from None


def first_bad_row(file: Path) -> str | None:
    """What is wrong with the first row of a text file that a reader refused, or None if nothing is found."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        row = file.read_bytes()[: error.start].count(b"\n") + 1
        return f"{file}: row {row}: not UTF-8 text"
    if len([line for line in lines if line.strip()]) < (2 if file.suffix in (".csv", ".tsv") else 1):
        return f"{file}: holds no row"
    if file.suffix in (".csv", ".tsv"):
        rows = list(csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
        wrong = next((row for row, cells in enumerate(rows, 1) if len(cells) != len(rows[0])), None)
        return f"{file}: row {wrong}: {len(rows[wrong - 1])} cells under {len(rows[0])} columns" if wrong else None
    kinds: dict[str, str] = {}
    for row, line in enumerate(lines, 1):
        if file.suffix != ".jsonl" or not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            return f"{file}: row {row}: not valid JSON ({error.msg} at column {error.colno})"
        if not isinstance(record, dict):
            return f"{file}: row {row}: must be an object of columns, not {_shorten(record)}"
        for column, cell in record.items():
            kind = type(cell).__name__
            if cell is not None and kinds.setdefault(column, kind) != kind:
                return f"{file}: row {row}, column '{column}': {kind} where earlier rows have {kinds[column]}"
    return None
