"""Masked language model: an encoder guesses tokens that were hidden, and whether one segment follows another.

Paper: Devlin et al. 2019, BERT: Pre-training of Deep Bidirectional Transformers, arXiv 1810.04805, section 3.1;
       Liu et al. 2019, RoBERTa, arXiv 1907.11692, for masks that change and rows without pairs.
Run:   accelerate launch -m recipes.pretraining.masked --config configs/pretraining/masked/quickstart.yaml
"""

from dataclasses import dataclass, field

from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, TrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.weights import whole_weights
from recipes.pretraining.cloze import filled_blanks, unigram_baselines
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.masked_trainer import MaskedTrainer, check_model
from recipes.pretraining.masking import MaskingCollator
from recipes.pretraining.probing import make_probe
from recipes.pretraining.segments import SegmentDataset
from recipes.pretraining.sentences import read_corpus

NEEDS = ("mask_token", "pad_token", "cls_token", "sep_token")


@dataclass
class MaskedConfig(TrainingArguments):
    """TrainingArguments, how rows are made of documents, and how they are masked."""

    max_length: int = field(default=512, metadata={"help": "Tokens of a row with its special tokens."})
    next_sentence_prediction: bool = field(
        default=True,
        metadata={"help": "Pairs of segments, half of them random (BERT); else full sentences (RoBERTa)."},
    )
    short_share: float = field(default=0.1, metadata={"help": "Share of documents whose pairs are cut shorter."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of the tokens to be guessed."})
    whole_word_masking: bool = field(default=False, metadata={"help": "Hide all pieces of a word or none."})
    dynamic_masking: bool = field(
        default=False, metadata={"help": "New masks in each epoch (RoBERTa); else a row keeps its own (BERT)."}
    )
    duplicates: int = field(
        default=1, metadata={"help": "Times the documents are made into rows, each with its own pairs and masks."}
    )
    probe_column: str | None = field(
        default=None, metadata={"help": "Column of classes that a linear probe reads from the frozen states."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise UserError(f"'mlm_probability' must lie between 0 and 1, not {self.mlm_probability}")
        if not 0 <= self.short_share <= 1:
            raise UserError(f"'short_share' must lie between 0 and 1, not {self.short_share}")
        if self.duplicates < 1:
            raise UserError(f"'duplicates' must be at least 1, not {self.duplicates}")
        if self.max_length < 8:
            raise UserError(f"'max_length' must be at least 8, not {self.max_length}")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: MaskedConfig) -> None:
    documents = data.load(("text",))
    if "test" not in documents:
        raise UserError("dataset_test_split: the masked loss is measured on held-out text; name a split for it")
    pairs = training.next_sentence_prediction
    probe = make_probe(documents, training.probe_column) if training.probe_column else None
    tokenizer, encoder = model.load(AutoModelForPreTraining if pairs else AutoModelForMaskedLM, needs=NEEDS)
    check_model(encoder, training.max_length, pairs)

    shape = {"max_length": training.max_length, "pairs": pairs, "seed": training.seed}
    separator = None if pairs else tokenizer.sep_token_id
    corpus = {
        split: read_corpus(documents[split], tokenizer, training.whole_word_masking, separator)
        for split in ("train", "test")
    }
    train_rows = SegmentDataset(
        corpus["train"],
        tokenizer,
        short_share=training.short_share,
        duplicates=training.duplicates,
        dynamic=training.dynamic_masking,
        **shape,
    )
    test_rows = SegmentDataset(corpus["test"], tokenizer, split=1, short_share=0.0, **shape)
    collator = MaskingCollator(tokenizer, training.mlm_probability, training.seed)

    trainer = MaskedTrainer(
        model=encoder,
        args=training,
        processing_class=tokenizer,
        data_collator=collator,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        callbacks=[CountEpochs(train_rows)],
    )
    with whole_weights(encoder):
        at_start = {"probe_accuracy": probe.accuracy(encoder, tokenizer, training.max_length)} if probe else {}
    run.fit(trainer)

    measured = trainer.evaluate()
    names = ("loss", "masked_loss", "masked_accuracy", "next_sentence_accuracy")
    run.record(
        **{name: measured[f"eval_{name}"] for name in names if f"eval_{name}" in measured},
        baselines=unigram_baselines(corpus["train"].tokens, test_rows, collator),
    )
    if probe:
        run.record(
            probe_accuracy=probe.accuracy(encoder, tokenizer, training.max_length),
            baselines={"probe_accuracy": at_start["probe_accuracy"], "probe_accuracy_majority": probe.majority},
        )
    run.write("samples.md", filled_blanks(encoder, tokenizer, test_rows, collator))


if __name__ == "__main__":
    main()
