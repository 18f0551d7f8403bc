"""How many tokens a model's positions allow, and whether the rows of a run fit into them."""

from typing import TYPE_CHECKING

from recipes.core import peft_block
from recipes.core.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import Trainer

POSITION_EMBEDDINGS = ("position_embeddings", "embed_positions", "wpe", "positions_embed")


def learned_positions(model: "nn.Module") -> int | None:
    """How many tokens a model with an embedding of its positions can read; None where positions are computed."""
    import torch

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in POSITION_EMBEDDINGS and isinstance(module, torch.nn.Embedding):
            before = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - before
    return None


def check_row_lengths(trainer: "Trainer") -> None:
    """Raise a UserError if a row of tokens, with the virtual ones of an adapter, is longer than the model's positions."""
    from datasets import Dataset

    adapter = peft_block.adapted(trainer)
    config = adapter.active_peft_config if adapter is not None else None
    virtual = config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0
    positions = learned_positions(trainer.model)
    evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    for rows in (trainer.train_dataset, *evaluated.values()):
        if positions is None or not isinstance(rows, Dataset):
            continue
        columns = {"input_ids", "labels"} if trainer.model.config.is_encoder_decoder else {"input_ids"}
        for column in columns & set(rows.column_names):
            longest = _longest(rows, column) + virtual
            if longest > positions:
                key = "max_length" if column == "input_ids" else "max_target_length"
                beside = f" beside {virtual} virtual ones" if virtual else ""
                raise UserError(
                    f"{key}: a row has {longest - virtual} tokens{beside}, and the model reads {positions}; set it to "
                    f"{positions - virtual} or less"
                )


def _longest(rows: "Dataset", column: str) -> int:
    """Tokens of the longest row."""
    import pyarrow.compute as pc

    tables = rows.select_columns(column).with_format("arrow").iter(10_000)
    return max(pc.max(pc.list_value_length(table[column])).as_py() for table in tables)
