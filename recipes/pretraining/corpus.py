"""Text of any size as token ids: read piece by piece, tokenized once, kept in memory or in a file that is read in rows."""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from recipes.core import DataConfig, UserError
from recipes.core.data import DROP_EMPTY_ROWS, READER_OPTIONS, READERS, first_bad_row, looks_local
from recipes.core.errors import did_you_mean
from recipes.core.files import read_json, write_json

PIECE = 2**20  # characters that are tokenized at once, and bytes that are read at once
FORM = 1  # of the token files; another number makes old ones unknown


class TokenFile:
    """Token ids on disk, [n]. A slice is read from the file and is an array; nothing is kept in memory or mapped into it.

    Processes and dataloader workers may share one. Under memory mapping every page that was touched would count as
    this process's memory.
    """

    def __init__(self, path: Path, dtype: str, length: int):
        self.path, self.dtype, self.length = path, np.dtype(dtype), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, cut: slice) -> np.ndarray:
        start, stop, _ = cut.indices(self.length)
        return np.fromfile(self.path, self.dtype, max(0, stop - start), offset=start * self.dtype.itemsize)


@dataclass(frozen=True)
class Tokens:
    """The documents of one split, joined.

    Attributes:
        ids: token ids, [n]: an array, or a file of them.
        bytes: length of the text in UTF-8.
    """

    ids: np.ndarray | TokenFile
    bytes: int


@dataclass
class CorpusConfig(DataConfig):
    """DataConfig, and how a corpus is read that is larger than memory."""

    dataset_streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the text piece by piece and keep its tokens in a file in the datasets cache: memory does not "
            "grow with the corpus. A folder may then hold any number of files: train*, test*, or all of them training "
            "text; test_split_size draws for each document by itself."
        },
    )

    def tokens(self, tokenizer: PreTrainedTokenizerBase, separator: int | None) -> dict[str, Tokens]:
        """The documents of `train` and (unless null) `test` as token ids, in the order of the data.

        Args:
            separator: token id after each document; None joins them without one.

        Raises:
            UserError: as DataConfig.load; with `dataset_streaming` too, a bad row is met before training.
        """
        if not self.dataset_streaming:
            splits = self.load(("text",))
            return {name: in_memory(encode(_cells(rows), tokenizer, separator)) for name, rows in splits.items()}
        self.check_names()
        splits = {"train": self.max_train_samples}
        if self.dataset_test_split is not None:
            splits["test"] = self.max_test_samples
        return {split: self._file(split, limit, tokenizer, separator) for split, limit in splits.items()}

    # ------------------------------------------------------------------------------------------------- one split
    def _file(
        self, split: str, limit: int | None, tokenizer: PreTrainedTokenizerBase, separator: int | None
    ) -> Tokens:
        """The split's token file, written now unless an earlier run or another process has."""
        from datasets.config import HF_DATASETS_CACHE
        from filelock import FileLock

        sources = [self._source(name, split) for name in self.names]
        held_out = [
            (self.test_split_size, self.dataset_seed, split) if source.is_whole else None for source in sources
        ]
        vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab()))
        asked = [self.dataset_columns, self.drop_empty_rows, limit]
        identity = [FORM, [source.identity for source in sources], held_out, *asked]
        key = hashlib.sha256(json.dumps([*identity, vocabulary, separator]).encode()).hexdigest()[:32]
        path = Path(HF_DATASETS_CACHE) / "tokens" / f"{key}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # waits for the process that writes it
            facts = read_json(path.with_suffix(".json"))
            if not facts:
                documents = itertools.chain.from_iterable(
                    source.documents() if share is None else _drawn(source.documents(), *share)
                    for source, share in zip(sources, held_out)
                )
                if os.environ.get("RANK", "0") == "0":
                    print(f"tokenizing {', '.join(self.names)}: {split}, once, into {path}", file=sys.stderr)
                pieces = encode(itertools.islice(documents, limit), tokenizer, separator)
                facts = _write(path, pieces, "uint16" if len(tokenizer) <= 2**16 else "uint32")
                if not facts["length"]:
                    path.unlink()
                    raise UserError(f"{', '.join(self.names)}: split '{split}' is empty")
                write_json(path.with_suffix(".json"), facts)
        return Tokens(TokenFile(path, facts["dtype"], facts["length"]), facts["bytes"])

    def _source(self, name: str, split: str) -> "_Source":
        theirs = {"train": self.dataset_train_split, "test": self.dataset_test_split}
        column = (self.dataset_columns or {}).get("text", "text")
        if looks_local(name):
            files, is_whole = _files_of(Path(name), theirs, split)
            self._check_hold_out(name, is_whole)
            identity = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
            return _Source(
                identity,
                is_whole,
                lambda: itertools.chain.from_iterable(read(file, column, self.drop_empty_rows) for file in files),
            )
        if name.startswith("embedded/"):
            rows = self._rename(name, self._splits(name))
            is_whole = "test" not in rows and self.dataset_test_split is not None
            rows = rows["train" if is_whole else split]
            self._form(name, rows, [("text",)])
            digest = hashlib.sha256("\0".join(rows["text"]).encode()).hexdigest()
            return _Source(
                digest, is_whole, lambda: _checked(_cells(rows), f"{name}: {split}", "text", self.drop_empty_rows)
            )
        return self._from_hub(name, theirs, split, column)

    def _from_hub(self, name: str, theirs: dict[str, str | None], split: str, column: str) -> "_Source":
        """A dataset of the Hub, whose files are read as they come and never stored."""
        from datasets import load_dataset
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(name).sha
            source = load_dataset(name, self.dataset_config, streaming=True, revision=commit)
        except Exception as error:  # the Hub client raises many kinds; the user needs its last line only
            raise UserError(f"dataset '{name}' could not be loaded: {str(error).splitlines()[-1]}") from None
        if theirs["train"] not in source:
            raise UserError(f"{name}: no split '{theirs['train']}'{did_you_mean(theirs['train'], source)}")
        is_whole = theirs["test"] is not None and theirs["test"] not in source
        self._check_hold_out(name, is_whole)
        read_split = theirs["train"] if is_whole else theirs[split]
        rows = source[read_split]

        def cells() -> Iterator[object]:
            for row in rows:
                if column not in row:
                    raise UserError(f"{name}: needs the column '{column}', has {', '.join(row)}; {COLUMNS}")
                yield row[column]

        return _Source(
            [name, self.dataset_config, commit, read_split],
            is_whole,
            lambda: _checked(cells(), f"{name}: {split}", column, self.drop_empty_rows),
        )

    def _check_hold_out(self, name: str, is_whole: bool) -> None:
        if is_whole and self.test_split_size is None:
            raise UserError(
                f"{name}: no split '{self.dataset_test_split}' to measure on; set test_split_size: 0.05 to hold rows "
                "out, or dataset_test_split: null to measure nothing"
            )


COLUMNS = "name yours with dataset_columns: {ours: yours}"


@dataclass(frozen=True)
class _Source:
    """Documents that can be read again: what identifies them, whether train and test are drawn from them, the reading."""

    identity: object
    is_whole: bool
    documents: Callable[[], Iterator[str]]


# ----------------------------------------------------------------------------------------------------------- reading
def read(file: Path, column: str, drop_empty: bool = False) -> Iterator[str]:
    """The texts of a JSON, JSONL, CSV, Parquet or text file (its paragraphs), row by row, a piece of it in memory.

    Raises:
        UserError: names the file and the row that cannot be read or holds no text.
    """
    from datasets import load_dataset

    if not file.stat().st_size:
        raise UserError(f"{file}: is empty")
    sized = {"chunksize": PIECE} if READERS[file.suffix] in ("json", "text") else {}
    options = READER_OPTIONS.get(file.suffix, {}) | sized

    def cells() -> Iterator[object]:
        kind = READERS[file.suffix]
        rows = load_dataset(kind, data_files=str(file), split="train", streaming=True, **options)
        for table in rows.with_format("arrow").iter(batch_size=1000):
            if column not in table.column_names:
                near = did_you_mean(column, table.column_names)
                raise UserError(f"{file}: needs the column '{column}', has {', '.join(table.column_names)}{near}")
            yield from table[column].to_pylist()

    try:
        yield from _checked(cells(), str(file), column, drop_empty)
    except UserError:
        raise
    except Exception as error:  # pyarrow, pandas and datasets raise many kinds and seldom name the row
        raise UserError(first_bad_row(file) or f"{file}: {error.__cause__ or error}") from None


def _checked(cells: Iterable[object], where: str, column: str, drop_empty: bool) -> Iterator[str]:
    for row, cell in enumerate(cells, 1):
        if not isinstance(cell, str):
            raise UserError(f"{where} row {row}, column '{column}': must be text, not {json.dumps(cell, default=str)}")
        if cell.strip():
            yield cell
        elif not drop_empty:
            raise UserError(f"{where} row {row}, column '{column}': is empty; {DROP_EMPTY_ROWS}")


def _cells(rows: "Iterable") -> Iterator[str]:
    """The texts of a dataset that is mapped from disk, some rows at a time."""
    for batch in rows.iter(batch_size=1000):
        yield from batch["text"]


def _files_of(path: Path, theirs: dict[str, str | None], split: str) -> tuple[list[Path], bool]:
    """The files of a split, in order, and whether they hold the other split too.

    A file belongs to the split that its name or a folder above it begins with (`train.jsonl`, `test-00001.parquet`,
    `train/a.txt`); where none begins with the training split's, all other files are training text.
    """
    if path.is_file():
        files = {"train": [path] if path.suffix in READERS else [], "test": []}
    else:
        named: dict[str, list[Path]] = {"train": [], "test": [], "": []}
        for file in sorted(file for file in path.rglob("*") if file.suffix in READERS and file.is_file()):
            parts = [part.lower() for part in file.relative_to(path).parts]
            names = [ours for ours, name in theirs.items() if name and any(_begins(part, name) for part in parts)]
            named[names[0] if len(names) == 1 else ""].append(file)
        files = {"train": named["train"] or named[""], "test": named["test"]}
    if not files["train"]:
        raise UserError(f"{path}: holds no file of a known kind ({', '.join(READERS)}) to train on")
    is_whole = theirs["test"] is not None and not files["test"]
    return files["train" if is_whole else split], is_whole


def _begins(part: str, name: str) -> bool:
    rest = part.removeprefix(name.lower())
    return rest != part and not rest[:1].isalnum()


def _drawn(documents: Iterable[str], share: float, seed: int, split: str) -> Iterator[str]:
    """Those documents that a draw for each of them gives to this split."""
    draws = np.random.default_rng(seed)
    return (text for text in documents if (draws.random() < share) == (split == "test"))


# -------------------------------------------------------------------------------------------------------- tokenizing
def encode(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, separator: int | None
) -> Iterator[tuple[np.ndarray, int]]:
    """Token ids of some whole documents at a time, [n], and the bytes of their text.

    The text of a special token becomes that token, so a corpus may mark ends of documents by the text of EOS.
    """
    end = [] if separator is None else [separator]
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
    for batch in _by_size(texts):
        if tokenizer.is_fast:
            with _all_cores():
                lists = [encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]
        else:
            lists = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        length = sum(map(len, lists)) + len(end) * len(lists)
        joined = itertools.chain.from_iterable(itertools.chain(ids, end) for ids in lists)
        yield np.fromiter(joined, dtype=np.int32, count=length), sum(len(text.encode()) for text in batch)


def _by_size(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= PIECE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let tokenizers use every core, which it must not later, in the dataloader's forked workers."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before or "false"


def in_memory(pieces: Iterable[tuple[np.ndarray, int]]) -> Tokens:
    ids, sizes = zip(*pieces)
    return Tokens(np.concatenate(ids), sum(sizes))


def _write(path: Path, pieces: Iterable[tuple[np.ndarray, int]], dtype: str) -> dict[str, str | int]:
    """Write token ids to a file, whole or not at all."""
    unfinished = path.with_suffix(".incomplete")
    length = size = 0
    try:
        with unfinished.open("wb") as file:
            for ids, piece_bytes in pieces:
                ids.astype(dtype).tofile(file)
                length, size = length + len(ids), size + piece_bytes
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return {"dtype": dtype, "length": length, "bytes": size}
