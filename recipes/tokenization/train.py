"""Tokenizer: a byte-level BPE vocabulary learned from text, with special tokens and a chat template.

Paper: Sennrich et al. 2016, Neural Machine Translation of Rare Words with Subword Units, arXiv 1508.07909; on bytes as
       Radford et al. 2019 (GPT-2), so that no text is ever unknown.
Run:   python -m recipes.tokenization.train --config configs/tokenization/train/quickstart.yaml
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recipes.core import DataConfig, Run, TaskConfig, UserError, recipe


@dataclass
class TokenizerConfig(TaskConfig):
    """What the vocabulary is made of."""

    vocab_size: int = field(default=32_000, metadata={"help": "Tokens in all: special tokens, 256 bytes, merges."})
    min_frequency: int = field(default=2, metadata={"help": "A pair seen less often is not merged."})
    split_digits: bool = field(default=True, metadata={"help": "One token a digit, as LLaMA does."})
    eos_token: str = field(default="<|end|>", metadata={"help": "Ends a document and an answer."})
    pad_token: str = field(default="<|pad|>", metadata={"help": "Fills a batch; never the same as eos_token."})
    extra_special_tokens: list[str] = field(default_factory=list, metadata={"help": "Further tokens that stay whole."})
    chat_template_path: str | None = field(default=None, metadata={"help": "Jinja file of the chat template."})
    model_max_length: int = field(default=1024, metadata={"help": "Context length that the tokenizer reports."})

    def __post_init__(self):
        smallest = 256 + len(self.special_tokens)
        if self.vocab_size < smallest:
            raise UserError(
                f"'vocab_size' must be at least {smallest} (256 bytes and the special tokens), not {self.vocab_size}"
            )
        if self.eos_token == self.pad_token:
            raise UserError("'pad_token' must differ from 'eos_token', or padding would look like an end")
        if self.chat_template_path and not Path(self.chat_template_path).is_file():
            raise UserError(f"chat_template_path: no file '{self.chat_template_path}'")

    @property
    def special_tokens(self) -> list[str]:
        return [self.pad_token, self.eos_token, *self.extra_special_tokens]


@recipe
def main(run: Run, data: DataConfig, method: TokenizerConfig) -> None:
    texts = data.load(("text",), ("prompt", "completion"))

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    digits = [pre_tokenizers.Digits(individual_digits=True)] if method.split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=method.vocab_size,
        min_frequency=method.min_frequency,
        special_tokens=method.special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(texts["train"]), trainer)

    run.start()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=method.eos_token,
        pad_token=method.pad_token,
        extra_special_tokens=method.extra_special_tokens,
        model_max_length=method.model_max_length,
        clean_up_tokenization_spaces=False,
    )
    if method.chat_template_path:
        wrapped.chat_template = Path(method.chat_template_path).read_text(encoding="utf-8").strip()
    wrapped.save_pretrained(run.output_dir)

    held_out = list(documents(texts["test"]))
    encoded = wrapped(held_out, add_special_tokens=False)["input_ids"]
    count = sum(map(len, encoded))
    run.record(
        vocab_size=len(wrapped),
        bytes_per_token=sum(len(text.encode()) for text in held_out) / count,
        tokens_per_word=count / sum(len(text.split()) for text in held_out),
        round_trip_share=sum(wrapped.decode(ids) == text for ids, text in zip(encoded, held_out)) / len(held_out),
        baselines={"bytes_per_token": 1.0, "round_trip_share": 1.0},
    )


def documents(rows: Dataset) -> Iterator[str]:
    """The text of every row: its `text`, or each message of its dialogue."""
    for row in rows:
        if row.get("text"):
            yield row["text"]
        else:
            for part in (row["prompt"], row["completion"]):
                yield from [part] if isinstance(part, str) else [message["content"] for message in part]


if __name__ == "__main__":
    main()
