"""Pairs of texts: encoded rows, what a model writes for each source, and how near it comes to the target."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer

from recipes.core import metrics
from recipes.core.errors import UserError, did_you_mean
from recipes.core.losses import mean_over_tokens

if TYPE_CHECKING:
    from recipes.finetuning.sequence_to_sequence import SequenceToSequenceConfig

FORM = ("source", "target")
COUNTED = {  # what of each metric is recorded
    "rouge": ["rouge1", "rouge2", "rougeL"],
    "sacrebleu": ["score"],
    "chrf": ["score"],
    "squad": ["exact_match"],
}


def check_metrics(names: Sequence[str]) -> None:
    """Raise a UserError for a metric that does not count texts."""
    for name in names:
        if name not in COUNTED:
            raise UserError(f"metrics: no metric of texts '{name}'{did_you_mean(name, COUNTED)}")


def named(dataset: Dataset) -> Dataset:
    """The rows with targets as text: a label by its name, as T5 writes it."""
    feature = dataset.features["target"]
    if not isinstance(feature, ClassLabel):
        return dataset
    names = [feature.int2str(label) for label in dataset["target"]]
    return dataset.remove_columns("target").add_column("target", names)


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, training: "SequenceToSequenceConfig") -> Dataset:
    """Rows of `input_ids` and `attention_mask` of the source and `labels` of the target, each cut to its length.

    Raises:
        UserError: the tokenizer ends no text, so that a model could not learn to stop, and has no token to do it with.
    """

    def rows(batch: dict[str, list[str]]) -> dict[str, Any]:
        sources = [training.source_prefix + text for text in batch["source"]]
        encoded = tokenizer(sources, truncation=True, max_length=training.max_length)
        targets = tokenizer(text_target=batch["target"], truncation=True, max_length=training.max_target_length)
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": [ended(ids, tokenizer.eos_token_id, training.max_target_length) for ids in targets["input_ids"]],
        }

    return dataset.map(rows, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")


def ended(ids: list[int], eos: int, length: int) -> list[int]:
    """The ids with the end token last, of at most `length`: a target without an end teaches no model to stop."""
    return ids if ids[-1:] == [eos] else [*ids[: length - 1], eos]


class PairsTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose loss weighs all tokens of a step alike, and whose rows count once however many processes share
    them: its own gather keeps those that fill up the last batch."""

    def __init__(self, *, args: "SequenceToSequenceConfig", **kwargs: Any):
        loss = partial(mean_over_tokens, label_smoothing=args.label_smoothing_factor)
        super().__init__(args=args, compute_loss_func=loss, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


def written(
    trainer: Seq2SeqTrainer, rows: Dataset, tokenizer: PreTrainedTokenizerBase, training: "SequenceToSequenceConfig"
) -> list[str]:
    """What the model writes for each row, greedily or with `generation_num_beams`."""
    trainer.args.predict_with_generate = True
    beams = training.generation_num_beams or 1
    found = trainer.predict(rows, max_new_tokens=training.max_target_length, num_beams=beams, do_sample=False)
    trainer.args.predict_with_generate = False
    tokens = np.where(found.predictions < 0, tokenizer.pad_token_id, found.predictions)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def measure(predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """The metrics `names` by their figures' names: `rouge1`, …, `sacrebleu`, `chrf`."""
    figures: dict[str, float] = {}
    for name in names:
        accepted = [[text] for text in references] if name == "squad" else list(references)
        found = metrics.load(name).compute(predictions=list(predictions), references=accepted)
        figures |= {name if key == "score" else key: found[key] for key in COUNTED[name]}
    return figures


def samples_table(pairs: Dataset, texts: Sequence[str], number: int) -> str:
    """A Markdown table of the first rows."""
    lines = ["| source | target | written |", "| --- | --- | --- |"]
    for source, target, text in list(zip(pairs["source"], pairs["target"], texts))[:number]:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in (source, target, text))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
