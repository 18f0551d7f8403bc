"""Denoising autoencoder: an encoder reads a corrupted document, a decoder writes the original.

Paper: Lewis et al. 2019, BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation,
       and Comprehension, arXiv 1910.13461, section 2.2.
Run:   accelerate launch -m recipes.pretraining.denoising --config configs/pretraining/denoising/quickstart.yaml
"""

from dataclasses import dataclass, field

import numpy as np
from transformers import AutoModelForSeq2SeqLM, TrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.errors import did_you_mean
from recipes.pretraining.denoised import rebuilt_documents, token_stream
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.ngrams import ngram_losses
from recipes.pretraining.noise import HIDDEN, NOISES, Noise
from recipes.pretraining.reconstruction import DocumentDataset, NoiseCollator, ReconstructionTrainer
from recipes.pretraining.sentences import read_corpus

NEEDS = ("mask_token", "pad_token", "bos_token", "eos_token")


@dataclass
class DenoisingConfig(TrainingArguments):
    """TrainingArguments, the length of a document and its noise."""

    max_length: int = field(default=512, metadata={"help": "Tokens of a document with its special tokens."})
    noise: list[str] = field(
        default_factory=lambda: ["sentence_permutation", "text_infilling"],
        metadata={"help": f"Applied one after another, of {', '.join(NOISES)}; the default is the paper's mix."},
    )
    noise_share: float = field(default=0.3, metadata={"help": "Share of tokens to mask, delete or hide in spans."})
    poisson_lambda: float = field(default=3.0, metadata={"help": "Mean tokens of a span in text infilling."})

    def __post_init__(self):
        super().__post_init__()
        for kind in self.noise:
            if kind not in NOISES:
                raise UserError(f"noise: no noise '{kind}'{did_you_mean(kind, NOISES)}")
        if "sentence_permutation" in self.noise[1:]:
            raise UserError("noise: sentence_permutation comes first; the other noises change where sentences begin")
        if not self.noise:
            raise UserError(f"noise: is empty; name one or more of {', '.join(NOISES)}")
        if not 0 < self.noise_share < 1:
            raise UserError(f"'noise_share' must lie between 0 and 1, not {self.noise_share}")
        if self.poisson_lambda <= 0:
            raise UserError(f"'poisson_lambda' must be above 0, not {self.poisson_lambda}")
        if self.max_length < 8:
            raise UserError(f"'max_length' must be at least 8, not {self.max_length}")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: DenoisingConfig) -> None:
    documents = data.load(("text",))
    if "test" not in documents:
        raise UserError("dataset_test_split: the loss is measured on held-out text; name a split for it")
    tokenizer, bart = model.load(AutoModelForSeq2SeqLM, needs=NEEDS)
    if model.model_config is not None:
        for config in (bart.config, bart.generation_config):
            config.decoder_start_token_id = config.forced_eos_token_id = tokenizer.eos_token_id
    positions = getattr(bart.config, "max_position_embeddings", training.max_length)
    if training.max_length > positions:
        raise UserError(
            f"max_length: documents of {training.max_length} tokens exceed the model's {positions} positions"
        )

    rows = {
        split: DocumentDataset(read_corpus(documents[split], tokenizer), training.max_length - 2, number, not number)
        for number, split in enumerate(("train", "test"))
    }
    noise = Noise(training.noise, training.noise_share, training.poisson_lambda)
    shape = (training.max_length, training.seed, bart.config.decoder_start_token_id)
    trainer = ReconstructionTrainer(
        model=bart,
        args=training,
        processing_class=tokenizer,
        data_collator=NoiseCollator(tokenizer, noise, *shape),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        callbacks=[CountEpochs(rows["train"])],
    )
    run.fit(trainer)

    measured = trainer.evaluate()
    run.write("samples.md", rebuilt_documents(bart, tokenizer, rows["test"], trainer.data_collator))
    # The same decoder on documents of which the encoder sees one blank: what it knows by itself.
    trainer.data_collator = NoiseCollator(tokenizer, lambda *_: np.asarray([HIDDEN]), *shape)
    blank = trainer.evaluate(metric_key_prefix="blank")
    streams = [token_stream(rows[split], tokenizer) for split in ("train", "test")]
    ngrams = ngram_losses(*streams, len(tokenizer))
    names = ("loss", "accuracy", "hidden_loss", "hidden_accuracy")
    run.record(
        **{f"eval_{name}": measured[f"eval_{name}"] for name in names if f"eval_{name}" in measured},
        baselines={
            "eval_loss": blank["blank_loss"],
            "eval_accuracy": blank["blank_accuracy"],
            **{f"eval_loss_{name}": nats for name, nats in ngrams.items()},
        },
    )


if __name__ == "__main__":
    main()
