"""Small tokenizers with the special tokens of BERT and of BART, and a few documents of sentences."""

import pytest

WORDS = [
    "the",
    "a",
    "quick",
    "brown",
    "fox",
    "jumps",
    "jumpers",
    "jumping",
    "over",
    "lazy",
    "dogs",
    "and",
    "sees",
    "many",
]
WORDS += ["red", "boats", "on", "blue", "rivers", "while", "walking", "home"]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sixty documents of one to nine sentences of two to twelve words."""
    import numpy as np

    numbers = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(numbers.choice(WORDS, numbers.integers(2, 13))) + "."

    return [" ".join(sentence() for _ in range(numbers.integers(1, 10))) for _ in range(60)]


@pytest.fixture(scope="session")
def documents(texts):
    from datasets import Dataset

    return Dataset.from_dict({"text": texts})


@pytest.fixture(scope="session")
def wordpiece():
    """WordPiece of 60 tokens with BERT's special tokens: short words are whole, long ones several pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*special, ".", *letters, *(f"##{letter}" for letter in letters), "the", "over", "jump", "##ers", "##ing"]
    backend = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def bart_tokenizer(tiny):
    """The byte-level BPE of the tiny models with BART's special tokens."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny / "bart")
