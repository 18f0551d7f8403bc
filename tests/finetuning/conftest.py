"""Small models of each kind with their tokenizers, and a little data for each task."""

import json
import shutil
from pathlib import Path

import pytest

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="session")
def models(tiny, tmp_path_factory) -> Path:
    """A folder with the models of `tiny`, `encoder`, a BERT of 2 layers with a WordPiece, `t5` and a `bart` of its own."""
    import torch
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
    from tokenizers.models import WordPiece
    from transformers import (
        AutoTokenizer,
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertForPreTraining,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [f"say {word} please . it was good and bad : yes no ? number other" for word in WORDS]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*texts, *(letter * 2 for letter in "abcdefghijklmnopqrstuvwxyz")], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)

    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny / "tokenizer", folder / "tokenizer")
    for name, cls in (("model", LlamaForCausalLM), ("scorer", LlamaForSequenceClassification)):
        # the 4-bit kernels of CPUs take blocks of 64 by 32
        config = LlamaConfig.from_pretrained(tiny / name, hidden_size=64, head_dim=16)
        torch.manual_seed(0)
        cls(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny / name).save_pretrained(folder / name)

    torch.manual_seed(0)
    small = {"pad_token_id": 0, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    config = BertConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        **small,
    )
    BertForPreTraining(config).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")

    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    ends = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "vocab_size": len(tokenizer),
    }
    t5 = T5Config(
        d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=tokenizer.pad_token_id, **ends
    )
    size = {"layers": 2, "attention_heads": 4, "ffn_dim": 64}
    halves = {f"{half}_{key}": value for half in ("encoder", "decoder") for key, value in size.items()}
    bart = BartConfig(
        d_model=64,
        max_position_embeddings=128,
        init_std=0.2,
        bos_token_id=None,
        forced_eos_token_id=None,
        decoder_start_token_id=tokenizer.eos_token_id,
        **halves,
        **ends,
    )
    for name, model in (("t5", T5ForConditionalGeneration(t5)), ("bart", BartForConditionalGeneration(bart))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def task_data(tmp_path_factory) -> Path:
    """A folder of JSONL files, one a task: labels.jsonl, pairs.jsonl, words.jsonl, questions.jsonl, texts.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    numbers = [(first, second) for first in WORDS for second in WORDS[:3]]
    rows = {
        "labels": [
            {"text": f"say {first} {second} please", "label": "good" if first < second else "bad"}
            for first, second in numbers
        ],
        "pairs": [{"source": f"say {first} {second}", "target": f"{second} {first}"} for first, second in numbers],
        "words": [
            {"words": ["say", first, "please", second], "tags": ["O", "B-NUMBER", "O", "B-NUMBER"]}
            for first, second in numbers
        ],
        "questions": [
            {
                "question": f"say {first} ?",
                "context": f"please say {first} and {second} .",
                "answers": {"text": [f"{first} and"], "answer_start": [11]},
            }
            for first, second in numbers
        ],
        "texts": [{"text": f"say {first} and {second} please"} for first, second in numbers],
    }
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    return folder
