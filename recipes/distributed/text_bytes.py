"""Text as bytes: 256 tokens and no tokenizer, for recipes that are about processes and not about words."""

from collections.abc import Iterable

import torch

from recipes.core import UserError

VOCABULARY = 256


def byte_stream(texts: Iterable[str], needed: int) -> torch.Tensor:
    """The UTF-8 bytes of the texts, one after another with an empty line between two: (bytes,) int64.

    Raises:
        UserError: there are fewer than `needed`.
    """
    stream = torch.frombuffer(bytearray("\n\n".join(texts).encode()), dtype=torch.uint8).long()
    if len(stream) < needed:
        raise UserError(f"dataset_name: {needed:,} bytes of text are needed and these rows have {len(stream):,}")
    return stream
