"""Span corruption: an encoder-decoder writes the spans that sentinels stand for in its input.

Paper: Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (T5), arXiv
       1910.10683, figure 2, section 3.3.4.
Run:   accelerate launch -m recipes.pretraining.span_corruption --config configs/pretraining/span_corruption/quickstart.yaml
"""

import math
from dataclasses import dataclass, field
from functools import partial

from transformers import AutoModelForSeq2SeqLM, TrainingArguments

from recipes.core import ModelConfig, Run, UserError, recipe
from recipes.core.losses import mean_over_tokens
from recipes.pretraining.corpus import CorpusConfig
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.encoder_decoder import optimizer_of, prepare, written_spans
from recipes.pretraining.ngrams import check_ngram_tokens, label_stream, ngram_losses
from recipes.pretraining.samples import is_whole, write_samples
from recipes.pretraining.spans import SpanCorruption, noise_counts, raw_length
from recipes.pretraining.token_rows import TokenRows
from recipes.pretraining.trainer import PretrainingTrainer


@dataclass
class SpanCorruptionConfig(TrainingArguments):
    """TrainingArguments, the length of an input, and what is cut out of it."""

    input_length: int = field(default=512, metadata={"help": "Tokens of an input; the text is as long as fills it."})
    noise_density: float = field(default=0.15, metadata={"help": "Share of the text's tokens that is cut out."})
    mean_noise_span_length: float = field(default=3.0, metadata={"help": "Tokens of a span, on average."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows say what their noise depends on."})
    ngram_tokens: int = field(
        default=2_000_000, metadata={"help": "Training targets that the n-gram baselines count."}
    )
    num_samples: int = field(default=6, metadata={"help": "Held-out texts in samples.md."})

    def __post_init__(self):
        super().__post_init__()
        check_ngram_tokens(self.ngram_tokens)
        if not 0 < self.noise_density < 1:
            raise UserError(f"'noise_density' must lie between 0 and 1, not {self.noise_density}")
        if self.mean_noise_span_length < 1:
            raise UserError(f"'mean_noise_span_length' must be at least 1, not {self.mean_noise_span_length}")


@recipe
def main(run: Run, model: ModelConfig, data: CorpusConfig, training: SpanCorruptionConfig) -> None:
    tokenizer, language_model = model.load(AutoModelForSeq2SeqLM)
    prepare(language_model, tokenizer)
    noise = training.noise_density, training.mean_noise_span_length
    length = raw_length(training.input_length, *noise)
    collator = SpanCorruption(tokenizer, length, *noise, training.seed)
    tokens = data.tokens(tokenizer, separator=None)
    rows = {name: TokenRows(each, length, split=name == "test") for name, each in tokens.items()}

    trainer = PretrainingTrainer(
        model=language_model,
        args=training,
        processing_class=tokenizer,
        data_collator=collator,
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        compute_loss_func=partial(mean_over_tokens, label_smoothing=training.label_smoothing_factor),
        optimizer_cls_and_kwargs=optimizer_of(training),
        callbacks=[CountEpochs(rows["train"])],
    )
    run.fit(trainer)

    if "test" in rows:
        loss = trainer.evaluate()["eval_loss"]
        streams = [label_stream(rows[name], collator, training.ngram_tokens) for name in ("train", "test")]
        targets, bytes_cut = (
            len(streams[1]) / len(rows["test"]),
            noise_counts(length, *noise)[0] * tokens["test"].bytes,
        )
        run.record(
            eval_loss=loss,
            perplexity=math.exp(loss),
            bits_per_byte=loss * targets * len(tokens["test"].ids) / bytes_cut / math.log(2),
            baselines={f"eval_loss_{name}": value for name, value in ngram_losses(*streams, len(tokenizer)).items()},
        )
        if training.num_samples and is_whole(trainer):
            filled = written_spans(trainer, tokenizer, collator, rows["test"], training.num_samples)
            write_samples(run, {"Held-out text, and what was written for its sentinels": filled})


if __name__ == "__main__":
    main()
