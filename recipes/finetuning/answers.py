"""What a tuned model answers to held-out prompts, greedily, and how good that is."""

import torch
from datasets import Dataset
from trl import SFTTrainer, is_conversational

from recipes.core import metrics

BATCH = 64  # prompts at a time at most
GOLD = "embedded/instructions"  # data whose answers can be checked


def count_answers(trainer: SFTTrainer, test: Dataset, source: list[str], number: int, length: int) -> dict[str, float]:
    """Figures of the answers to the first `number` held-out prompts.

    Args:
        test: rows with `prompt` and `completion`.
        source: names of the datasets, of which one can be checked.
        length: tokens that an answer may have.

    Returns:
        `exact_match` and `chrf` against the demonstrated answers, from 0 to 100; `ended`, the share that ended by itself;
        for GOLD `gold_score`, from 0 to 1, against what is right, whatever was demonstrated.
    """
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
    """The text of each answer, and whether it ended by itself.

    Prompts of one length share a batch: padding would come between a soft prompt and the text, as it never does in training.
    """
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model).eval(), trainer.processing_class
    if is_conversational(rows[0]):
        prompts = tokenizer.apply_chat_template(list(rows["prompt"]), tokenize=False, add_generation_prompt=True)
        encoded = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    else:
        encoded = tokenizer(list(rows["prompt"]))["input_ids"]
    of_length: dict[int, list[int]] = {}
    for row, ids in enumerate(encoded):
        of_length.setdefault(len(ids), []).append(row)

    texts, ended = [""] * len(rows), [False] * len(rows)
    for width, members in of_length.items():
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            ids = torch.tensor([encoded[row] for row in batch], device=model.device)
            with trainer.compute_loss_context_manager():
                tokens = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=length,
                    do_sample=False,
                    eos_token_id=tokenizer.eos_token_id,
                )
            for row, new in zip(batch, tokens[:, width:], strict=True):
                texts[row] = tokenizer.decode(new, skip_special_tokens=True).strip()
                ended[row] = bool((new == tokenizer.eos_token_id).any())
    return texts, ended
