"""Models and tokenizers by name: a Hub name, a folder, another run's output, or built from a config."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.core import peft_block
from recipes.core.catalog import check_source
from recipes.core.errors import UserError, did_you_mean
from recipes.core.weights import load_pretrained

if TYPE_CHECKING:
    from datasets import DatasetDict
    from peft import PeftConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

DTYPES = ["auto", "float32", "bfloat16", "float16"]
HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
TASK_TYPES = {  # PEFT's names; it has none for masked LMs, and this one adds a prompt and nothing else
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForMaskedLM": "FEATURE_EXTRACTION",
    "AutoModelForPreTraining": "FEATURE_EXTRACTION",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
}


@dataclass
class ModelConfig:
    """Which model is trained, from which weights, and which of them move."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Hub name, folder, or another run (runs/<config>); null with model_config."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub model."})
    model_config: dict[str, Any] | None = field(
        default=None, metadata={"help": "Build from scratch: model_type and the fields of its transformers config."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Where the tokenizer is, if not with the model."}
    )
    tokenizer_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Passed to AutoTokenizer.from_pretrained, such as pad_token."}
    )
    dtype: str | None = field(default="float32", metadata={"help": "Type of the loaded weights.", "choices": DTYPES})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, …"})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the base in 4 bits (bitsandbytes); needs peft."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the base in 8 bits (bitsandbytes); needs peft."})
    bnb_4bit_quant_type: str = field(default="nf4", metadata={"help": "4-bit type.", "choices": ["nf4", "fp4"]})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantise the quantisation constants too."})
    peft: dict[str, Any] | None = field(
        default=None, metadata={"help": "Train an adapter: method (lora, ia3, …) and the fields of its PEFT config."}
    )
    new_weights: set[str] = field(default_factory=set, init=False)  # parameters that the loaded weights did not have

    def __post_init__(self):
        if (self.model_name_or_path is None) == (self.model_config is None):
            raise UserError("set exactly one of model_name_or_path (trained weights) and model_config (from scratch)")
        if self.load_in_4bit and self.load_in_8bit:
            raise UserError("load_in_4bit and load_in_8bit exclude each other")
        if not self.load_in_4bit and (self.use_bnb_nested_quant or self.bnb_4bit_quant_type != "nf4"):
            raise UserError("use_bnb_nested_quant and bnb_4bit_quant_type are of load_in_4bit, which is not set")
        if (self.load_in_4bit or self.load_in_8bit) and self.peft is None:
            raise UserError(
                "load_in_4bit and load_in_8bit freeze the base model; add a peft block to train an adapter"
            )
        if self.model_config is not None and self.tokenizer_source is None:
            raise UserError("model_config builds no tokenizer; set tokenizer_name_or_path")
        if self.model_config is not None and self.peft is not None:
            raise UserError(
                "peft adapts trained weights: the random ones that model_config builds would stay random, and are not "
                "saved with the adapter"
            )
        self.peft_config("CAUSAL_LM")
        if self.model_config is not None:
            self._scratch_config()

    @property
    def tokenizer_source(self) -> str | None:
        return self.tokenizer_name_or_path or self.model_name_or_path

    def sources(self) -> dict[str, str]:
        """The folders or Hub names this config reads, by key."""
        named = {"model_name_or_path": self.model_name_or_path, "tokenizer_name_or_path": self.tokenizer_name_or_path}
        return {key: path for key, path in named.items() if path}

    def peft_config(self, task_type: str) -> "PeftConfig | None":
        """PEFT's own config for the `peft` block, every key checked against it; None without a block.

        Args:
            task_type: PEFT's name of the task: CAUSAL_LM, SEQ_CLS, …
        """
        if self.peft is None:
            return None
        config = peft_block.read(self.peft, task_type, self.tokenizer_source)
        config.revision = self.model_revision if self.model_revision != "main" else None
        peft_block.train_new_modules(config, self.new_weights)
        return config

    def adapt(self, model: "PreTrainedModel", task_type: str, training: "TrainingArguments") -> "PreTrainedModel":
        """The loaded model under the adapter of the `peft` block, for transformers' own Trainer; without one, itself."""
        return peft_block.adapt(model, self.peft_config(task_type), training.activation_checkpointing)

    def freeze_all_but_new(self, model: "PreTrainedModel") -> None:
        """Let only the weights train that the loaded ones did not have: a linear probe.

        Raises:
            UserError: there are none, or there is an adapter to train.
        """
        if self.peft is not None or not self.new_weights:
            why = "a peft block trains more" if self.peft is not None else "the model has its head already"
            raise UserError(f"freeze_base trains a new head alone, and {why}")
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name in self.new_weights

    def _scratch_config(self, **special: Any) -> "PretrainedConfig":
        from transformers import CONFIG_MAPPING

        block = dict(self.model_config)
        kind = block.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise UserError(
                f"model_config: 'model_type' must name a model, not {kind!r}{did_you_mean(kind, CONFIG_MAPPING)}"
            )
        cls = CONFIG_MAPPING[kind]
        known = {item.name for item in dataclasses.fields(cls) if item.init}
        for key in block:
            if key not in known:
                raise UserError(f"model_config: {kind} has no key '{key}'{did_you_mean(key, known)}")
        try:
            return cls(**{key: value for key, value in special.items() if key in known} | block)
        except Exception as error:  # huggingface_hub's validation errors share no public base class
            raise UserError(f"model_config: {error}") from None

    def load_tokenizer(
        self, data: "DatasetDict | None" = None, needs: Sequence[str] = ("eos_token", "pad_token")
    ) -> "PreTrainedTokenizerBase":
        """The tokenizer, sure to have the special tokens it `needs` and, for conversational data, a chat template.

        Raises:
            UserError: it cannot be opened, or one of these is missing; the message says which key sets it.
        """
        from transformers import AutoTokenizer
        from trl import is_conversational

        source = self.tokenizer_source
        check_source(source, "tokenizer_name_or_path" if self.tokenizer_name_or_path else "model_name_or_path")
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **self._tokenizer_options)
        except Exception as error:  # each backend raises its own kind
            raise UserError(f"no tokenizer could be opened at {source}: {error}") from None
        for kind in needs:
            if getattr(tokenizer, kind) is None:
                raise UserError(
                    f"the tokenizer of {source} has no {kind}; set tokenizer_kwargs: {{{kind}: …}} to one of its tokens"
                )
        self._check_new_tokens(tokenizer)
        if data is not None and is_conversational(data["train"][0]) and tokenizer.chat_template is None:
            raise UserError(
                f"the data is conversational and the tokenizer of {source} has no chat template; "
                "set tokenizer_kwargs: {chat_template: …} or use plain text columns"
            )
        return tokenizer

    @property
    def _tokenizer_options(self) -> dict[str, Any]:
        own = self.tokenizer_name_or_path is None and self.model_revision != "main"  # it comes with the model
        return ({"revision": self.model_revision} if own else {}) | (self.tokenizer_kwargs or {})

    def _check_new_tokens(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise a UserError if an adapter would leave the embeddings of tokens that the model never saw as they are."""
        if self.peft is None or (not self.tokenizer_kwargs and self.tokenizer_name_or_path is None):
            return
        from transformers import AutoTokenizer

        try:
            known = len(AutoTokenizer.from_pretrained(self.model_name_or_path))
        except Exception:  # the model comes without a tokenizer of its own: nothing to compare with
            return
        new = sorted(set(range(known, len(tokenizer))) - {tokenizer.pad_token_id})  # padding is never looked at
        if new and not {"modules_to_save", "trainable_token_indices"} & self.peft.keys():
            raise UserError(
                f"peft: the embedding of {tokenizer.convert_ids_to_tokens(new[0])!r} is new to {self.model_name_or_path} "
                f"and would stay frozen; train it with peft: {{trainable_token_indices: {new}}}"
            )

    def load_causal_lm(self, data: "DatasetDict | None" = None) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        """Tokenizer and language model; `data` tells whether a chat template is needed."""
        from transformers import AutoModelForCausalLM

        return self.load(AutoModelForCausalLM, data)

    def load_scorer(self, data: "DatasetDict | None" = None) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        """Tokenizer and a model with one scalar head that reads the last real token.

        Raises:
            UserError: padding is the EOS token, by which a decoder would find the token before it and learn the score there.
        """
        from transformers import AutoModelForSequenceClassification

        tokenizer, model = self.load(AutoModelForSequenceClassification, data, num_labels=1)
        if hasattr(model, "score") and tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise UserError(
                f"{tokenizer.eos_token!r} is both EOS and padding, so the score would be learned at the token before EOS "
                "and read at EOS; set tokenizer_kwargs: {pad_token: …} to another token of the vocabulary"
            )
        return tokenizer, model

    def load(
        self,
        auto: type,
        data: "DatasetDict | None" = None,
        needs: Sequence[str] = ("eos_token", "pad_token"),
        **head: Any,
    ) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        """Tokenizer and a model of one of transformers' Auto classes, with trained weights or from scratch.

        Args:
            data: tells whether a chat template is needed.
            needs: the special tokens that the tokenizer must have.
            head: fields of the model's config that its head depends on, such as `num_labels`.
        """
        tokenizer = self.load_tokenizer(data, needs)
        special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        if self.model_config is not None:
            config = self._scratch_config(vocab_size=len(tokenizer), **special)
            for key, value in head.items():
                setattr(config, key, value)
            dtype = None if self.dtype in (None, "auto") else self.dtype
            model = auto.from_config(config, attn_implementation=self.attn_implementation, dtype=dtype)
        else:
            if self.peft is not None and (Path(self.model_name_or_path) / "adapter_config.json").is_file():
                raise UserError(
                    f"model_name_or_path: {self.model_name_or_path} is an adapter, and one on it would be saved as one "
                    "of its base; merge it first: python -m scripts.export "
                    f"{self.model_name_or_path} --output_dir runs/export/…"
                )
            model = load_pretrained(
                auto,
                self.model_name_or_path,
                new_weights=self.new_weights,
                revision=self.model_revision,
                dtype=self.dtype,
                attn_implementation=self.attn_implementation,
                quantization_config=self._quantization(with_head=TASK_TYPES[auto.__name__] in HEAD_TASKS),
                **head,
            )
        model.config.pad_token_id = tokenizer.pad_token_id
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.pad_token_id = tokenizer.pad_token_id
            model.generation_config.eos_token_id = tokenizer.eos_token_id
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise UserError(
                f"the tokenizer of {self.tokenizer_source} has {len(tokenizer)} tokens and the model "
                f"{self.model_name_or_path or 'of model_config'} only {rows}; they do not belong together"
            )
        if self.peft is not None:
            peft_block.check_model(self.peft_config(TASK_TYPES[auto.__name__]), model)
        return tokenizer, model

    def _quantization(self, with_head: bool) -> Any:
        """How to load the base in few bits; a new head stays as it is, for 4 bits cannot be trained."""
        if not (self.load_in_4bit or self.load_in_8bit):
            return None
        import torch
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=self.load_in_4bit,
            load_in_8bit=self.load_in_8bit,
            llm_int8_skip_modules=[*peft_block.HEADS, "pooler"] if with_head else None,
            bnb_4bit_quant_type=self.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=self.use_bnb_nested_quant,
            bnb_4bit_compute_dtype=getattr(torch, self.dtype) if self.dtype not in (None, "auto") else torch.float32,
        )
