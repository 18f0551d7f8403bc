"""What a model of blank infilling writes: into blanks, and on from a text's beginning."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.pretraining.blank_rows import InfillingCollator, InfillingRows
from recipes.pretraining.blanks import BLANKS, DOCUMENT, IGNORED, Infilling


@torch.no_grad()
def fill(
    model: PreTrainedModel,
    collator: InfillingCollator,
    part_a: list[int],
    max_new_tokens: int,
    numbers: torch.Generator,
    top_p: float = 0.9,
) -> list[list[int]]:
    """What the model writes for each mark of part A, from left to right, a token at a time.

    Args:
        part_a: token ids with marks.
        max_new_tokens: of each span; or fewer, where the model's second positions end.
        top_p: a token is drawn from the likeliest that hold this share; 0 takes the likeliest.
    """
    max_new_tokens = min(max_new_tokens, model.config.type_vocab_size - 2)
    at = [place for place, token in enumerate(part_a) if token in collator.marks]
    spans: list[list[int]] = []
    for _ in at:
        spans.append([])
        while len(spans[-1]) < max_new_tokens:
            logits = model(**_batch(model, collator, part_a, spans, at)).logits[0, -1].float()
            logits[[collator.pad, collator.start, *collator.marks]] = -torch.inf
            token = _drawn(logits, top_p, numbers)
            if token == collator.end:
                break
            spans[-1].append(token)
    return spans


def _batch(
    model: PreTrainedModel, collator: InfillingCollator, part_a: list[int], spans: list[list[int]], at: list[int]
) -> dict[str, torch.Tensor]:
    ids, positions, inside = [*part_a], [*range(1, len(part_a) + 1)], [0] * len(part_a)
    for span, place in zip(spans, at):
        ids += [collator.start, *span]
        positions += [place + 1] * (len(span) + 1)
        inside += range(1, len(span) + 2)
    columns = [np.asarray([column]) for column in (ids, [IGNORED] * len(ids), positions, inside)]
    made = Infilling(*columns, np.asarray([len(part_a)]), np.asarray([len(ids)]))
    batch: dict[str, Any] = collator.batch(made)
    del batch["labels"]
    return {name: values.to(model.device) for name, values in batch.items()}


def _drawn(logits: torch.Tensor, top_p: float, numbers: torch.Generator) -> int:
    if not top_p:
        return int(logits.argmax())
    shares, tokens = logits.softmax(-1).cpu().sort(descending=True)
    shares[shares.cumsum(0) - shares >= top_p] = 0
    return int(tokens[torch.multinomial(shares, 1, generator=numbers)])


def filled_and_continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    collator: InfillingCollator,
    rows: InfillingRows,
    count: int,
    seed: int,
    max_new_tokens: int = 48,
) -> dict[str, list[tuple[str, str]]]:
    """Held-out texts with blanks and what was written into them, and beginnings of texts with their continuation."""
    model.eval()
    numbers = torch.Generator().manual_seed(seed)
    filled, continued = [], []
    for row in range(min(count, len(rows))):
        item = rows[row] | {"variant": BLANKS}
        made = collator.cut([item])
        part_a = made.tokens[0, : made.first[0]].tolist()
        spans = fill(model, collator, part_a, 12, numbers, top_p=0.0)
        filled.append((tokenizer.decode(part_a), _marked(tokenizer, part_a, spans, collator)))
        half = item["input_ids"][: max(4, min(len(item["input_ids"]) // 2, 48))].tolist()
        mark = int(collator.marks[DOCUMENT])
        made_up = fill(model, collator, [*half, mark], max_new_tokens, numbers)[0]
        continued.append((tokenizer.decode(half), tokenizer.decode(made_up)))
    return {
        "Blanks, filled (in brackets)": filled,
        "Beginnings of held-out texts, continued by the same model": continued,
    }


def _marked(
    tokenizer: PreTrainedTokenizerBase, part_a: list[int], spans: list[list[int]], collator: InfillingCollator
) -> str:
    """Part A as text with what was written for each mark, in brackets."""
    pieces, held, written = [], [], iter(spans)
    for token in part_a:
        if token in collator.marks:
            pieces += [tokenizer.decode(held), f"[{tokenizer.decode(next(written)).strip()}]"]
            held = []
        else:
            held.append(token)
    return " ".join(piece for piece in [*pieces, tokenizer.decode(held)] if piece)
