"""Small models of the architectures that the adapters must find their places in, built from configs."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY, HIDDEN, LAYERS, LENGTH = 60, 32, 2, 9
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
LLAMA = BERT | {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
SEQ2SEQ = {"d_model": HIDDEN, "vocab_size": VOCABULARY, "decoder_start_token_id": 0, "pad_token_id": 0}
BART = SEQ2SEQ | {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in (("layers", LAYERS), ("attention_heads", 4), ("ffn_dim", 64))
}
MODELS = {
    "bert": (BertForMaskedLM, BertConfig, BERT),
    "bert-classifier": (BertForSequenceClassification, BertConfig, BERT | {"num_labels": 3}),
    "roberta": (RobertaForMaskedLM, RobertaConfig, BERT | {"pad_token_id": 1}),
    "roberta-classifier": (RobertaForSequenceClassification, RobertaConfig, BERT | {"pad_token_id": 1}),
    "llama": (LlamaForCausalLM, LlamaConfig, LLAMA),
    "llama-classifier": (LlamaForSequenceClassification, LlamaConfig, LLAMA),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, LLAMA),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, LLAMA | {"head_dim": 8}),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 32},
    ),
    "t5": (
        T5ForConditionalGeneration,
        T5Config,
        SEQ2SEQ | {"d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4, "feed_forward_proj": "gated-gelu"},
    ),
    "bart": (BartForConditionalGeneration, BartConfig, BART | {"max_position_embeddings": 32}),
}
TASK_TYPES = {"llama": "CAUSAL_LM", "qwen2": "CAUSAL_LM", "qwen3": "CAUSAL_LM", "gpt2": "CAUSAL_LM"}
TASK_TYPES |= {"t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM"}


def build(kind: str, **changes):
    """A model of this kind, the same each time, in evaluation mode."""
    cls, config, settings = MODELS[kind]
    torch.manual_seed(0)
    model = cls(config(**settings | changes))
    with torch.no_grad():  # biases and layer norms that are not all zeros and ones, or nothing could be seen of them
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def inputs_of(kind: str, length: int = LENGTH) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (2, length), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind in ("t5", "bart"):
        batch["decoder_input_ids"] = torch.randint(2, VOCABULARY, (2, 5), generator=generator)
    return batch


def logits(model, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of(kind)).logits


def loss_of(model, kind: str) -> torch.Tensor:
    batch = inputs_of(kind)
    if kind.endswith("-classifier"):
        return model(**batch, labels=torch.tensor([0, 1])).loss
    labels = batch.pop("decoder_input_ids") if "decoder_input_ids" in batch else batch["input_ids"]
    return model(**batch, labels=labels).loss


def disturb(model, seed: int = 3, size: float = 0.05) -> None:
    """Give all trained parameters random values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
