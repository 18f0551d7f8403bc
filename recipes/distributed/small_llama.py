"""A small LLaMA on bytes of text: the job that is split among processes in one way or another."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from recipes.core import DataConfig, TaskConfig, UserError
from recipes.distributed.processes import device
from recipes.distributed.text_bytes import VOCABULARY, byte_stream

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


@dataclass
class SmallLlamaConfig:
    """Its shape, in the words of transformers' LlamaConfig."""

    hidden_size: int = field(default=64, metadata={"help": "Width of the model."})
    intermediate_size: int = field(default=192, metadata={"help": "Hidden width of its feed-forward layers."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Decoder layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads of the queries, which divide hidden_size."})
    num_key_value_heads: int | None = field(
        default=None, metadata={"help": "Heads of the keys and values; null: as many as of the queries."}
    )
    tie_word_embeddings: bool = field(
        default=False, metadata={"help": "One matrix for bytes that come in and go out."}
    )
    initializer_range: float = field(default=0.02, metadata={"help": "Standard deviation of the random weights."})
    max_length: int = field(default=64, metadata={"help": "Bytes in a row of a batch."})

    def __post_init__(self):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        least = dict.fromkeys(sizes, 1) | {"max_length": 2}  # a byte, and one to predict
        for key, low in least.items():
            if getattr(self, key) < low:
                raise UserError(f"'{key}' must be at least {low}, not {getattr(self, key)}")
        if self.initializer_range <= 0:
            raise UserError(f"'initializer_range' must be above 0, not {self.initializer_range}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"'num_attention_heads' must be a multiple of 'num_key_value_heads' {self.num_key_value_heads}, "
                f"not {self.num_attention_heads}"
            )
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"'hidden_size' must be a multiple of twice 'num_attention_heads' {self.num_attention_heads}: rotary "
                f"positions turn pairs, not {self.hidden_size}"
            )

    def build(self, seed: int) -> "LlamaForCausalLM":
        """A model in fp32 whose random weights follow from the seed."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=self.max_length,
            tie_word_embeddings=self.tie_word_embeddings,
            initializer_range=self.initializer_range,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",  # causal without a mask, which a stage of a pipeline relies on
        )
        return LlamaForCausalLM(config)

    def batches(self, data: DataConfig, steps: int, batch_size: int, seed: int) -> torch.Tensor:
        """Bytes from random places of the training texts: (steps, batch_size, max_length) int64.

        Raises:
            UserError: the texts are too short.
        """
        stream = byte_stream(data.load(("text",))["train"]["text"][:], self.max_length)
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, len(stream) - self.max_length + 1, (steps, batch_size, 1), generator=generator)
        return stream[starts + torch.arange(self.max_length)]


@dataclass
class SmallLlamaTask(SmallLlamaConfig, TaskConfig):
    """The model with its batch and seed, for recipes whose ways to split it ask for its shape."""

    batch_size: int = field(default=8, metadata={"help": "Rows in the whole batch, over all processes."})

    def __post_init__(self):
        super().__post_init__()
        if self.batch_size < 1:
            raise UserError(f"'batch_size' must be at least 1, not {self.batch_size}")


def train_alone(
    rank: int, shape: SmallLlamaConfig, rows: torch.Tensor, learning_rate: float, seed: int
) -> dict[str, Any]:
    """The plain loop in one process, which the others are held against: `losses` of the steps and `weights` by name.

    Args:
        rows: (steps, batch, length) bytes.
    """
    model = shape.build(seed).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    losses = []
    for batch in rows.to(device()):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "weights": model.state_dict()}
