"""What a tuned model answers to held-out prompts, greedily, and how good that is."""

from typing import Any

import torch
from datasets import Dataset
from trl import SFTTrainer, is_conversational

from recipes.core import UserError, metrics

BATCH = 64
GOLD = "embedded/instructions"  # data whose answers can be checked


def count_answers(trainer: SFTTrainer, test: Dataset, source: list[str], number: int, length: int) -> dict[str, float]:
    """Figures of the answers to the first `number` held-out prompts.

    Args:
        test: rows with `prompt` and `completion`.
        source: names of the datasets, of which one can be checked.
        length: tokens that an answer may have.

    Returns:
        `exact_match` and `chrf` against the demonstrated answers, from 0 to 100; `ended`, the share that ended by itself; for
        GOLD `gold_score`, from 0 to 1, against what is right, whatever was demonstrated.

    Raises:
        UserError: the rows have no prompt apart from an answer.
    """
    if not {"prompt", "completion"} <= set(test.column_names):
        raise UserError("answers: only data with the columns 'prompt' and 'completion' have prompts to be answered")
    rows = test.select(range(min(number, len(test))))
    given, ended = answers(trainer, rows, length)
    wanted = [text_of(completion) for completion in rows["completion"]]
    figures = {
        "exact_match": metrics.load("squad").compute(predictions=given, references=[[text] for text in wanted])[
            "exact_match"
        ],
        "chrf": metrics.load("chrf").compute(predictions=given, references=wanted)["score"],
        "ended": sum(ended) / len(ended),
    }
    if source == [GOLD]:
        from recipes.embedded.instructions import gold_reward

        gold = gold_reward(list(rows["prompt"]), given)
        figures["gold_score"] = sum(gold) / len(gold)
    return figures


def text_of(message: str | list[dict[str, str]]) -> str:
    return message if isinstance(message, str) else message[-1]["content"]


@torch.inference_mode()
def answers(trainer: SFTTrainer, rows: Dataset, length: int) -> tuple[list[str], list[bool]]:
    """The text of each answer, and whether it ended by itself."""
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model).eval(), trainer.processing_class
    texts, ended = [], []
    for start in range(0, len(rows), BATCH):
        batch: Any = rows.select(range(start, min(start + BATCH, len(rows))))
        if is_conversational(batch[0]):
            prompts = tokenizer.apply_chat_template(list(batch["prompt"]), tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(
                prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
            )
        else:
            inputs = tokenizer(list(batch["prompt"]), padding=True, padding_side="left", return_tensors="pt")
        inputs = {key: inputs[key].to(model.device) for key in ("input_ids", "attention_mask")}
        with trainer.compute_loss_context_manager():
            tokens = model.generate(
                **inputs, max_new_tokens=length, do_sample=False, eos_token_id=tokenizer.eos_token_id
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        ended += (new == tokenizer.eos_token_id).any(-1).tolist()
        texts += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return texts, ended
