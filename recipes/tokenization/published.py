"""Published tokenizers in the form they were first published in, as well as from the Hub or a folder of transformers'."""

import gzip
import json
from pathlib import Path

import sentencepiece
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    T5Tokenizer,
)

from recipes.core import UserError
from recipes.tokenization.algorithms import NORMALIZERS

OF_TRANSFORMERS = ("tokenizer.json", "tokenizer_config.json")
CLIP_MERGES = 49152 - 256 - 2  # the file holds more than CLIP reads of it
FORMS = (
    "vocab.txt (BERT), vocab.json + vocab.bpe (GPT-2), bpe_simple_vocab_*.txt.gz (CLIP), a SentencePiece model (T5)"
)


def open_published(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hub name, of a folder that transformers wrote, or of a folder with files as first published.

    Raises:
        UserError: it is none of these.
    """
    folder = Path(source)
    if not folder.is_dir() or any((folder / name).exists() for name in OF_TRANSFORMERS):
        try:
            return AutoTokenizer.from_pretrained(source)
        except Exception as error:  # each backend raises its own kind
            raise UserError(f"published: no tokenizer could be opened at {source}: {error}") from None
    for pattern, opener in (
        ("*vocab.txt", _bert),
        ("vocab.bpe", _gpt2),
        ("bpe_simple_vocab*.txt.gz", _clip),
        ("*", _t5),
    ):
        for file in sorted(folder.glob(pattern)):
            tokenizer = opener(file)
            if tokenizer is not None:
                return tokenizer
    raise UserError(f"published: {source} holds none of {FORMS}")


def _bert(file: Path) -> PreTrainedTokenizerBase:
    tokens = file.read_text(encoding="utf-8").split("\n")
    vocabulary = {token: index for index, token in enumerate(tokens) if token}
    return BertTokenizer(vocab=vocabulary, do_lower_case="-cased" not in file.name)


def _merges(lines: list[str]) -> list[tuple[str, ...]]:
    return [
        tuple(line.split()) for line in lines if line and not line.lstrip('"').startswith(("#version", "bpe_simple"))
    ]


def _gpt2(file: Path) -> PreTrainedTokenizerBase:
    vocabulary = json.loads((file.parent / "vocab.json").read_text(encoding="utf-8"))
    return GPT2Tokenizer(vocab=vocabulary, merges=_merges(file.read_text(encoding="utf-8").split("\n")))


def _clip(file: Path) -> PreTrainedTokenizerBase:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    with gzip.open(file, "rt", encoding="utf-8") as text:
        merges = _merges(text.read().split("\n"))[:CLIP_MERGES]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)


def _t5(file: Path) -> PreTrainedTokenizerBase | None:
    """None where the file is no SentencePiece model."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError):
        return None
    pieces = [(model.id_to_piece(index), model.get_score(index)) for index in range(model.get_piece_size())]
    sentinels = [f"<extra_id_{index}>" for index in reversed(range(100))]
    tokenizer = T5Tokenizer(vocab=[*pieces, *((token, 0.0) for token in sentinels)])
    tokenizer.backend_tokenizer.normalizer = NORMALIZERS["nmt_nfkc"]()
    return tokenizer
