"""Blank infilling: one Transformer reads a text with blanks both ways and writes what belongs into them, word by word.

Paper: Du et al. 2022, GLM: General Language Model Pretraining with Autoregressive Blank Infilling, arXiv 2103.10360,
       eq. 1, section 2.1. Its linear output layer is here the head that transformers' class has, with one more layer before.
Run:   accelerate launch -m recipes.pretraining.blank_infilling --config configs/pretraining/blank_infilling/quickstart.yaml
"""

import math
from dataclasses import dataclass, field

import numpy as np
from transformers import AutoModelForMaskedLM, TrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.pretraining.blank_rows import InfillingCollator, InfillingRows, check_model
from recipes.pretraining.blank_samples import filled_and_continued
from recipes.pretraining.blanks import VARIANTS
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.masked_trainer import MaskedTrainer
from recipes.pretraining.ngrams import check_ngram_tokens, label_stream, ngram_losses
from recipes.pretraining.samples import is_whole, write_samples
from recipes.pretraining.sentences import read_corpus


@dataclass
class InfillingConfig(TrainingArguments):
    """TrainingArguments, and what is cut out of a text."""

    max_length: int = field(default=512, metadata={"help": "Tokens of a text before anything is cut out of it."})
    sentence_share: float = field(
        default=0.0, metadata={"help": "Share of the rows that lose whole sentences ([sMASK]); the rest, short spans."}
    )
    document_share: float = field(
        default=0.0, metadata={"help": "Share of the rows that lose one span of half to all of their text ([gMASK])."}
    )
    ngram_tokens: int = field(
        default=2_000_000, metadata={"help": "Training targets that the n-gram baselines count."}
    )
    num_samples: int = field(default=6, metadata={"help": "Held-out texts in samples.md."})

    def __post_init__(self):
        super().__post_init__()
        check_ngram_tokens(self.ngram_tokens)
        shares = (self.sentence_share, self.document_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise UserError(f"'sentence_share' and 'document_share' must be shares of one whole, not {shares}")
        if self.max_length < 8:
            raise UserError(f"'max_length' must be at least 8, not {self.max_length}")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: InfillingConfig) -> None:
    documents = data.load(("text",))
    if "test" not in documents:
        raise UserError(
            "dataset_test_split: the loss of each variant is measured on held-out text; name a split for it"
        )
    tokenizer, language_model = model.load(AutoModelForMaskedLM, needs=("pad_token",))
    check_model(language_model, training.max_length)
    corpus = {split: read_corpus(documents[split], tokenizer) for split in ("train", "test")}
    collator = InfillingCollator(language_model, tokenizer, training.seed)
    shares = [1 - training.sentence_share - training.document_share, training.sentence_share, training.document_share]

    def rows(split: str, shares: list[float]) -> InfillingRows:
        return InfillingRows(corpus[split], training.max_length, shares, split=split == "test", seed=training.seed)

    trainer = MaskedTrainer(
        model=language_model,
        args=training,
        processing_class=tokenizer,
        data_collator=collator,
        train_dataset=(train_rows := rows("train", shares)),
        eval_dataset=rows("test", shares),
        callbacks=[CountEpochs(train_rows)],
    )
    run.fit(trainer)

    for number, variant in enumerate(VARIANTS):
        if shares[number]:
            alone = [float(number == other) for other in range(len(VARIANTS))]
            held_out = rows("test", alone)
            loss = trainer.evaluate(held_out, metric_key_prefix=variant)[f"{variant}_masked_loss"]
            streams = [
                label_stream(each, collator, training.ngram_tokens) for each in (rows("train", alone), held_out)
            ]
            found = ngram_losses(*streams, len(tokenizer))  # of what part B says, by what it said before
            ends = np.mean(streams[1] == collator.end)  # the share of targets that have no bytes
            tokens_per_byte = len(corpus["test"].tokens) / corpus["test"].bytes / (1 - ends)
            run.record(
                **{
                    f"{variant}_loss": loss,
                    f"{variant}_perplexity": math.exp(loss),
                    f"{variant}_bits_per_byte": loss * tokens_per_byte / math.log(2),
                },
                baselines={f"{variant}_loss_{name}": value for name, value in found.items()},
            )
    if training.num_samples and is_whole(trainer):
        held_out = rows("test", shares)
        pages = filled_and_continued(trainer.model, tokenizer, collator, held_out, training.num_samples, training.seed)
        write_samples(run, pages)


if __name__ == "__main__":
    main()
