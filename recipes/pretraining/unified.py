"""Unified language model: one Transformer guesses hidden tokens reading both ways, left to right, right to left, or a pair.

Paper: Dong et al. 2019, Unified Language Model Pre-training for Natural Language Understanding and Generation, arXiv
       1905.03197, sections 2.2 and 2.3, figure 1.
Run:   accelerate launch -m recipes.pretraining.unified --config configs/pretraining/unified/quickstart.yaml
"""

import math
from dataclasses import dataclass, field

from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, TrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.masked_trainer import MaskedTrainer, check_model
from recipes.pretraining.ngrams import check_ngram_tokens
from recipes.pretraining.samples import is_whole, write_samples
from recipes.pretraining.sentences import read_corpus
from recipes.pretraining.unified_masks import BIDIRECTIONAL, OBJECTIVES, give_six_types
from recipes.pretraining.unified_rows import UnifiedCollator, UnifiedRows
from recipes.pretraining.unified_samples import filled_and_continued, ngram_baselines

NEEDS = ("mask_token", "pad_token", "cls_token", "sep_token")


@dataclass
class UnifiedConfig(TrainingArguments):
    """TrainingArguments, and what a row is."""

    max_length: int = field(default=512, metadata={"help": "Tokens of a row with its special tokens."})
    next_sentence_prediction: bool = field(
        default=True, metadata={"help": "Of the bidirectional rows: tell a random second segment, as the paper does."}
    )
    ngram_tokens: int = field(default=2_000_000, metadata={"help": "Training tokens that the n-gram baselines count."})
    num_samples: int = field(default=6, metadata={"help": "Held-out texts in samples.md."})

    def __post_init__(self):
        super().__post_init__()
        check_ngram_tokens(self.ngram_tokens)
        if self.max_length < 8:
            raise UserError(f"'max_length' must be at least 8, not {self.max_length}")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: UnifiedConfig) -> None:
    documents = data.load(("text",))
    if "test" not in documents:
        raise UserError("dataset_test_split: each objective's loss is measured on held-out text; name a split for it")
    pairs = training.next_sentence_prediction
    tokenizer, encoder = model.load(AutoModelForPreTraining if pairs else AutoModelForMaskedLM, needs=NEEDS)
    check_model(encoder, training.max_length, pairs)
    give_six_types(encoder)
    corpus = {split: read_corpus(documents[split], tokenizer) for split in ("train", "test")}
    collator = UnifiedCollator(tokenizer, encoder.config._attn_implementation, training.seed, pairs)

    def rows(split: str, objective: int | None = None) -> UnifiedRows:
        test = split == "test"
        return UnifiedRows(corpus[split], training.max_length, test, training.seed, objective, pairs)

    trainer = MaskedTrainer(
        model=encoder,
        args=training,
        processing_class=tokenizer,
        data_collator=collator,
        train_dataset=(train_rows := rows("train")),
        eval_dataset=rows("test"),
        callbacks=[CountEpochs(train_rows)],
    )
    run.fit(trainer)

    for number, objective in enumerate(OBJECTIVES):
        name = objective.replace("-", "_")
        measured = trainer.evaluate(rows("test", number), metric_key_prefix=name)
        loss = measured[f"{name}_masked_loss"]
        found = ngram_baselines(
            rows("train", number), rows("test", number), collator, len(tokenizer), training.ngram_tokens
        )
        run.record(
            **{
                f"{name}_loss": loss,
                f"{name}_perplexity": math.exp(loss),
            },
            baselines={f"{name}_loss_{each}": value for each, value in found.items()},
        )
        if number == BIDIRECTIONAL and pairs:
            accuracy = measured[f"{name}_next_sentence_accuracy"]
            run.record(next_sentence_accuracy=accuracy, baselines={"next_sentence_accuracy": 0.5})
    if training.num_samples and is_whole(trainer):
        pages = filled_and_continued(
            trainer.model, tokenizer, collator, rows("test"), training.num_samples, training.seed
        )
        write_samples(run, pages)


if __name__ == "__main__":
    main()
