"""Text-to-text multi-task training: one encoder-decoder for many tasks, told apart by a prefix of their input.

Paper: Raffel et al. 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (T5), arXiv
       1910.10683, sections 2.4 and 3.5.2.
Run:   accelerate launch -m recipes.pretraining.text_to_text --config configs/pretraining/text_to_text/quickstart.yaml
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from transformers import AutoModelForSeq2SeqLM, TrainingArguments

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.losses import mean_over_tokens
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.encoder_decoder import answers, optimizer_of, prepare
from recipes.pretraining.mixture import Mixture, PairCollator, encode_tasks, with_prefix
from recipes.pretraining.samples import is_whole, write_samples
from recipes.pretraining.trainer import PretrainingTrainer


@dataclass
class MixtureConfig(TrainingArguments):
    """TrainingArguments, and how often each task comes."""

    max_source_length: int = field(default=512, metadata={"help": "Tokens of an input with its prefix and EOS."})
    max_target_length: int = field(default=128, metadata={"help": "Tokens of an answer with EOS."})
    mixing_limit: int = field(default=2**19, metadata={"help": "K: a task counts at most so many examples."})
    mixing_temperature: float = field(default=1.0, metadata={"help": "T: 1 = by size, large = all tasks alike."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Examples are pairs without columns."})
    num_samples: int = field(default=6, metadata={"help": "Held-out inputs of each task in samples.md."})

    def __post_init__(self):
        super().__post_init__()
        for key in ("mixing_limit", "mixing_temperature"):
            if getattr(self, key) <= 0:
                raise UserError(f"'{key}' must be above 0, not {getattr(self, key)}")
        for key in ("max_source_length", "max_target_length"):
            if getattr(self, key) < 2:
                raise UserError(f"'{key}' must be at least 2, not {getattr(self, key)}")
        if self.train_sampling_strategy != "random":
            raise UserError("'train_sampling_strategy': a mixture draws from its tasks by their rates; drop it")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: MixtureConfig) -> None:
    rows = data.load(("task", "prompt", "completion"))
    tokenizer, language_model = model.load(AutoModelForSeq2SeqLM)
    prepare(language_model, tokenizer)
    lengths = training.max_source_length, training.max_target_length
    encoded = {split: encode_tasks(rows[split], tokenizer, *lengths) for split in rows}
    train = Mixture(encoded["train"], training.mixing_limit, training.mixing_temperature, training.seed)

    trainer = PretrainingTrainer(
        model=language_model,
        args=training,
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer),
        train_dataset=train,
        eval_dataset=encoded.get("test"),
        compute_loss_func=partial(mean_over_tokens, label_smoothing=training.label_smoothing_factor),
        optimizer_cls_and_kwargs=optimizer_of(training),
        callbacks=[CountEpochs(train)],
    )
    run.fit(trainer)

    run.record(mixing_rates=dict(zip(encoded["train"], train.rates.round(4).tolist())))
    if "test" not in rows or not is_whole(trainer):
        return
    pages = {}
    given = Counter((row["task"], row["completion"].strip()) for row in rows["train"])
    for task in encoded["test"]:
        asked = rows["test"].filter(lambda row, task=task: row["task"] == task)
        inputs = [with_prefix(task, prompt) for prompt in asked["prompt"]]
        found = answers(trainer, tokenizer, inputs, training.max_source_length, training.max_target_length)
        wanted = [answer.strip() for answer in asked["completion"]]
        counts = {answer: count for (name, answer), count in given.items() if name == task}
        most_frequent = max(counts, key=counts.get, default=None)
        name = task.replace(" ", "_")
        run.record(
            **{f"{name}_exact_match": sum(map(str.__eq__, found, wanted)) / len(wanted)},
            baselines={f"{name}_exact_match": wanted.count(most_frequent) / len(wanted)} if counts else {},
        )
        pages[task] = list(zip(inputs, found, wanted))[: training.num_samples]
    write_samples(run, pages)


if __name__ == "__main__":
    main()
