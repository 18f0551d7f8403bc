"""What T5's two recipes share: the decoder's start, T5's optimizer, and answers by greedy search."""

from typing import Any

import torch
from transformers import Adafactor, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from recipes.pretraining.spans import SpanCorruption
from recipes.pretraining.token_rows import TokenRows


def prepare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have the decoder start from the padding token, as T5 does, in training and in generation."""
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = tokenizer.pad_token_id


def optimizer_of(training: TrainingArguments) -> tuple[type, dict[str, Any]] | None:
    """Adafactor as T5 has it, whose steps are relative to a weight's size, where `optim` is adafactor; else None.

    Trainer's own takes the learning rate as absolute. Paper: Shazeer & Stern 2018, arXiv 1804.04235, algorithm 5.
    """
    if training.optim != "adafactor":
        return None
    settings = {"scale_parameter": True, "relative_step": False, "warmup_init": False}
    return Adafactor, {"lr": training.learning_rate, **settings}


def answers(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    inputs: list[str],
    max_source_length: int,
    max_new_tokens: int,
    batch_size: int = 64,
) -> list[str]:
    """What the model writes to each input, the likeliest token at each place, until EOS."""
    pad, found = tokenizer.pad_token_id, []
    encoded = tokenizer(inputs, add_special_tokens=False, verbose=False)["input_ids"]
    for begin in range(0, len(encoded), batch_size):
        rows = [
            torch.tensor([*ids[: max_source_length - 1], tokenizer.eos_token_id])
            for ids in encoded[begin : begin + batch_size]
        ]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        found += [
            tokenizer.decode(row, skip_special_tokens=True).strip()
            for row in _written(trainer, ids, pad, max_new_tokens)
        ]
    return found


def written_spans(
    trainer: Trainer, tokenizer: PreTrainedTokenizerBase, collator: SpanCorruption, rows: TokenRows, count: int
) -> list[tuple[str, str, str]]:
    """The first rows as the model is given them, what it wrote for the sentinels, and what had stood there."""
    batch = collator([rows[row] for row in range(min(count, len(rows)))])
    made = _written(trainer, batch["input_ids"], tokenizer.pad_token_id, batch["labels"].shape[1])
    columns = (batch["input_ids"], made, batch["labels"])
    hidden = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    return list(
        zip(
            *([tokenizer.decode([t for t in row.tolist() if t not in hidden]) for row in column] for column in columns)
        )
    )


def _written(trainer: Trainer, ids: torch.Tensor, pad: int, max_new_tokens: int) -> torch.Tensor:
    model = trainer.model.eval()
    ids = ids.to(model.device)
    return model.generate(
        input_ids=ids,
        attention_mask=(ids != pad).long(),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
    )
