"""UniLM's four attention masks and its cloze: one Transformer that is read in four ways.

Paper: Dong et al. 2019, Unified Language Model Pre-training for Natural Language Understanding and Generation, arXiv
       1905.03197, figure 1, sections 2.2 and 2.3.
"""

import numpy as np
import torch
from transformers import PreTrainedModel

from recipes.core import UserError
from recipes.core.weights import whole_weights

OBJECTIVES = ("bidirectional", "left-to-right", "right-to-left", "sequence-to-sequence")
BIDIRECTIONAL, LEFT_TO_RIGHT, RIGHT_TO_LEFT, SEQUENCE_TO_SEQUENCE = range(4)
PROPORTIONS = np.array([1 / 3, 1 / 6, 1 / 6, 1 / 3])  # section 2.3
IS_PAIR = np.array([True, False, False, True])  # whether a row has a second segment
TYPES = np.array([[0, 1], [2, 2], [3, 3], [4, 5]])  # of the segments: they tell the objectives apart, too
SHARE = 0.15  # of the tokens are to be guessed
NGRAMS = 0.2  # of the times two or three tokens together, as often one as the other


def allowed_attention(objective: torch.Tensor, first: torch.Tensor, total: torch.Tensor, length: int) -> torch.Tensor:
    """Which token may look at which.

    Args:
        objective: index into OBJECTIVES, [rows].
        first: tokens up to the end of the first segment, with its special tokens, [rows].
        total: tokens without padding, [rows].

    Returns:
        [rows, 1, length (who looks), length (at whom)], bool. Padding is looked at by itself alone.
    """
    objective, first, total = (each.view(-1, 1, 1) for each in (objective, first, total))
    places = torch.arange(length, device=objective.device)
    query, key = places.view(1, -1, 1), places.view(1, 1, -1)
    allowed = torch.where(
        objective == LEFT_TO_RIGHT,
        key <= query,
        torch.where(
            objective == RIGHT_TO_LEFT,
            key >= query,
            (objective == BIDIRECTIONAL) | (key < first) | ((query >= first) & (key <= query)),
        ),
    )
    return ((allowed & (key < total) & (query < total)) | (query == key)).unsqueeze(1)


def as_attention_mask(allowed: torch.Tensor, attn_implementation: str) -> torch.Tensor:
    """The form of a 4-D mask that transformers' attention takes: boolean for sdpa, added to the scores for eager."""
    if attn_implementation not in ("sdpa", "eager"):
        raise UserError(f"attn_implementation: {attn_implementation} takes no mask of this kind; set sdpa or eager")
    if attn_implementation == "sdpa":
        return allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


def choose_ngrams(may: np.ndarray, numbers: np.ndarray, share: float = SHARE, ngrams: float = NGRAMS) -> np.ndarray:
    """Which tokens are to be guessed: single ones, and with probability `ngrams` two or three in a row.

    Places are taken in random order, each with the tokens of its n-gram, until the share is reached; the last n-gram is
    cut to meet it exactly. An n-gram ends where a token may not be guessed.

    Args:
        may: whether a token may be guessed, [rows, length], bool.
        numbers: uniform random numbers, [rows, 2, length].
        share: of the tokens that may be, rounded, at least one a row.

    Returns:
        [rows, length], bool.
    """
    length = may.shape[1]
    never = 3 * length
    turn = np.argsort(np.argsort(np.where(may, numbers[:, 0], 2.0), axis=1), axis=1)  # when a place is taken
    turn = np.where(may, turn, never)
    size = np.where(numbers[:, 1] >= ngrams, 1, np.where(numbers[:, 1] < ngrams / 2, 2, 3))
    # A token's turn is the earliest of the n-grams that reach it: those that begin on it, one and two places before.
    reached = turn.copy()
    for back in (1, 2):
        if back < length:
            begins, whole = turn[:, :-back], may[:, back:].copy()
            for between in range(1, back):
                whole &= may[:, between : length - back + between]
            earlier = np.where((size[:, :-back] > back) & whole, begins, never)
            reached[:, back:] = np.minimum(reached[:, back:], earlier)
    wanted = np.maximum(1, np.rint(may.sum(1, keepdims=True) * share)).astype(np.int64)
    order = np.argsort(np.argsort(reached * length + np.arange(length), axis=1), axis=1)
    return (order < wanted) & may


@torch.no_grad()
def give_six_types(model: PreTrainedModel) -> None:
    """Widen the model's token types to the six of TYPES; a BERT's two are copied to those of the same segment.

    Raises:
        UserError: the model has no token types.
    """
    embeddings = getattr(model.base_model, "embeddings", None)
    old = getattr(embeddings, "token_type_embeddings", None)
    if old is None:
        raise UserError(f"model_config: a model of type '{model.config.model_type}' has no token types; take bert")
    count = int(TYPES.max()) + 1
    if old.num_embeddings >= count:
        return
    new = torch.nn.Embedding(count, old.embedding_dim, dtype=old.weight.dtype, device=old.weight.device)
    with whole_weights(old):
        for segment in (1, 0):
            new.weight[torch.as_tensor(TYPES[:, segment])] = old.weight[min(segment, old.num_embeddings - 1)]
    embeddings.token_type_embeddings = new
    model.config.type_vocab_size = count
