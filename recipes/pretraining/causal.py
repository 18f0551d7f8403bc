"""Causal language model: the next token from those before it, on packed documents, for a model built from a config.

Paper: Radford et al. 2018, Improving Language Understanding by Generative Pre-Training (GPT), eq. 1;
       Radford et al. 2019, Language Models are Unsupervised Multitask Learners (GPT-2), section 2.3;
       Brown et al. 2020, Language Models are Few-Shot Learners (GPT-3), arXiv 2005.14165, section 2.1;
       Touvron et al. 2023, LLaMA, arXiv 2302.13971, section 2; Llama 2, arXiv 2307.09288, section 2.2.
Run:   accelerate launch -m recipes.pretraining.causal --config configs/pretraining/causal/quickstart.yaml
"""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from recipes.core import ModelConfig, Run, UserError, recipe
from recipes.pretraining.corpus import CorpusConfig
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.gpt import check_length, initialize, keep_documents_apart
from recipes.pretraining.ngrams import check_ngram_tokens, ngram_losses
from recipes.pretraining.packing import PackedDataset, collate
from recipes.pretraining.samples import continuations, is_whole, prompts_from, write_samples
from recipes.pretraining.trainer import PretrainingTrainer


@dataclass
class CausalConfig(TrainingArguments):
    """TrainingArguments, the length of a row, and what is measured beside the loss."""

    max_length: int = field(default=1024, metadata={"help": "Tokens in a packed row."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows hold nothing that the model leaves."})
    ngram_tokens: int = field(
        default=50_000_000, metadata={"help": "Training tokens that the n-gram baselines count, from the first on."}
    )
    num_samples: int = field(default=6, metadata={"help": "Held-out documents that are continued in samples.md."})

    def __post_init__(self):
        super().__post_init__()
        check_ngram_tokens(self.ngram_tokens)
        if self.max_length < 8:
            raise UserError(f"'max_length' must be at least 8, not {self.max_length}")


@recipe
def main(run: Run, model: ModelConfig, data: CorpusConfig, training: CausalConfig) -> None:
    tokenizer, language_model = model.load_causal_lm()
    check_length(language_model, training.max_length)
    tokens = data.tokens(tokenizer, separator=tokenizer.eos_token_id)
    rows = {
        name: PackedDataset(each, training.max_length, tokenizer.eos_token_id, dynamic=name == "train")
        for name, each in tokens.items()
    }
    keep_documents_apart(language_model)
    if model.model_config:
        initialize(language_model)

    trainer = PretrainingTrainer(
        model=language_model,
        args=training,
        processing_class=tokenizer,
        data_collator=collate,  # the tokenizer's own would add a mask, and documents would see each other
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        callbacks=[CountEpochs(rows["train"])],
    )
    run.fit(trainer)

    if "test" in tokens:
        held_out = tokens["test"].ids
        loss = trainer.evaluate()["eval_loss"]
        baselines = ngram_losses(tokens["train"].ids, held_out, len(tokenizer), training.ngram_tokens)
        run.record(
            eval_loss=loss,
            perplexity=math.exp(loss),
            bits_per_byte=loss * len(held_out) / tokens["test"].bytes / math.log(2),
            baselines={f"eval_loss_{name}": value for name, value in baselines.items()},
        )
        if training.num_samples and is_whole(trainer):
            prompts = prompts_from(held_out, tokenizer.eos_token_id, training.num_samples, training.max_length // 4)
            pairs = continuations(trainer, tokenizer, prompts, training.max_length // 2)
            write_samples(run, {"Held-out documents, continued": pairs})


if __name__ == "__main__":
    main()
