"""What UniLM's objectives are held against, and what one model does under them: fills blanks, continues, answers a text."""

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.pretraining.masking import IGNORED
from recipes.pretraining.ngrams import ngram_losses
from recipes.pretraining.unified_masks import (
    BIDIRECTIONAL,
    LEFT_TO_RIGHT,
    RIGHT_TO_LEFT,
    SEQUENCE_TO_SEQUENCE,
    TYPES,
    allowed_attention,
    as_attention_mask,
)
from recipes.pretraining.unified_rows import UnifiedCollator, UnifiedRows


def token_stream(rows: UnifiedRows, collator: UnifiedCollator, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of rows, one after another, at most about `most`, and which of them are to be guessed, both [n]."""
    tokens, guessed, count = [], [], 0
    for begin in range(0, len(rows), 64):
        items = [rows[row] for row in range(begin, min(begin + 64, len(rows)))]
        ids, _, total, _ = collator.assemble(items)
        real = np.arange(ids.shape[1]) < total[:, None]
        tokens.append(ids[real])
        guessed.append((collator(items)["labels"].numpy() != IGNORED)[real])
        count += len(tokens[-1])
        if count >= most:
            break
    return np.concatenate(tokens), np.concatenate(guessed)


def ngram_baselines(
    train: UnifiedRows, held_out: UnifiedRows, collator: UnifiedCollator, vocab_size: int, most: int
) -> dict[str, float]:
    """Losses (nats a token) at the hidden places by n-grams that know the true neighbours, of which a model sees 85 %.

    The neighbours are those on the left; those on the right in rows that are read from right to left.
    """
    (seen, _), (tokens, guessed) = (token_stream(rows, collator, most) for rows in (train, held_out))
    if held_out.objective == RIGHT_TO_LEFT:
        seen, tokens, guessed = (each[::-1] for each in (seen, tokens, guessed))
    return ngram_losses(seen, tokens, vocab_size, places=guessed)


@torch.no_grad()
def vocabulary_scores(
    model: PreTrainedModel, collator: UnifiedCollator, ids: list[int], objective: int, first: int
) -> torch.Tensor:
    """Logits, [length, vocabulary], of one row under an objective; `first` tokens are the first segment."""
    length = len(ids)
    row = torch.tensor([ids], device=model.device)
    allowed = allowed_attention(*(torch.tensor([each]) for each in (objective, first, length)), length)
    kinds = torch.as_tensor(TYPES[objective])[(torch.arange(length) >= first).long()]
    outputs = model(
        input_ids=row,
        token_type_ids=kinds[None].to(row.device),
        attention_mask=as_attention_mask(allowed, collator.attn_implementation).to(row.device),
    )
    return (outputs["prediction_logits"] if "prediction_logits" in outputs else outputs["logits"])[0].float()


def write_on(
    model: PreTrainedModel,
    collator: UnifiedCollator,
    ids: list[int],
    objective: int,
    max_new_tokens: int,
    numbers: torch.Generator,
    top_p: float = 0.9,
) -> list[int]:
    """The tokens that follow: each is guessed for a [MASK] at the end, which then gives way to it (section 2.4).

    Args:
        ids: `[CLS]` and a text's beginning, or `[CLS] first segment [SEP]` of a pair.
        max_new_tokens: or fewer, where the model's positions end.
    """
    written: list[int] = []
    max_new_tokens = min(max_new_tokens, model.config.max_position_embeddings - len(ids) - 1)
    hidden = [collator.begin, collator.pad, collator.mask]
    while len(written) < max_new_tokens:
        row = [*ids, *written, collator.mask]
        first = len(ids) if objective == SEQUENCE_TO_SEQUENCE else len(row)
        logits = vocabulary_scores(model, collator, row, objective, first)[-1].cpu()
        logits[hidden] = -torch.inf
        shares, tokens = logits.softmax(-1).sort(descending=True)
        shares[shares.cumsum(0) - shares >= top_p] = 0
        token = int(tokens[torch.multinomial(shares, 1, generator=numbers)])
        if token == collator.end:
            break
        written.append(token)
    return written


def filled_and_continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    collator: UnifiedCollator,
    rows: UnifiedRows,
    count: int,
    seed: int,
    max_new_tokens: int = 40,
) -> dict[str, list[tuple[str, str]]]:
    """Held-out texts with blanks, filled; beginnings, continued; first segments, to which a second was written."""
    model.eval()
    numbers = torch.Generator().manual_seed(seed)
    filled, continued, answered = [], [], []
    for row in range(min(count, len(rows))):
        tokens = rows.corpus.tokens[slice(*rows.ranges[row])].astype(np.int64).tolist()
        blanks = set(torch.randperm(len(tokens), generator=numbers)[: max(1, len(tokens) * 3 // 20)].tolist())
        given = [collator.mask if place in blanks else token for place, token in enumerate(tokens)]
        ids = [collator.begin, *given, collator.end]
        guesses = vocabulary_scores(model, collator, ids, BIDIRECTIONAL, len(ids)).argmax(-1).tolist()[1:-1]
        made = [f"[{tokenizer.decode([guesses[p]])}]" if p in blanks else t for p, t in enumerate(tokens)]
        filled.append((tokenizer.decode(given), _joined(tokenizer, made)))

        half = tokens[: max(2, min(len(tokens) // 2, 32))]
        begun = [collator.begin, *half]
        more = write_on(model, collator, begun, LEFT_TO_RIGHT, max_new_tokens, numbers)
        continued.append((tokenizer.decode(half), tokenizer.decode(more)))
        more = write_on(model, collator, [*begun, collator.end], SEQUENCE_TO_SEQUENCE, max_new_tokens, numbers)
        answered.append((tokenizer.decode(half), tokenizer.decode(more)))
    return {
        "Blanks, filled (in brackets), read both ways": filled,
        "Beginnings of held-out texts, continued from left to right by the same model": continued,
        "A second segment, written to a first": answered,
    }


def _joined(tokenizer: PreTrainedTokenizerBase, parts: list[int | str]) -> str:
    """Tokens and finished pieces as one text."""
    pieces, held = [], []
    for part in parts:
        if isinstance(part, str):
            pieces += [tokenizer.decode(held), part] if held else [part]
            held = []
        else:
            held.append(part)
    return " ".join([*pieces, tokenizer.decode(held)] if held else pieces)
