"""Causal language model: the next token from those before it, on packed documents, for a model built from a config.

Paper: Radford et al. 2018, Improving Language Understanding by Generative Pre-Training (GPT), eq. 1;
       Touvron et al. 2023, LLaMA, arXiv 2302.13971, for the architecture of the configs here.
Run:   accelerate launch -m recipes.pretraining.causal --config configs/pretraining/causal/quickstart.yaml
"""

import math
from dataclasses import dataclass, field

from transformers import Trainer, TrainingArguments, default_data_collator

from recipes.core import DataConfig, ModelConfig, Run, recipe
from recipes.pretraining.ngrams import ngram_losses
from recipes.pretraining.packing import PackedDataset


@dataclass
class CausalConfig(TrainingArguments):
    """TrainingArguments and the length of a row."""

    max_length: int = field(default=1024, metadata={"help": "Tokens in a packed row."})


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: CausalConfig) -> None:
    documents = data.load(("text",))
    tokenizer, language_model = model.load_causal_lm()
    rows = {split: PackedDataset(documents[split], tokenizer, training.max_length) for split in documents}

    trainer = Trainer(
        model=language_model,
        args=training,
        processing_class=tokenizer,
        data_collator=default_data_collator,  # the tokenizer's own would add a mask, and documents would see each other
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
    )
    run.fit(trainer)

    loss = trainer.evaluate()["eval_loss"]
    baselines = ngram_losses(rows["train"].tokens, rows["test"].tokens, len(tokenizer))
    nats_per_byte = len(rows["test"].tokens) / rows["test"].bytes
    run.record(
        eval_loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=loss * nats_per_byte / math.log(2),
        baselines={f"eval_loss_{name}": value for name, value in baselines.items()},
    )


if __name__ == "__main__":
    main()
