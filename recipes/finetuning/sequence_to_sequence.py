"""Sequence to sequence: an encoder-decoder learns to write one text from another, such as a summary or a translation.

Paper: Lewis et al. 2019, BART, arXiv 1910.13461, section 3; Raffel et al. 2019, T5, arXiv 1910.10683.
Run:   python -m recipes.finetuning.sequence_to_sequence --config configs/finetuning/sequence_to_sequence/quickstart.yaml
"""

from dataclasses import dataclass, field

from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, recipe
from recipes.finetuning.text_pairs import (
    COUNTED,
    FORM,
    PairsTrainer,
    check_metrics,
    encode,
    measure,
    named,
    samples_table,
    written,
)


@dataclass
class SequenceToSequenceConfig(Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments, the lengths of both texts, and what is counted."""

    max_length: int = field(default=512, metadata={"help": "Tokens of a source; longer ones lose their end."})
    max_target_length: int = field(default=128, metadata={"help": "Tokens of a target, learned and written."})
    source_prefix: str = field(default="", metadata={"help": "Text before every source: T5's 'summarize: '."})
    metrics: list[str] = field(
        default_factory=lambda: ["rouge"],
        metadata={"help": f"What is counted of the written texts: {', '.join(COUNTED)}."},
    )
    samples: int = field(default=10, metadata={"help": "Rows of samples.md: source, target and what was written."})

    def __post_init__(self):
        super().__post_init__()
        check_metrics(self.metrics)


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: SequenceToSequenceConfig) -> None:
    pairs = {split: named(dataset) for split, dataset in data.load(FORM).items()}
    tokenizer, writer = model.load(AutoModelForSeq2SeqLM)
    rows = {split: encode(pairs[split], tokenizer, training) for split in pairs}

    trainer = PairsTrainer(
        model=model.adapt(writer, "SEQ_2_SEQ_LM", training),
        args=training,
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=writer),
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
    )
    run.fit(trainer)

    if "test" in pairs:
        texts = written(trainer, rows["test"], tokenizer, training)
        run.write("samples.md", samples_table(pairs["test"], texts, training.samples))
        run.record(
            eval_loss=trainer.evaluate()["eval_loss"],
            **measure(texts, pairs["test"]["target"], training.metrics),
            baselines=measure(pairs["test"]["source"], pairs["test"]["target"], training.metrics),
        )


if __name__ == "__main__":
    main()
