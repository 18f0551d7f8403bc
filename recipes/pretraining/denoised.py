"""What a denoiser is held against, and the documents it rebuilds."""

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.pretraining.reconstruction import DocumentDataset, NoiseCollator

MARGIN = 16  # tokens that a rebuilt document may be longer than the corrupted one, times two


def token_stream(rows: DocumentDataset, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The decoder's tokens of all rows in one array: what a baseline of counts has to predict."""
    begin, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    return np.concatenate([part for row in range(len(rows)) for part in (begin, rows[row]["tokens"], end)])


@torch.no_grad()
def rebuilt_documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: DocumentDataset,
    collator: NoiseCollator,
    rows: int = 8,
) -> str:
    """Markdown: held-out documents as the encoder sees them, as they were, and as the model writes them (greedily)."""
    model.eval()
    lines = ["# Held-out documents, corrupted and rebuilt", ""]
    for row in range(min(rows, len(held_out))):
        batch = {name: values.to(model.device) for name, values in collator([held_out[row]]).items()}
        written = model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=min(2 * batch["input_ids"].shape[1] + MARGIN, collator.max_length),
            do_sample=False,
            num_beams=1,
        )
        for title, tokens, special in (
            (f"## {row + 1}: corrupted", batch["input_ids"][0][1:-1], False),
            ("Original", batch["labels"][0], True),
            ("Rebuilt", written[0], True),
        ):
            text = tokenizer.decode(tokens, skip_special_tokens=special, clean_up_tokenization_spaces=False)
            lines += [title, "", "```text", text.replace("```", "´´´"), "```", ""]
    return "\n".join(lines)
