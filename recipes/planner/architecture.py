"""What a model is made of, counted on the model itself, built without memory on PyTorch's meta device."""

import copy
import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from recipes.core import ModelConfig
from recipes.core.peft_block import train_heads

# The model of a task, by PEFT's name of it.
MODELS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model by its transformers config and its task; all counts are numbers of parameters, tied ones once."""

    name: str
    config: PreTrainedConfig
    task: str = "CAUSAL_LM"

    # ------------------------------------------------------------------------------------------------------- shape
    @property
    def text(self) -> PreTrainedConfig:
        return self.config.get_text_config()

    @property
    def layers(self) -> int:
        """Layers of the trunk, or of the encoder and of the decoder each."""
        return self.text.num_hidden_layers

    @property
    def hidden(self) -> int:
        return self.text.hidden_size

    @property
    def vocabulary(self) -> int:
        return self.text.vocab_size

    @property
    def heads(self) -> int:
        return self.text.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        return getattr(self.text, "num_key_value_heads", None) or self.heads

    @property
    def head_size(self) -> int:
        return getattr(self.text, "head_dim", None) or getattr(self.text, "d_kv", None) or self.hidden // self.heads

    @property
    def looks_back(self) -> bool:
        """Whether a token sees those before it alone."""
        return self.task == "CAUSAL_LM"

    @property
    def writes(self) -> bool:
        """Whether a decoder writes what an encoder has read."""
        return self.task == "SEQ_2_SEQ_LM"

    # ------------------------------------------------------------------------------------------------------ counts
    @cached_property
    def model(self) -> PreTrainedModel:
        return build(self, self.config, "meta")

    @cached_property
    def parameters(self) -> int:
        return self.model.num_parameters()

    @cached_property
    def embedding(self) -> int:
        """Of the token embedding, which is the output head too where they are tied."""
        return self.model.get_input_embeddings().weight.numel()

    @property
    def tied(self) -> bool:
        head = self.model.get_output_embeddings()
        return head is not None and head.weight is self.model.get_input_embeddings().weight

    @property
    def head(self) -> int:
        """Of the head that has a row for each token, whether or not it shares them with the embedding; 0 without one."""
        head = self.model.get_output_embeddings()
        return 0 if head is None else head.weight.numel()

    @cached_property
    def stacks(self) -> nn.ModuleList:
        """The layers: one list of them, or the encoder's and the decoder's."""
        trunks = [self.model.get_encoder(), self.model.get_decoder()] if self.writes else [self.model]
        return nn.ModuleList(self._layers_of(trunk) for trunk in trunks)

    def _layers_of(self, trunk: nn.Module) -> nn.ModuleList:
        lists = (module for module in trunk.modules() if isinstance(module, nn.ModuleList))
        return next(modules for modules in lists if len(modules) == self.layers)

    @property
    def layer(self) -> int:
        """Of one layer, the largest where they differ."""
        return max(sum(weight.numel() for weight in layer.parameters()) for stack in self.stacks for layer in stack)

    @property
    def in_layers(self) -> int:
        """Of all layers."""
        return sum(weight.numel() for weight in self.stacks.parameters())

    @cached_property
    def matrices(self) -> int:
        """Of all matrices inside the layers: what takes part in products with every token."""
        return sum(_matrices(stack) for stack in self.stacks)

    @cached_property
    def linear(self) -> int:
        """Of the `nn.Linear` layers inside the layers: what bitsandbytes quantises."""
        linear = (module for module in self.stacks.modules() if isinstance(module, nn.Linear))
        return sum(module.weight.numel() for module in linear)

    def active(self, written: float = 0.0) -> float:
        """Of the matrices, those a token meets: all, but for the experts a router leaves out, and for the encoder's or the
        decoder's, where this share of the tokens is `written` and the others are read."""
        if self.writes:
            encoder, decoder = self.stacks
            return (1 - written) * _matrices(encoder) + written * _matrices(decoder)
        experts = [weight.numel() for name, weight in self.stacks.named_parameters() if ".experts." in name]
        count = getattr(self.text, "num_local_experts", None) or getattr(self.text, "num_experts", None)
        if not experts or not count:
            return self.matrices
        return self.matrices - round(sum(experts) * (1 - self.text.num_experts_per_tok / count))

    def can_split(self, parts: int) -> bool:
        """Whether transformers has a plan for splitting the layers' matrices (tensor parallel), and heads to share out."""
        inner = getattr(self.text, "intermediate_size", 0) or 0
        even = self.heads % parts == 0 and self.key_value_heads % parts == 0 and inner % parts == 0
        return "layers.*.self_attn.q_proj" in (self.text.base_model_tp_plan or {}) and even

    @lru_cache(maxsize=16)  # noqa: B019  # an architecture lives as long as the program
    def split(self, parts: int) -> "Architecture":
        """What one of `parts` processes computes: as many layers as wide, with its share of heads and inner channels."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.head_dim = self.head_size
        text.num_attention_heads = self.heads // parts
        text.num_key_value_heads = self.key_value_heads // parts
        text.intermediate_size //= parts
        return Architecture(f"{self.name}, 1 of {parts}", config)

    def shortened(self, layers: int) -> PreTrainedConfig:
        """The config of a model of this kind with fewer layers."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        for count in ("num_hidden_layers", "num_decoder_layers", "decoder_layers"):
            if hasattr(text, count):
                setattr(text, count, layers)
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
        return config


def _matrices(layers: nn.Module) -> int:
    return sum(weight.numel() for weight in layers.parameters() if weight.dim() > 1)


def build(architecture: Architecture, config: PreTrainedConfig, device: str, **options: Any) -> PreTrainedModel:
    """A model for the architecture's task, of a config like its own, its weights not even drawn: for a device that holds no
    memory."""
    with torch.device(device):
        return getattr(transformers, MODELS[architecture.task]).from_config(config, **options)


@dataclass(frozen=True)
class Adapter:
    """A `peft` block as text.

    `task`: PEFT's name of it. `in_float32`: its weights are float32 where the model's are not. `casts`: what enters it is
    cast to them, as PEFT does.
    """

    block: str
    in_float32: bool = True
    casts: bool = True
    task: str = "CAUSAL_LM"

    def attach(self, model: PreTrainedModel) -> PreTrainedModel:
        """Puts the adapter into the model and freezes everything else."""
        from peft import get_peft_model

        block = ModelConfig(model_name_or_path=model.config._name_or_path, peft=json.loads(self.block))
        config = block.peft_config(self.task)
        train_heads(config, model)
        return get_peft_model(model, config, autocast_adapter_dtype=self.in_float32)

    @lru_cache(maxsize=64)  # noqa: B019  # a few numbers
    def parameters(self, architecture: Architecture) -> int:
        """How many parameters it trains."""
        with torch.device("meta"):
            model = self.attach(build(architecture, architecture.config, "meta"))
        return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
