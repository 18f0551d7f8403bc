"""Sequences without padding: a batch as one row of real tokens.

Every layer of a transformer but attention treats tokens one by one, so that padding is wasted work there. A packed row
holds only the real tokens of B sequences, and a few to make their number N round; attention alone lays them out as B rows
of the longest length L, which need no mask beside the causal one since the padding is on the right. Krell et al. 2021,
Efficient Sequence Packing without Cross-contamination, arXiv 2107.02027, has the idea for training on text; here rows are
not filled up, only emptied.
"""

import functools
import sys
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BASES = {"eager": eager_mask, "sdpa": sdpa_mask}  # the attentions that can be packed, with the masks they take


@dataclass
class Packed:
    """B sequences as one row of N tokens.

    `inputs`: what the trunk of a transformers model takes. `index`, int64 [B, T]: where in the row each token of the padded
    batch is; at the padding, the index of the real token before it.
    """

    inputs: dict[str, Tensor | bool]
    index: Tensor


def rounded(size: int) -> int:
    """`size` and at most a sixteenth or 3 more, so that products of matrices come in few shapes.

    Every new shape costs time and memory that is kept: oneDNN compiles a kernel for each in bf16, and the allocators of
    GPUs hold a block for each.
    """
    step = max(4, 2 ** (size.bit_length() - 5))
    return -(-size // step) * step


def pack(input_ids: Tensor, mask: Tensor) -> Packed:
    """Takes the tokens [B, T] whose mask is 1, wherever the padding is."""
    real = mask.bool()
    positions = mask.cumsum(dim=1) - 1
    rows, longest = len(mask), rounded(int(positions[:, -1].max()) + 1)
    cells = (torch.arange(rows, device=mask.device).unsqueeze(1) * longest + positions)[real]
    more = rounded(len(cells)) - len(cells)  # tokens without meaning, in rows of the layout that are their own
    filling = torch.arange(more, device=mask.device)
    cells, rows = torch.cat([cells, rows * longest + filling]), rows + -(-more // longest)
    inputs = {
        "input_ids": torch.cat([input_ids[real], torch.zeros_like(filling)]).unsqueeze(0),
        "position_ids": torch.cat([positions[real], filling % longest]).unsqueeze(0),
        # a mask of four dimensions reaches every layer's attention untouched; its shape says how to lay the tokens out
        "attention_mask": cells.view(1, 1, 1, -1).expand(rows, longest, 1, -1),
        "use_cache": False,
    }
    return Packed(inputs, (real.flatten().cumsum(dim=0) - 1).view_as(mask))


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, base: str, **kwargs
) -> tuple[Tensor, Tensor | None]:
    """The attention `base`, for a packed row [1, heads, N, D] sequence by sequence; any other input as it is."""
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return attend(module, query, key, value, attention_mask, **kwargs)
    rows, longest = attention_mask.shape[:2]
    cells = attention_mask[0, 0, 0]

    def lay_out(states: Tensor) -> Tensor:  # [1, heads, N, D] to [B, heads, L, D]
        states = states[0].transpose(0, 1)
        grid = states.new_zeros(rows * longest, *states.shape[1:]).index_copy(0, cells, states)
        return grid.view(rows, longest, *states.shape[1:]).transpose(1, 2)

    causal = None
    if base == "eager":
        lowest = torch.full((longest, longest), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device)
        causal = lowest.triu(diagonal=1)[None, None]
    output, _ = attend(module, lay_out(query), lay_out(key), lay_out(value), causal, **kwargs)
    return output.flatten(0, 1).index_select(0, cells).unsqueeze(0), None


for base, mask_function in BASES.items():
    AttentionInterface.register(f"packed_{base}", functools.partial(packed_attention, base=base))
    AttentionMaskInterface.register(f"packed_{base}", mask_function)


def make_packable(model: PreTrainedModel) -> bool:
    """Lets a causal or a classification model take packed rows as well as batches; returns whether it can.

    It cannot if its attention looks at more than positions (a window, relative biases), or is a kernel of its own. What
    says so in the end is a try: two short sequences, packed and one by one, must give the same last hidden states.
    """
    config = model.config.get_text_config()
    base = config._attn_implementation.removeprefix("packed_")
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if base not in BASES or layers != {"full_attention"} or getattr(config, "sliding_window", None) is not None:
        return False
    if not model._supports_attention_backend or model.base_model is model:
        return False
    model.set_attn_implementation(f"packed_{base}")
    if config._attn_implementation == f"packed_{base}" and _packs_as_it_runs(model.base_model):
        return True
    model.set_attn_implementation(base)
    return False


@torch.no_grad()
def _packs_as_it_runs(trunk: PreTrainedModel) -> bool:
    embeddings = trunk.get_input_embeddings().weight
    tokens = torch.arange(8, device=embeddings.device) % len(embeddings)
    sequences = [tokens[:5], tokens[5:]]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    training = trunk.training
    trunk.eval()
    try:
        packed = trunk(**pack(padded, mask).inputs).last_hidden_state[0]
        alone = torch.cat([trunk(input_ids=ids[None], use_cache=False).last_hidden_state[0] for ids in sequences])
    except (TypeError, ValueError, IndexError, RuntimeError):  # a model that does something of its own with the mask
        return False
    finally:
        trunk.train(training)
    tolerance = 1e-4 if alone.dtype == torch.float32 else 0.05
    return bool((packed - alone).abs().max() <= tolerance * alone.abs().max())
