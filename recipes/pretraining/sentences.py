"""Documents as sentences of tokens: what the masked and the denoising objectives cut their rows from."""

import re
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from recipes.core import UserError

# Up to a stop that a blank follows, a full-width stop, or the end of a line; blanks lead the sentence they precede.
SENTENCE = re.compile(r"\s*\S[^\n]*?(?:[.!?](?=\s)|[。！？]|\n|\Z)")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text; joined they are the text, without the blanks at its end."""
    return SENTENCE.findall(text.rstrip())


@dataclass
class Corpus:
    """All tokens in one row, with the offsets at which sentences and documents begin.

    Attributes:
        tokens: token ids of all documents, [n].
        word_starts: whether a token begins a word, [n]; None where words were not asked for.
        sentences: offsets into `tokens`, [number of sentences + 1]; the last is n.
        documents: offsets into `sentences`, [number of documents + 1].
        bytes: UTF-8 bytes of the texts.
    """

    tokens: np.ndarray
    word_starts: np.ndarray | None
    sentences: np.ndarray
    documents: np.ndarray
    bytes: int

    def __len__(self) -> int:
        return len(self.documents) - 1


def read_corpus(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, words: bool = False, separator: int | None = None
) -> Corpus:
    """Tokenize the column `text` sentence by sentence, without special tokens.

    Args:
        words: note where words begin, by the tokenizer's own splitting into words.
        separator: a token that ends each document, as part of its last sentence.

    Raises:
        UserError: the tokenizer cannot tell words, or no text has a token.
    """
    if words and not tokenizer.is_fast:
        raise UserError("whole_word_masking: this tokenizer does not say where words begin; take a fast one")

    kind = np.uint16 if len(tokenizer) <= 2**16 else np.int32

    def encode(batch: dict[str, list[str]]) -> dict[str, list]:
        parts = [split_sentences(text) for text in batch["text"]]
        encoded = tokenizer(
            [sentence for sentences in parts for sentence in sentences], add_special_tokens=False, verbose=False
        )
        columns: dict[str, list] = {"tokens": [], "sentence_lengths": [], **({"word_starts": []} if words else {})}
        number = 0
        for sentences in parts:
            held = [row for row in range(number, number + len(sentences)) if encoded["input_ids"][row]]
            number += len(sentences)
            ids = [encoded["input_ids"][row] for row in held]
            lengths = [len(row) for row in ids]
            end = [separator] if held and separator is not None else []
            if end:
                lengths[-1] += 1
            columns["tokens"].append(np.asarray([token for row in ids for token in row] + end, dtype=kind))
            columns["sentence_lengths"].append(lengths)
            if words:
                starts = [start for row in held for start in _word_starts(encoded.word_ids(row))]
                columns["word_starts"].append(starts + [True] * len(end))
        return columns

    encoded = documents.map(encode, batched=True, remove_columns=documents.column_names, desc="Tokenizing")
    lengths = _flat(encoded, "sentence_lengths")
    if not len(lengths):
        raise UserError("no text of the data has a single token")
    per_document = np.concatenate(
        [chunk.value_lengths().to_numpy() for chunk in encoded.data.column("sentence_lengths").chunks]
    )
    return Corpus(
        tokens=_flat(encoded, "tokens").astype(kind, copy=False),
        word_starts=_flat(encoded, "word_starts").astype(bool) if words else None,
        sentences=np.concatenate([[0], np.cumsum(lengths)]),
        documents=np.concatenate([[0], np.cumsum(per_document[per_document > 0])]),
        bytes=sum(len(text.encode()) for text in documents["text"]),
    )


def _word_starts(word_ids: list[int | None]) -> list[bool]:
    return [place == 0 or word != word_ids[place - 1] for place, word in enumerate(word_ids)]


def _flat(rows: Dataset, column: str) -> np.ndarray:
    """A column of lists as one array, read from Arrow's memory without a Python object a value."""
    chunks = rows.data.column(column).chunks
    return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks])
