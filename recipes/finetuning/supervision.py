"""What the loss really sees: the share of tokens that are supervised, and whether the end of an answer is one of them."""

from trl import SFTTrainer

from recipes.core import UserError

SAMPLES = 64


def check_supervision(trainer: SFTTrainer) -> dict[str, float]:
    """The supervised share of the first training samples, after the trainer's own templates, masks and cuts.

    Returns:
        `supervised_share`: tokens with a label among all real tokens, in (0, 1];
        `supervised_eos_share`: samples whose end-of-sequence token carries a label.

    Raises:
        UserError: no token is supervised, or no sample teaches the model to stop.
    """
    rows = [trainer.train_dataset[index] for index in range(min(SAMPLES, len(trainer.train_dataset)))]
    labelled = real = ends = 0
    for row in rows:
        batch = trainer.data_collator([row])
        labels, tokens = batch["labels"][0], batch["input_ids"][0]
        supervised = labels != -100
        labelled += int(supervised.sum())
        real += int(batch["attention_mask"][0].sum()) if "attention_mask" in batch else tokens.numel()
        ends += bool((tokens[supervised] == trainer.processing_class.eos_token_id).any())
    if not labelled:
        raise UserError(
            "no token is supervised: every answer lies beyond max_length, or the template masks all; raise max_length"
        )
    if not ends:
        eos = trainer.processing_class.eos_token
        raise UserError(
            f"no answer ends in a supervised {eos}, so the model would never stop; raise max_length, or let the chat "
            "template end an assistant's turn with it"
        )
    return {"supervised_share": labelled / real, "supervised_eos_share": ends / len(rows)}
