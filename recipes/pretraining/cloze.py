"""What a masked language model is held against, and what it writes into the blanks."""

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.pretraining.masking import IGNORED, MaskingCollator
from recipes.pretraining.segments import SegmentDataset

SHOWN = 3  # guesses of a blank


def unigram_baselines(train: np.ndarray, held_out: SegmentDataset, collator: MaskingCollator) -> dict[str, float]:
    """Loss and accuracy at the masked positions of held-out rows by the training tokens' frequencies alone.

    The loss is the cross-entropy of add-one counts (nats), the accuracy that of always guessing the most frequent token.
    """
    size = int(collator.ordinary.max()) + 1
    counts = np.bincount(train, minlength=size)[:size].astype(np.float64)
    counts[np.setdiff1d(np.arange(size), collator.ordinary)] = -1  # no special token is ever to be guessed
    labels = np.concatenate([collator([held_out[row]])["labels"].numpy().ravel() for row in range(len(held_out))])
    labels = labels[labels != IGNORED]
    baselines = {
        "masked_loss": float(-np.log((counts[labels] + 1) / (counts + 1).sum()).mean()),
        "masked_accuracy": float((labels == counts.argmax()).mean()),
    }
    if held_out.labels is not None:
        baselines["next_sentence_accuracy"] = float(max(held_out.labels.mean(), 1 - held_out.labels.mean()))
    return baselines


@torch.no_grad()
def filled_blanks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: SegmentDataset,
    collator: MaskingCollator,
    rows: int = 8,
) -> str:
    """Markdown: held-out rows with their blanks, and for each blank the truth and the likeliest guesses."""
    model.eval()
    lines = ["# Held-out text with blanks", "", f"For each blank: the truth, then the {SHOWN} likeliest guesses.", ""]
    for row in range(min(rows, len(held_out))):
        batch = {name: values.to(model.device) for name, values in collator([held_out[row]]).items()}
        labels, next_label = batch.pop("labels")[0], batch.pop("next_sentence_label", None)
        outputs = model(**batch)
        logits = (outputs["logits"] if next_label is None else outputs["prediction_logits"])[0].float()
        lines += [f"## {row + 1}", "", "```text", tokenizer.decode(batch["input_ids"][0]), "```", ""]
        if next_label is not None:
            random = float(outputs["seq_relationship_logits"].float().softmax(-1)[0, 1])
            truth = "from another document" if next_label.item() else "what follows"
            lines += [f"The second segment is {truth}; taken for random with probability {random:.2f}.", ""]
        lines += ["| truth | guesses |", "| --- | --- |"]
        for place in torch.nonzero(labels != IGNORED).ravel().tolist():
            best = logits[place].softmax(-1).topk(SHOWN)
            guesses = ", ".join(
                f"{_shown(tokenizer, token)} {share:.0%}"
                for token, share in zip(best.indices.tolist(), best.values.tolist())
            )
            lines.append(f"| {_shown(tokenizer, int(labels[place]))} | {guesses} |")
        lines.append("")
    return "\n".join(lines)


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as Markdown's tables take it."""
    text = tokenizer.decode([token]).strip() or repr(tokenizer.decode([token]))
    return "`" + text.replace("|", "¦").replace("`", "´").replace("\n", "⏎") + "`"
