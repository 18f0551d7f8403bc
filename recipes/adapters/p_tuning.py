"""P-tuning: pseudo tokens anywhere in a cloze question, whose embeddings a small network makes.

Paper: Liu et al. 2021, GPT Understands, Too, arXiv 2103.10385, section 3 (equations 5 and 6).

PEFT's own P-tuning puts all pseudo tokens in front. Here they stand where the template has them: their ids begin where
the vocabulary ends (see `recipes.adapters.cloze`), and the layer around the input embeddings knows what to do with them.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from peft.config import PeftConfig
from peft.utils import PeftType
from torch import nn

from recipes.adapters.cloze import ClozeTemplate
from recipes.adapters.layers import AdapterLayer, AdapterModel, own_modules, parameter_like
from recipes.core.errors import UserError


@dataclass
class PTuningTemplateConfig(PeftConfig):
    """Learn the embeddings of a template's pseudo tokens.

    Learning rates: the authors' code takes 1e-5 with the model frozen (LAMA, a hundred epochs), and 1e-4 for the prompt
    beside 1e-5 for the model (SuperGLUE).
    """

    template: str | None = field(
        default=None, metadata={"help": "The cloze template whose [P] are counted: '[P]*3 {text} It was [MASK] .'"}
    )
    num_pseudo_tokens: int | None = field(default=None, metadata={"help": "How many; default: as in template."})
    encoder: Literal["lstm", "mlp", "none"] = field(
        default="lstm",
        metadata={
            "help": "lstm: a bidirectional LSTM and a two-layer MLP, as in the paper; mlp: the latter alone; none."
        },
    )
    encoder_hidden_size: int | None = field(
        default=None, metadata={"help": "Hidden size of the LSTM's two directions together; default: the model's."}
    )
    encoder_num_layers: int = field(default=2, metadata={"help": "Layers of the LSTM; 2 in the authors' code."})
    encoder_dropout: float = field(default=0.0, metadata={"help": "Dropout between the LSTM's layers."})
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Leave it out: the place is the input embeddings."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained whole and saved with the prompt."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.P_TUNING_TEMPLATE
        if self.target_modules is not None:
            raise UserError("target_modules: P-tuning has one place, the input embeddings; drop the key")
        counted = ClozeTemplate(self.template).num_pseudo_tokens if self.template else self.num_pseudo_tokens
        if not counted:
            raise UserError(
                "p_tuning_template: set template to a text with [P], such as '[P]*3 {text} It was [MASK] .'"
            )
        if self.num_pseudo_tokens not in (None, counted):
            raise UserError(f"num_pseudo_tokens is {self.num_pseudo_tokens} and the template has {counted}")
        self.num_pseudo_tokens = counted


class PromptEncoder(nn.Module):
    """The pseudo tokens' embeddings, (num_pseudo_tokens, features): h_i = MLP(LSTM(e)_i) (equations 5 and 6)."""

    def __init__(self, features: int, config: PTuningTemplateConfig):
        super().__init__()
        hidden = config.encoder_hidden_size or features
        self.embeddings = nn.Parameter(torch.randn(config.num_pseudo_tokens, features))
        if config.encoder == "none":
            nn.init.normal_(self.embeddings, std=0.02)
        if config.encoder == "lstm":
            self.lstm = nn.LSTM(
                features,
                hidden // 2,
                num_layers=config.encoder_num_layers,
                dropout=config.encoder_dropout,
                bidirectional=True,
                batch_first=True,
            )
        if config.encoder != "none":
            entered = hidden // 2 * 2 if config.encoder == "lstm" else features
            self.mlp = nn.Sequential(nn.Linear(entered, hidden), nn.ReLU(), nn.Linear(hidden, features))

    def forward(self) -> torch.Tensor:
        embeddings = self.embeddings
        if hasattr(self, "lstm"):
            embeddings = self.lstm(embeddings[None])[0][0]
        return self.mlp(embeddings) if hasattr(self, "mlp") else embeddings


class PromptLayer(AdapterLayer):
    """The input embeddings, with the active adapter's prompt at the ids beyond the vocabulary."""

    adapter_layer_names = ("p_tuning_template_encoder",)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)  # num_embeddings, padding_idx: what else reads of an embedding

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) ids to (batch, length, features).

        Raises:
            UserError: there are pseudo tokens and no active adapter that has embeddings for them.
        """
        encoders, vocabulary = self.active_blocks, self.base_layer.num_embeddings
        if len(encoders) > 1:
            raise UserError("p_tuning_template: set one adapter active; two prompts have the same places")
        if not encoders:
            if bool((ids >= vocabulary).any()):
                raise UserError(
                    "the input has pseudo tokens, and the model without its adapter has no embeddings for them"
                )
            return self.base_layer(ids)
        pseudo = ids >= vocabulary
        prompt = encoders[0]()
        embedded = self.base_layer(ids.masked_fill(pseudo, 0))
        chosen = prompt[(ids - vocabulary).clamp(min=0)].to(embedded.dtype)
        return torch.where(pseudo.unsqueeze(-1), chosen, embedded)


class PTuningTemplateModel(AdapterModel):
    """Tuner of P-tuning: one layer around the input embeddings."""

    prefix = "p_tuning_template_"
    why_not_merged = "its prompt is part of the input, not of a weight"

    def find(self, config: PTuningTemplateConfig, model: nn.Module) -> list[str]:
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError(
                f"p_tuning_template: {type(model).__name__} has an encoder and a decoder; take a masked language model "
                "or a decoder"
            )
        tokens = model.get_input_embeddings()
        tokens = tokens.get_base_layer() if isinstance(tokens, PromptLayer) else tokens
        return [next(name for name, module in own_modules(model) if module is tokens)]

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key) -> None:
        if not isinstance(target, PromptLayer):
            target = PromptLayer(target)
            setattr(parent, target_name, target)
        encoder = PromptEncoder(target.base_layer.weight.shape[1], peft_config)
        target.add_block(adapter_name, encoder, parameter_like(target.base_layer, self.model))
