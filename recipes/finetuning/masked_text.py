"""Masked language modelling of plain text, to go on with a trained encoder: on a domain's text, or on a language's.

Paper: Devlin et al. 2018, BERT, arXiv 1810.04805, section 3.1 (15 % of the tokens; of these 80 % masked, 10 % other words,
       10 % as they are). Next sentences are left out, as RoBERTa does (arXiv 1907.11692, section 4.2).
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from recipes.adapters.cloze import special_tokens
from recipes.core import DataConfig, UserError


def texts_of(data: DataConfig) -> DatasetDict:
    """Documents with the column `text`, all that hold any; the columns that the task's data are given do not matter here."""
    return replace(
        data,
        dataset_columns=None,
        drop_empty_rows=True,
        max_train_samples=None,
        test_split_size=data.test_split_size or 0.01,
    ).load(("text",))


def masked_rows(documents: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Rows of `input_ids` and `number`: the column `text` cut into pieces of at most `max_length` tokens, special ones too.

    Raises:
        UserError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(f"the tokenizer of {tokenizer.name_or_path} has no mask_token to hide words with")
    start, end = special_tokens(tokenizer)
    room = max_length - len(start) - len(end)

    def pieces(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        cut = (ids[first : first + room] for ids in encoded for first in range(0, len(ids), room))
        return {"input_ids": [[*start, *piece, *end] for piece in cut]}

    rows = documents.map(pieces, batched=True, remove_columns=documents.column_names, desc="Tokenizing")
    return rows.add_column("number", range(len(rows)))


class RepeatableMasks:
    """transformers' masks, drawn from the seed and from which rows stand in a batch: a resumed run sees them again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seed: int):
        self.collator, self.seed = DataCollatorForLanguageModeling(tokenizer), seed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        drawn_from = sum((place + 1) * row["number"] for place, row in enumerate(rows))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + drawn_from)
            return self.collator([{"input_ids": row["input_ids"]} for row in rows])


def masked_trainer(
    model: PreTrainedModel,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    text: DatasetDict,
    max_length: int,
) -> Trainer:
    """A trainer of masked words on the column `text` of the splits; its best model is that of the lowest loss."""
    arguments.remove_unused_columns = False
    arguments.label_names = [
        "labels"
    ]  # BERT's class has a second task's too, without which Trainer would measure nothing
    if arguments.metric_for_best_model is not None:
        arguments.metric_for_best_model, arguments.greater_is_better = "loss", False
    rows = {split: masked_rows(dataset, tokenizer, max_length) for split, dataset in text.items()}
    return Trainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        data_collator=RepeatableMasks(tokenizer, arguments.seed),
        train_dataset=rows["train"],
        eval_dataset=rows.get("test"),
        compute_loss_func=partial(masked_loss, label_smoothing=arguments.label_smoothing_factor),
    )


def masked_loss(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of the hidden words: their mean, or their sum over `num_items_in_batch` of all micro-batches.

    Args:
        outputs: `logits`, or `prediction_logits` of a model with BERT's second task too, [batch, length, V].
        labels: [batch, length], -100 where nothing is hidden.
    """
    hidden = labels != -100
    logits = outputs["prediction_logits" if "prediction_logits" in outputs else "logits"][:, -labels.shape[1] :]
    smoothing = label_smoothing if torch.is_grad_enabled() else 0.0
    reduction = "mean" if num_items_in_batch is None else "sum"
    loss = cross_entropy(logits[hidden].float(), labels[hidden], reduction=reduction, label_smoothing=smoothing)
    return loss if num_items_in_batch is None else loss / num_items_in_batch
