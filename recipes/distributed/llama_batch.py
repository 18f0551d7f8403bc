"""A LLaMA from a few numbers with random weights, and a batch of text for it: what the recipes split and compare."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from recipes.core import TaskConfig, UserError
from recipes.distributed.text_bytes import VOCABULARY, byte_stream

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass
class SmallLlama(TaskConfig):
    """The model and its batch, the same in every process that makes them."""

    hidden_size: int = field(default=256, metadata={"help": "Width of the model."})
    intermediate_size: int = field(default=704, metadata={"help": "Hidden width of its MLPs."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Decoder layers."})
    num_attention_heads: int = field(default=8, metadata={"help": "Heads of the queries."})
    num_key_value_heads: int = field(default=4, metadata={"help": "Heads of the keys and values."})
    batch_size: int = field(default=8, metadata={"help": "Rows in the whole batch, over all processes."})
    max_length: int = field(default=64, metadata={"help": "Bytes in a row."})

    def __post_init__(self):
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"'{key}' must be at least 1, not {getattr(self, key)}")
        if self.max_length < 2:
            raise UserError(f"'max_length' must be at least 2, a byte and its next, not {self.max_length}")
        if self.num_attention_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"'num_attention_heads' must be a multiple of 'num_key_value_heads' {self.num_key_value_heads}, "
                f"not {self.num_attention_heads}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"'hidden_size' must be a multiple of twice 'num_attention_heads' {self.num_attention_heads}: rotary "
                f"positions turn pairs, not {self.hidden_size}"
            )

    def build(self) -> "LlamaForCausalLM":
        """The model, in fp32, its random weights from the seed alone."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(self.seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                num_key_value_heads=self.num_key_value_heads,
                max_position_embeddings=self.max_length,
                initializer_range=self.hidden_size**-0.5,  # the library's 0.02 suits wide models
                bos_token_id=None,
                eos_token_id=None,
                use_cache=False,
                attn_implementation="sdpa",  # causal without a mask, which a stage of a pipeline relies on
            )
        )

    def batch(self, texts: Iterable[str]) -> torch.Tensor:
        """The first bytes of the texts as rows: (batch_size, max_length) int64.

        Raises:
            UserError: the texts are too short.
        """
        return self.batches(texts, 1)[0]

    def batches(self, texts: Iterable[str], count: int) -> torch.Tensor:
        """As many batches: (count, batch_size, max_length) int64.

        Raises:
            UserError: the texts are too short.
        """
        needed = count * self.batch_size * self.max_length
        stream = byte_stream(texts, needed)[:needed].clone()  # not a view that keeps the whole stream alive
        return stream.view(count, self.batch_size, self.max_length)
