"""Preferences as DPO and KTO train on them: the reference, pairs taken apart, and what is left of the answers."""

from datasets import DatasetDict
from transformers import PreTrainedModel
from transformers.integrations import is_fsdp_enabled
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    extract_prompt,
    is_conversational,
    unpair_preference_dataset,
)
from trl.data_utils import common_prefix_length

from recipes.core import ModelConfig, UserError
from recipes.core.errors import did_you_mean
from recipes.core.losses import refuse_smoothing
from recipes.rlhf.ppo_values import copy_of

SAMPLES = 1_000


def reference_of(
    policy: PreTrainedModel, model: ModelConfig, training: DPOConfig | KTOConfig
) -> PreTrainedModel | None:
    """The policy as it is before training; None where TRL gets it from the policy itself.

    It does so for an adapter, and for log-probabilities worked out beforehand, but not under FSDP.

    Left alone, TRL reads the reference again from the name in the policy's config: for a merged adapter that is the
    model under it, for a `model_revision` the newest one, and a model from scratch has no name at all.
    """
    if model.peft is not None or (training.precompute_ref_log_probs and not is_fsdp_enabled()):
        return None
    return copy_of(policy)


def with_prompts(pairs: DatasetDict) -> DatasetDict:
    """The pairs with what both answers begin with as `prompt`, where they have none: whole turns, or whole words.

    TRL takes the letters that two texts share, cuts words with that, and complains that their tokens are others.
    """
    if "prompt" in pairs["train"].column_names:
        return pairs
    if is_conversational(pairs["train"][0]):
        return pairs.map(extract_prompt)

    def split(row: dict[str, str]) -> dict[str, str]:
        shared = common_prefix_length(row["chosen"], row["rejected"])
        prompt = row["chosen"][:shared].rpartition(" ")[0]
        return {"prompt": prompt} | {key: row[key].removeprefix(prompt) for key in ("chosen", "rejected")}

    return pairs.map(split)


def unpaired(rows: DatasetDict, desirable_label: str | None, seed: int) -> DatasetDict:
    """`prompt`, `completion` and `label` (true: desirable) of every answer, in random order.

    TRL takes pairs apart too, 1,000 at a time with all chosen answers first, and KTO keeps the order of its data: its
    batches would have one label each, and its KL, which pairs an answer with its neighbour's prompt, no mixture.

    Args:
        rows: pairs, or answers with a label.
        desirable_label: the label that stands for desirable, where labels are not true or false.

    Raises:
        UserError: a label is neither, or none is the desirable one.
    """
    columns = rows["train"].column_names
    if desirable_label is not None and "label" not in columns:
        raise UserError("desirable_label: the data are pairs and have no column 'label'; leave it out")
    if "label" not in columns or "completion" not in columns:
        rows = unpair_preference_dataset(with_prompts(rows))
    elif desirable_label is not None:
        labels = set(map(str, rows["train"].unique("label")))
        if desirable_label not in labels:
            raise UserError(f"desirable_label: no row has '{desirable_label}'{did_you_mean(desirable_label, labels)}")
        given = {split: [str(label) == desirable_label for label in rows[split]["label"]] for split in rows}
        rows = DatasetDict(
            {split: rows[split].remove_columns("label").add_column("label", given[split]) for split in rows}
        )
    elif rows["train"].features["label"].dtype != "bool":
        raise UserError(
            f"column 'label' must be true or false, not {rows['train'][0]['label']!r}; "
            "say with desirable_label which label stands for desirable"
        )
    return rows.shuffle(seed=seed)


def check_completions(trainer: DPOTrainer | KTOTrainer, rows: int) -> dict[str, float]:
    """What TRL leaves of the answers; it drops rows whose prompt alone fills max_length, and cuts answers, silently.

    Args:
        rows: training rows that the trainer was given.

    Returns:
        `dropped_rows`: training rows that TRL left out;
        `supervised_eos_share`: answers, of the first `SAMPLES` rows, whose end is trained on.

    Raises:
        UserError: no row is left, or no answer teaches the model to stop.
    """
    smooths = isinstance(trainer.args, DPOConfig)
    refuse_smoothing(trainer.args, "DPO's own is label_smoothing" if smooths else "leave it out")
    kept, max_length = trainer.train_dataset, trainer.args.max_length
    if not len(kept):
        raise UserError("every prompt is as long as max_length, so no answer is left to train on; raise max_length")
    eos, answers, ends = trainer.processing_class.eos_token_id, 0, 0
    for row in kept.select(range(min(SAMPLES, len(kept)))):
        room = None if max_length is None else max_length - len(row["prompt_ids"])
        for name in {"chosen_ids", "rejected_ids", "completion_ids"} & row.keys():
            answers += 1
            kept_end = getattr(trainer.args, "truncation_mode", "keep_start") == "keep_end"
            ends += eos in (row[name] if kept_end else row[name][:room])
    if not ends:
        raise UserError(
            f"no answer ends in a supervised {trainer.processing_class.eos_token}, so the model would not learn to "
            "stop; raise max_length, or let the chat template end an assistant's turn with it"
        )
    return {"dropped_rows": rows - len(kept), "supervised_eos_share": ends / answers}
