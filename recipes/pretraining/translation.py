"""BART for translation into its own language, in two stages: first a new source encoder learns, then everything.

Paper: Lewis et al. 2019, BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation,
       and Comprehension, arXiv 1910.13461, section 3.4.
Run:   accelerate launch -m recipes.pretraining.translation --config configs/pretraining/translation/quickstart.yaml
"""

from dataclasses import dataclass, field

from transformers import AutoModelForSeq2SeqLM, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.weights import load_pretrained
from recipes.pretraining.reconstruction import ReconstructionTrainer
from recipes.pretraining.source_encoder import BartForTranslation, check_stage
from recipes.pretraining.translated import FOLDER, PairCollator, PairDataset, load_source_tokenizer, score, translate

NEEDS = ("pad_token", "bos_token", "eos_token")


@dataclass
class TranslationConfig(TrainingArguments):
    """TrainingArguments, the stage, and the source's side."""

    stage: int = field(
        default=1,
        metadata={
            "help": "1: a new source encoder before a BART that stays; 2: all of stage 1's model.",
            "choices": [1, 2],
        },
    )
    source_tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Stage 1: tokenizer of the source language; stage 2 has stage 1's."}
    )
    source_encoder_layers: int = field(
        default=6, metadata={"help": "Layers of the new source encoder, as the paper's."}
    )
    max_length: int = field(default=128, metadata={"help": "Tokens of a source and of a target."})

    def __post_init__(self):
        super().__post_init__()
        if (self.stage == 1) != (self.source_tokenizer_name_or_path is not None):
            raise UserError(
                "source_tokenizer_name_or_path: name the source language's tokenizer in stage 1, and none in stage 2"
            )
        if self.source_encoder_layers < 1:
            raise UserError(f"'source_encoder_layers' must be at least 1, not {self.source_encoder_layers}")
        if self.max_length < 4:
            raise UserError(f"'max_length' must be at least 4, not {self.max_length}")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: TranslationConfig) -> None:
    pairs = data.load(("source", "target"))
    if "test" not in pairs:
        raise UserError("dataset_test_split: chrF is measured on held-out pairs; name a split for them")
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "translation: ZeRO-3 does not gather a source encoder inside BART; use --launch zero2 or fsdp2"
        )
    check_stage(model.model_name_or_path, training.stage)
    source_tokenizer = load_source_tokenizer(training.source_tokenizer_name_or_path or model.model_name_or_path)
    if training.stage == 1:
        tokenizer, bart = model.load(AutoModelForSeq2SeqLM, needs=NEEDS)
        source = {"vocab_size": len(source_tokenizer), "encoder_layers": training.source_encoder_layers}
        source |= {"pad_token_id": source_tokenizer.pad_token_id}
        translator = BartForTranslation.from_bart(bart, source)
    else:
        tokenizer = model.load_tokenizer(needs=NEEDS)
        translator = load_pretrained(
            BartForTranslation,
            model.model_name_or_path,
            revision=model.model_revision,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
        )
    positions = translator.config.max_position_embeddings
    if training.max_length > positions:
        raise UserError(f"max_length: texts of {training.max_length} tokens exceed the model's {positions} positions")
    translator.train_in_stage(training.stage)

    rows = {split: PairDataset(pairs[split], source_tokenizer, tokenizer, training.max_length) for split in pairs}
    trainer = ReconstructionTrainer(
        model=translator,
        args=training,
        processing_class=tokenizer,
        data_collator=PairCollator(source_tokenizer, tokenizer, translator.config.decoder_start_token_id),
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
    )
    before = score(translate(trainer, rows["test"]), pairs["test"]["target"])
    run.fit(trainer)
    if run.is_main_process:
        source_tokenizer.save_pretrained(run.output_dir / FOLDER)

    texts = translate(trainer, rows["test"])
    measured = trainer.evaluate()
    copied = score(pairs["test"]["source"], pairs["test"]["target"])
    run.record(
        eval_loss=measured["eval_loss"],
        eval_accuracy=measured["eval_accuracy"],
        **score(texts, pairs["test"]["target"]),
        baselines=before | {f"{name}_of_the_source": value for name, value in copied.items()},
    )
    run.write("samples.md", rows["test"].page(texts))


if __name__ == "__main__":
    main()
