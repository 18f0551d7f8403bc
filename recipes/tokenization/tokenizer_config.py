"""The keys of a tokenizer: which algorithm, how large, which special tokens, what is put around a text."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from recipes.core import TaskConfig, UserError

ALGORITHMS = ["byte_bpe", "char_bpe", "wordpiece", "unigram", "sentencepiece_unigram", "sentencepiece_bpe"]
SENTENCEPIECE = ("sentencepiece_unigram", "sentencepiece_bpe")
NORMALIZATIONS = ["none", "nfkc", "nmt_nfkc", "bert", "bert_lowercase"]
ROLES = ("pad", "eos", "bos", "unk", "cls", "sep", "mask")
MAY_BE_ONE = ({"bos", "cls"}, {"eos", "sep"})  # BART and RoBERTa begin and end a text with the same tokens

# What only some algorithms have: for which, and what holds where nothing is said.
ONLY_FOR = {
    "min_frequency": (("byte_bpe", "char_bpe", "wordpiece"), 2),
    "limit_alphabet": (("char_bpe", "wordpiece"), None),
    "split_digits": (("byte_bpe", "unigram", *SENTENCEPIECE), True),
    "add_dummy_prefix": (("unigram", *SENTENCEPIECE), True),
    "byte_fallback": (SENTENCEPIECE, True),
    "character_coverage": (SENTENCEPIECE, 0.9995),
}


@dataclass
class TokenizerConfig(TaskConfig):
    """What the vocabulary is made of."""

    algorithm: str = field(
        default="byte_bpe", metadata={"help": "How the vocabulary is learned.", "choices": ALGORITHMS}
    )
    vocab_size: int = field(
        default=32_000, metadata={"help": "Tokens in all: special tokens, bytes or characters, what is learned."}
    )
    min_frequency: int | None = field(
        default=None, metadata={"help": "BPE, WordPiece: a pair seen less often is not merged; null for 2."}
    )
    limit_alphabet: int | None = field(
        default=None,
        metadata={"help": "char_bpe, wordpiece: only the most frequent characters are known; null for all."},
    )
    character_coverage: float | None = field(
        default=None,
        metadata={"help": "SentencePiece: share of the text whose characters are known; null for 0.9995."},
    )
    byte_fallback: bool | None = field(
        default=None, metadata={"help": "SentencePiece: an unknown character is spelt in bytes; null for true."}
    )
    add_dummy_prefix: bool | None = field(
        default=None,
        metadata={"help": "Unigram, SentencePiece: a ▁ before the text, as before any word; null for true."},
    )
    normalization: str = field(
        default="none", metadata={"help": "What is done to a text first.", "choices": NORMALIZATIONS}
    )
    split_digits: bool | None = field(
        default=None, metadata={"help": "All but char_bpe, wordpiece: one token a digit, as LLaMA; null for true."}
    )
    pad_token: str | None = field(default="<|pad|>", metadata={"help": "Fills a batch; never the same as eos_token."})
    eos_token: str | None = field(default="<|end|>", metadata={"help": "Ends a document and an answer."})
    bos_token: str | None = field(default=None, metadata={"help": "Begins a document; may be cls_token."})
    unk_token: str | None = field(
        default=None, metadata={"help": "Stands for what is unknown; byte_bpe alone does without."}
    )
    cls_token: str | None = field(default=None, metadata={"help": "Where an encoder's summary of the text is read."})
    sep_token: str | None = field(default=None, metadata={"help": "Between two texts; may be eos_token."})
    mask_token: str | None = field(default=None, metadata={"help": "Stands for a token that is to be guessed."})
    extra_special_tokens: list[str] = field(default_factory=list, metadata={"help": "Further tokens that stay whole."})
    sentinels: int = field(default=0, metadata={"help": "T5's <extra_id_0>, <extra_id_1>, …: how many."})
    single_template: str | None = field(
        default=None, metadata={"help": "What is put around a text, such as '[CLS] $A [SEP]'; null for nothing."}
    )
    pair_template: str | None = field(
        default=None, metadata={"help": "And around two, such as '[CLS] $A [SEP] $B:1 [SEP]:1' (:1 is the type)."}
    )
    chat_template_path: str | None = field(default=None, metadata={"help": "Jinja file of the chat template."})
    model_max_length: int = field(default=1024, metadata={"help": "Context length that the tokenizer reports."})

    def __post_init__(self):
        for key, (algorithms, default) in ONLY_FOR.items():
            if getattr(self, key) is None and self.algorithm in algorithms:
                setattr(self, key, default)
            elif getattr(self, key) is not None and self.algorithm not in algorithms:
                raise UserError(f"'{key}' is for {', '.join(algorithms)}; drop it with {self.algorithm}")
        for key, least in (("min_frequency", 0), ("limit_alphabet", 1), ("sentinels", 0), ("model_max_length", 1)):
            if getattr(self, key) is not None and getattr(self, key) < least:
                raise UserError(f"'{key}' must be at least {least}, not {getattr(self, key)}")
        if self.character_coverage is not None and not 0 < self.character_coverage <= 1:
            raise UserError(f"'character_coverage' must be above 0 and at most 1, not {self.character_coverage}")
        if self.algorithm in SENTENCEPIECE and self.normalization.startswith("bert"):
            raise UserError(f"'normalization': sentencepiece has none, nfkc and nmt_nfkc, not {self.normalization}")
        self._check_special_tokens()
        self._check_templates()
        bytes_ = 256 if self.algorithm == "byte_bpe" or self.byte_fallback else 0
        smallest = bytes_ + len(self.special_tokens)
        if self.vocab_size < smallest or self.vocab_size < 1:
            known = f"{bytes_} bytes and the special tokens" if bytes_ else "the special tokens"
            raise UserError(f"'vocab_size' must be at least {smallest} ({known}), not {self.vocab_size}")
        if self.chat_template_path and not Path(self.chat_template_path).is_file():
            raise UserError(f"chat_template_path: no file '{self.chat_template_path}'")

    def _check_special_tokens(self) -> None:
        roles = self.roles
        for role, token in [*roles.items(), *(("extra_special_tokens", each) for each in self.extra_special_tokens)]:
            if not token.strip():
                raise UserError(f"'{role}' is empty; name a token or drop the key")
        if self.pad_token is not None and self.pad_token == self.eos_token:
            raise UserError("'pad_token' must differ from 'eos_token', or padding would look like an end")
        for first in roles:
            for second in roles:
                shared = {first.removesuffix("_token"), second.removesuffix("_token")}
                if first < second and roles[first] == roles[second] and shared not in MAY_BE_ONE:
                    raise UserError(f"'{first}' and '{second}' must differ, both are '{roles[first]}'")
        if self.unk_token is None and self.algorithm != "byte_bpe":
            raise UserError(f"'unk_token' is missing; {self.algorithm} needs one, such as '<unk>'")

    def _check_templates(self) -> None:
        for key, needed in (("single_template", ("A",)), ("pair_template", ("A", "B"))):
            parts = [re.sub(r":\d+$", "", part) for part in (getattr(self, key) or "").split()]
            for text in needed if parts else ():
                if parts.count(f"${text}") != 1:
                    raise UserError(f"'{key}' must name ${text} once, not '{getattr(self, key)}'")
            for part in parts:
                if part not in (*(f"${text}" for text in needed), *self.special_tokens):
                    raise UserError(f"'{key}': '{part}' is none of the special tokens; set cls_token, sep_token, …")
        if (self.single_template is None) != (self.pair_template is None):
            raise UserError("'single_template' and 'pair_template' belong together; set both or none")

    @property
    def roles(self) -> dict[str, str]:
        """The special tokens that have a role, by transformers' name for it: `pad_token`, `eos_token`, …"""
        named = {f"{role}_token": getattr(self, f"{role}_token") for role in ROLES}
        return {role: token for role, token in named.items() if token is not None}

    @property
    def further_tokens(self) -> list[str]:
        """The special tokens without a role."""
        return [*self.extra_special_tokens, *(f"<extra_id_{number}>" for number in range(self.sentinels))]

    @property
    def special_tokens(self) -> list[str]:
        """All special tokens, each once, in the order of their ids, which begin at 0."""
        return list(dict.fromkeys([*self.roles.values(), *self.further_tokens]))
