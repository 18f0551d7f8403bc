"""BART that translates into its own language: a new encoder of source tokens takes the place of BART's embeddings.

Paper: Lewis et al. 2019, BART, arXiv 1910.13461, section 3.4 and figure 3b.
"""

from typing import Any

import torch
from transformers import AutoConfig, BartConfig, BartForConditionalGeneration
from transformers.models.bart.modeling_bart import BartEncoder

from recipes.core import UserError
from recipes.core.catalog import check_source

SOURCE = "model.encoder.source."  # names of the new encoder's parameters
FIRST_STEP = (  # what else the first step trains: BART's positions, the input projection of its first self-attention
    "model.encoder.bart.embed_positions.weight",
    "model.decoder.embed_positions.weight",
    *(f"model.encoder.bart.layers.0.self_attn.{name}_proj.weight" for name in "qkv"),
)
TIED = {
    "model.decoder.embed_tokens.weight": "model.shared.weight",
    "model.encoder.bart.embed_tokens.weight": "model.shared.weight",
    "lm_head.weight": "model.shared.weight",
}


def check_stage(path: str | None, stage: int) -> None:
    """Raise a UserError unless `path` names a BART for stage 1, or what stage 1 made of one for stage 2."""
    if path is None:
        raise UserError("model_config: translation starts from a trained BART; name it with model_name_or_path")
    check_source(path, "model_name_or_path")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise UserError(f"model_name_or_path: no model could be opened at {path}: {error}") from None
    if config.model_type != "bart":
        raise UserError(f"model_name_or_path: {path} is a {config.model_type}; the two stages are BART's")
    if hasattr(config, "source_encoder") != (stage == 2):
        held = "has a source encoder already" if stage == 1 else "has no source encoder yet"
        raise UserError(f"stage: {path} {held}; stage 1 starts from a plain BART, stage 2 from the model of stage 1")


class SourceThenBart(torch.nn.Module):
    """BART's encoder on what the source encoder makes of foreign tokens, instead of on embeddings."""

    main_input_name = "input_ids"

    def __init__(self, source: BartEncoder, bart: BartEncoder):
        super().__init__()
        self.source, self.bart = source, bart

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """[batch, length] token ids of the source's own vocabulary → BART's encoder output, [batch, length, width]."""
        states = self.source(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kwargs.pop("inputs_embeds", None)
        return self.bart(inputs_embeds=states, attention_mask=attention_mask, **kwargs)


class BartForTranslation(BartForConditionalGeneration):
    """BartForConditionalGeneration whose encoder is a SourceThenBart; `config.source_encoder` holds the new one's fields."""

    def __init__(self, config: BartConfig):
        super().__init__(config)
        source = BartConfig(**config.source_encoder)
        source._attn_implementation = config._attn_implementation
        self.model.encoder = SourceThenBart(BartEncoder(source), self.model.encoder)
        # BartModel ties its encoder's embeddings under their old name.
        self.model._tied_weights_keys, self.model.all_tied_weights_keys = None, {}
        self._tied_weights_keys = TIED
        self.post_init()

    @classmethod
    def from_bart(cls, bart: BartForConditionalGeneration, source: dict[str, Any]) -> "BartForTranslation":
        """BART's weights with a source encoder of random ones.

        Args:
            source: fields of the new encoder's BartConfig: `vocab_size`, `encoder_layers`, `pad_token_id`, …; what is not
                said is as in BART. Its width is BART's.
        """
        kept = ("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "max_position_embeddings", "dropout")
        kept += ("attention_dropout", "activation_dropout", "activation_function", "init_std", "scale_embedding")
        config = BartConfig.from_dict(bart.config.to_dict())
        config.source_encoder = {name: getattr(config, name) for name in kept} | source | {"d_model": config.d_model}
        model = cls._from_config(config, attn_implementation=bart.config._attn_implementation)
        weights = {
            name.replace("model.encoder.", "model.encoder.bart."): value for name, value in bart.state_dict().items()
        }
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected
        assert all(name.startswith(SOURCE) for name in missing)
        model.generation_config = bart.generation_config
        return model

    def train_in_stage(self, stage: int) -> None:
        """Choose what moves. Stage 1: the source encoder, BART's positions, and the self-attention input projection of
        BART's first encoder layer. Stage 2: everything."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(stage == 2 or name.startswith(SOURCE) or name in FIRST_STEP)
