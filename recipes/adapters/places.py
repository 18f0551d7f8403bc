"""Where in a Transformer an adapter goes, found by the names that transformers' models give to their parts.

A sub-layer of a block ends in a linear layer that maps back to the hidden size; what it puts out is added to the
sub-layer's input. A bottleneck adapter stands between these two.
"""

import re
from dataclasses import dataclass

from torch import nn

from recipes.adapters.layers import own_modules
from recipes.core.errors import UserError, did_you_mean

# The last linear layer of a sub-layer, by the end of its name inside a numbered block.
ATTENTION = re.compile(
    r"\.(attention\.output\.dense|crossattention\.output\.dense"
    r"|(self_attn|encoder_attn|self_attention|attention|attn|crossattention|SelfAttention|EncDecAttention)"
    r"\.(o_proj|out_proj|out_lin|c_proj|dense|o))$"
)
FEED_FORWARD = re.compile(
    r"\.((mlp|feed_forward|ffn)\.(down_proj|c_proj|dense_4h_to_h|fc2|fc_out|lin2|w2)"
    r"|fc2|output\.dense|DenseReluDense\.wo)$"
)

# Of models that normalise after the sum: the feed-forward block's last linear layer, the layer norm after the sum, and
# the block's first linear layer, which reads what the sum adds to.
POST_NORM = (
    (re.compile(r"(.*)\.output\.dense$"), r"\1.output.LayerNorm", r"\1.intermediate.dense"),
    (re.compile(r"(.*)\.ffn\.lin2$"), r"\1.output_layer_norm", r"\1.ffn.lin1"),
    (re.compile(r"(.*)\.fc2$"), r"\1.final_layer_norm", r"\1.fc1"),
)
FC2_POST_NORM = ("bart", "blenderbot-small", "marian")  # others have the same names and normalise before

# The last module of what makes a model's embeddings, where that is more than a table of tokens.
EMBEDDINGS = re.compile(r"(^|\.)(embeddings\.dropout|transformer\.drop|drop)$")


@dataclass(frozen=True)
class Place:
    """A module of the base that an adapter is put around.

    Attributes:
        name: of a linear layer, or of the layer norm that follows the sum.
        entrance: for such a layer norm, the module whose input is what the sum adds to.
    """

    name: str
    entrance: str | None = None


def find_places(model: nn.Module, placement: str, target_modules: list[str] | str | None) -> list[Place]:
    """The places of one adapter.

    Args:
        placement: `houlsby`: after every attention and every feed-forward sub-layer (cross-attention too). `pfeiffer`:
            after every feed-forward sub-layer; where the model normalises after the sum, the adapter reads what the
            layer norm puts out, as in the paper, otherwise what the sub-layer puts out.
        target_modules: put the adapters after these modules instead: names, or a regular expression.

    Raises:
        UserError: no place was found, or no module has such a name; the message lists those that could be named.
    """
    modules = dict(own_modules(model))
    linear = [name for name, module in modules.items() if features(module) and re.search(r"\.\d+\.", name)]
    if target_modules is not None:
        return [Place(name) for name in matching(linear, target_modules)]

    attention = [name for name in linear if ATTENTION.search(name)]
    feed_forward = [name for name in linear if FEED_FORWARD.search(name) and name not in attention]
    if not feed_forward or (placement == "houlsby" and not attention):
        missing = "attention" if feed_forward else "feed-forward"
        raise UserError(
            f"bottleneck: found no {missing} output in {type(model).__name__}; name in target_modules the linear "
            f"layers that end a sub-layer: {', '.join(ends(linear))}"
        )
    if placement == "houlsby":
        return [Place(name) for name in attention + feed_forward]
    places = [after_norm(name, dict(own_modules(model, whole=True)), model.config.model_type) for name in feed_forward]
    if any(place.name not in modules for place in places):
        raise UserError("bottleneck: another adapter trains the layer norms that this one would stand at")
    return places


def after_norm(name: str, modules: dict[str, nn.Module], model_type: str) -> Place:
    """Pfeiffer's place at a feed-forward block: its layer norm where that follows the sum."""
    for last, norm, entrance in POST_NORM:
        if last.fullmatch(name) and last.sub(norm, name) in modules and last.sub(entrance, name) in modules:
            if name.endswith(".fc2") and model_type not in FC2_POST_NORM:
                continue
            return Place(last.sub(norm, name), last.sub(entrance, name))
    return Place(name)


def matching(names: list[str], wanted: list[str] | str) -> list[str]:
    """The names that end in one of the wanted ones, or that match a regular expression as a whole.

    Raises:
        UserError: one of the wanted ones matches nothing.
    """
    if isinstance(wanted, str):
        found = [name for name in names if re.fullmatch(wanted, name)]
        wanted = [] if found else [wanted]
    else:
        found = [name for name in names if any(f".{name}".endswith(f".{each}") for each in wanted)]
    for each in wanted:
        if not any(f".{name}".endswith(f".{each}") for name in found):
            raise UserError(f"target_modules: no linear layer '{each}'{did_you_mean(each, ends(names))}")
    return found


def ends(names: list[str]) -> list[str]:
    """Names without block numbers and what stands before them, each once: `attention.output.dense`."""
    return sorted({re.split(r"\.\d+\.", name)[-1] for name in names})


def features(module: nn.Module) -> int | None:
    """How many features a linear layer (plain, quantised or transformers' Conv1D) puts out; None for another module."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return getattr(module, "nf", None) if type(module).__name__ == "Conv1D" else None


def find_embeddings(model: nn.Module) -> tuple[str, str | None]:
    """The module that puts out the embeddings, and the one that turns hidden states into scores of tokens, if any.

    Raises:
        UserError: the model has an encoder and a decoder.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"invertible: {type(model).__name__} has an encoder and a decoder; MAD-X's invertible adapters stand "
            "between the embeddings and the output of one stack: take an encoder or a decoder"
        )
    modules = dict(own_modules(model))
    tokens, scores = (
        module.get_base_layer() if hasattr(module, "get_base_layer") else module
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    name = next((name for name in modules if EMBEDDINGS.search(name)), None)
    name = name or next(name for name, module in modules.items() if module is tokens)
    return name, next((name for name, module in modules.items() if module is scores), None)
