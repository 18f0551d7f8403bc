"""What a tokenizer does to texts it was not made from: how short they get, what is unknown, what comes back."""

from collections.abc import Sequence
from time import perf_counter

from transformers import PreTrainedTokenizerBase


def measure(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, float]:
    """Figures of the texts' encoding without special tokens.

    Returns:
        bytes_per_token: of UTF-8.
        tokens_per_word: words are what white space separates, which says nothing where no spaces are written.
        tokens_per_character: of the text as it is.
        unknown_share: of the tokens, those that stand for something unknown.
        round_trip_share: of the texts, those that come back exactly.
        characters_kept_share: of the texts, those that come back but for white space and what normalisation does.
    """
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    decoded = [tokenizer.decode(ids) for ids in encoded]
    count = sum(map(len, encoded))
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None  # one in Python keeps it inside
    normalized = [normalizer.normalize_str(text) if normalizer else text for text in texts]
    return {
        "bytes_per_token": sum(len(text.encode()) for text in texts) / count,
        "tokens_per_word": count / sum(len(text.split()) for text in texts),
        "tokens_per_character": count / sum(map(len, texts)),
        "unknown_share": sum(ids.count(tokenizer.unk_token_id) for ids in encoded) / count,
        "round_trip_share": sum(back == text for back, text in zip(decoded, texts)) / len(texts),
        "characters_kept_share": sum(_squeeze(back) == _squeeze(text) for back, text in zip(decoded, normalized))
        / len(texts),
    }


def encode_rate(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], repeats: int = 3) -> float:
    """Megabytes (10^6 bytes of UTF-8) a second that the tokenizer encodes, the fastest of some repeats."""
    seconds = []
    for _ in range(repeats):
        began = perf_counter()
        tokenizer(texts, add_special_tokens=False, verbose=False)
        seconds.append(perf_counter() - began)
    return sum(len(text.encode()) for text in texts) / 1e6 / min(seconds)


def _squeeze(text: str) -> str:
    """Without white space, and without the sign that stands for it."""
    return "".join(text.replace("▁", " ").split())
