"""What GPT-1 and GPT-Neo (GPT-3) of transformers lack: documents that do not see each other, the papers' initial weights."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.masking_utils import find_packed_sequence_indices

from recipes.core import UserError
from recipes.core.weights import whole_weights


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Raise a UserError if rows are longer than the model has positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions and max_length > positions:
        raise UserError(f"max_length: rows of {max_length} tokens are longer than the model's {positions} positions")


def keep_documents_apart(model: PreTrainedModel) -> None:
    """Have a model attend only inside the documents that its `position_ids` count, and make sure that it does.

    Most models of transformers do by themselves. GPT-1's takes no mask of query by key; its blocks do.

    Raises:
        UserError: this type of model lets a document see the one before it.
    """
    if model.config.model_type == "openai-gpt":
        _give_blocks_the_mask(model.transformer)
    if is_deepspeed_zero3_enabled() or model.config._attn_implementation not in ("eager", "sdpa"):
        return  # this process has no whole model, or a kernel that no CPU has
    rows = torch.tensor([[1, 2, 3, 4], [2, 3, 3, 4]]) % model.config.vocab_size
    was_training = model.training
    with torch.no_grad():
        logits = model.eval()(input_ids=rows, position_ids=torch.tensor([[0, 1, 0, 1]] * 2), use_cache=False).logits
    model.train(was_training)
    if not torch.equal(logits[0, 2:], logits[1, 2:]):
        raise UserError(
            f"model_config: a model of type '{model.config.model_type}' lets packed documents see each other; "
            "take one whose attention follows position_ids, such as llama or gpt2"
        )


def _give_blocks_the_mask(transformer: nn.Module) -> None:
    """Hooks that turn GPT-1's `position_ids` into an additive mask, [rows, 1, length, length], for each block."""
    held: dict[str, torch.Tensor | None] = {"mask": None}

    def make(module, args, kwargs):
        positions = kwargs.get("position_ids")
        document = None if positions is None else find_packed_sequence_indices(positions)
        if document is None:
            held["mask"] = None
        else:
            apart = document[:, None, :, None] != document[:, None, None, :]
            held["mask"] = apart.float().masked_fill(apart, torch.finfo(torch.float32).min)

    def hand_over(module, args):
        return None if held["mask"] is None else (args[0], held["mask"], *args[2:])

    transformer.register_forward_pre_hook(make, with_kwargs=True)
    transformer.register_forward_hook(lambda *_: held.update(mask=None), always_call=True)
    for block in transformer.h:
        block.register_forward_pre_hook(hand_over)


@torch.no_grad()
def initialize(model: PreTrainedModel) -> None:
    """Draw the weights that a paper wants otherwise than transformers' class does.

    GPT-3 (Brown et al. 2020, arXiv 2005.14165, section 2.1) has GPT-2's initialisation: the layers that write to the
    residual stream start smaller by 1/√(2·layers). GPT-2's class does so; GPT-Neo, which is GPT-3's architecture in
    transformers, does not. GPT-Neo also leaves out the 1/√d of attention, so its queries start smaller by it.
    """
    if model.config.model_type != "gpt_neo":
        return
    std, layers = model.config.initializer_range, len(model.transformer.h)
    for block in model.transformer.h:
        attention = block.attn.attention
        with whole_weights(attention, block.mlp):
            for writes in (attention.out_proj, block.mlp.c_proj):
                writes.weight.normal_(std=std / math.sqrt(2 * layers))
            attention.q_proj.weight.normal_(std=std / math.sqrt(attention.head_dim))
