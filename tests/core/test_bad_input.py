"""A user's mistake is one line on stderr and exit status 2; nothing is written. Each row of a table is one."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import recipes.__main__ as program

ROOT = Path(__file__).resolve().parents[2]
GONE = object()  # a setting that the config does without

CHAT = [
    {
        "prompt": [{"role": "user", "content": f"say {word}"}],
        "completion": [{"role": "assistant", "content": f"{word} it is"}],
        "chosen": [{"role": "assistant", "content": word}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for word in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
]
PLAIN = [
    {
        "prompt": row["prompt"][0]["content"],
        "completion": row["completion"][0]["content"],
        "text": row["prompt"][0]["content"] * 3,
        "source": row["prompt"][0]["content"],
        "target": row["completion"][0]["content"],
    }
    for row in CHAT
]
LABELLED = [
    {"text": row["prompt"][0]["content"], "label": "short" if len(row["prompt"][0]["content"]) < 8 else "long"}
    for row in CHAT
]
MODEL = {"model_name_or_path": "{tiny}/model"}
TRAINING = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 2, "bf16": False}
DATA = {"dataset_name": "rows.jsonl", "test_split_size": 0.25}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
ENCODER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
BERT = {"model_type": "bert", **ENCODER}
BART = {
    "model_type": "bart",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 32,
}
GLM_TOKENS = ["[MASK]", "[sMASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>"]
GROUPS = {
    **MODEL,
    "reward_funcs": ["{tiny}/scorer"],
    "max_completion_length": 4,
    "num_generations": 2,
    "num_generations_eval": 2,
    "beta": 0.1,
    **DATA,
    **TRAINING,
    "per_device_eval_batch_size": 4,
}
GOOD: dict[str, dict[str, Any]] = {
    "tokenization/train": {"vocab_size": 280, **DATA},
    "tokenization/compare": {"vocab_size": 320, "repeats": 1, **DATA},
    "tokenization/explain": {"text": "low low lower newest", "words": ["lowest"], "samples": 10},
    "pretraining/causal": {
        "model_config": LLAMA,
        "tokenizer_name_or_path": "{tiny}/model",
        "dataset_name": "rows.jsonl",
        "test_split_size": 0.25,
        "max_length": 16,
        **TRAINING,
    },
    "pretraining/masked": {
        "model_config": BERT,
        "tokenizer_name_or_path": "{tiny}/bart",
        **DATA,
        "max_length": 24,
        "next_sentence_prediction": False,
        **TRAINING,
    },
    "pretraining/denoising": {
        "model_config": BART,
        "tokenizer_name_or_path": "{tiny}/bart",
        **DATA,
        "max_length": 24,
        **TRAINING,
    },
    "pretraining/translation": {
        "model_name_or_path": "{tiny}/bart",
        "source_tokenizer_name_or_path": "{tiny}/tokenizer",
        "source_encoder_layers": 1,
        **DATA,
        "max_length": 16,
        **TRAINING,
    },
    "pretraining/span_corruption": {
        "model_config": T5,
        "tokenizer_name_or_path": "{tiny}/model",
        "tokenizer_kwargs": {"extra_special_tokens": ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]},
        "input_length": 16,
        **DATA,
        **TRAINING,
    },
    "pretraining/text_to_text": {
        "model_config": T5,
        "tokenizer_name_or_path": "{tiny}/model",
        "dataset_columns": {"task": "prompt", "prompt": "completion", "completion": "text"},
        **DATA,
        **TRAINING,
    },
    "pretraining/unified": {
        "model_config": {"model_type": "bert", **ENCODER, "type_vocab_size": 6},
        "tokenizer_name_or_path": "{tiny}/model",
        "tokenizer_kwargs": {"cls_token": "<|user|>", "sep_token": "<|assistant|>", "mask_token": "<|system|>"},
        "max_length": 16,
        **DATA,
        **TRAINING,
    },
    "pretraining/blank_infilling": {
        "model_config": {"model_type": "roberta-prelayernorm", **ENCODER, "type_vocab_size": 32},
        "tokenizer_name_or_path": "{tiny}/model",
        "tokenizer_kwargs": {"extra_special_tokens": GLM_TOKENS},
        "max_length": 16,
        **DATA,
        **TRAINING,
    },
    "finetuning/sft": {**MODEL, **DATA, "max_length": 64, **TRAINING},
    "finetuning/classification": {**MODEL, **DATA, "max_length": 64, **TRAINING},
    "rlhf/reward": {**MODEL, **DATA, "max_length": 64, **TRAINING},
    "rlhf/ppo": {
        **MODEL,
        "reward_funcs": ["{tiny}/scorer"],
        "response_length": 4,
        **DATA,
        "total_episodes": 8,
        "per_device_train_batch_size": 4,
        "bf16": False,
    },
    "rlhf/dpo": {**MODEL, **DATA, "max_length": 64, "beta": 0.1, **TRAINING},
    "rlhf/kto": {**MODEL, **DATA, "max_length": 64, "beta": 0.1, "dataset_columns": {"prompt": "prompt"}, **TRAINING},
    "rlhf/rloo": GROUPS,
    "rlhf/grpo": GROUPS,
    "rlhf/evaluate": {
        "policies": {"sft": "{tiny}/model"},
        "reward_model": "{tiny}/scorer",
        "gold": "math:fsum",
        "response_length": 4,
        **DATA,
    },
}


def jsonl(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@dataclass
class Mistake:
    """`settings` change the good config, `text` replaces it; `files` stand in the working directory."""

    name: str
    expected: str
    recipe: str = "finetuning/sft"
    settings: dict[str, Any] = field(default_factory=dict)
    argv: list[str] = field(default_factory=list)
    files: dict[str, str | bytes] = field(default_factory=dict)
    text: str | bytes | None = None


def sft(name: str, expected: str, *argv: str, files: dict | None = None, **settings: Any) -> Mistake:
    return Mistake(name, expected, settings=settings, argv=list(argv), files=files or {})


def of(recipe: str, name: str, expected: str, *argv: str, files: dict | None = None, **settings: Any) -> Mistake:
    return Mistake(name, expected, recipe, settings, list(argv), files or {})


def rows(name: str, expected: str, content: str | bytes, file: str = "bad.jsonl", **settings: Any) -> Mistake:
    return Mistake(name, expected, settings={"dataset_name": file, **settings}, files={file: content})


def yaml_text(name: str, expected: str, text: str | bytes, **files: str) -> Mistake:
    return Mistake(name, expected, text=text, files=files)


KEYS = [
    sft("misspelt key", "config.yaml:1: unknown key 'learning_rte'; did you mean 'learning_rate'?", learning_rte=1e-3),
    sft(
        "misspelt key on the command line",
        "command line: --max_step: unknown key 'max_step'; did you mean 'max_steps'?",
        "--max_step=3",
    ),
    sft("key with a hyphenated typo", "unknown key 'per_device_batch'", "--per-device-batch", "3"),
    sft(
        "misspelt key in peft",
        "config.yaml:3: peft: method lora has no key 'rang'",
        peft={"method": "lora", "rang": 8},
    ),
    sft(
        "misspelt key in peft by flag",
        "--peft.lora_alfa: peft: method lora has no key 'lora_alfa'; did you mean 'lora_alpha'?",
        "--peft.method",
        "lora",
        "--peft.lora_alfa",
        "4",
    ),
    of(
        "pretraining/causal",
        "misspelt key in model_config",
        "config.yaml:3: model_config: llama has no key 'hiden_size'; did you mean 'hidden_size'?",
        model_config={**LLAMA, "hiden_size": 8},
    ),
    sft("text for an integer", "'max_steps' must be an integer, not \"many\"", max_steps="many"),
    sft("list for a number", "'learning_rate' must be a number, not [0.1]", learning_rate=[0.1]),
    sft("number for text", "'model_name_or_path' must be text or null, not 5", model_name_or_path=5),
    sft("true for an integer", "'max_steps' must be an integer, not true", max_steps=True),
    sft("fraction for an integer", "'max_steps' must be an integer, not 2.5", max_steps=2.5),
    sft("word for a bool", "'bf16' must be true or false", bf16="no"),
    sft("null for a number", "'learning_rate' must be a number, not null", learning_rate=None),
    sft("block for text", "'dataset_name' must be text or a list", dataset_name={"a": "b"}),
    sft(
        "list of numbers for names",
        "'dataset_name' must be text or a list whose every item is text",
        dataset_name=[1, 2],
    ),
    sft("flag without its value", "'max_steps' must be an integer, not true", "--max_steps"),
    sft("text for a rank", "config.yaml:3: peft: 'r' must be an integer, not", peft={"method": "lora", "r": "eight"}),
    of("rlhf/ppo", "number for a list", "'reward_funcs' must be a list", reward_funcs=5),
    of("rlhf/evaluate", "list for a block", "'policies' must be a block", policies=["a"]),
    sft(
        "unknown schedule",
        "'lr_scheduler_type' must be a known value, not \"cosin\"; did you mean 'cosine'?",
        lr_scheduler_type="cosin",
    ),
    sft("unknown strategy", "'eval_strategy' must be one of 'no', 'steps', 'epoch'", eval_strategy="never"),
    of("rlhf/ppo", "unknown estimator", "'kl_estimator' must be one of 'k1', 'k3', not \"k2\"", kl_estimator="k2"),
    sft("unknown dtype", "'dtype' must be one of auto, float32, bfloat16, float16, not 'float33'", dtype="float33"),
    sft("unknown 4-bit type", "'bnb_4bit_quant_type' must be one of nf4, fp4", bnb_4bit_quant_type="nf5"),
    sft("unknown overwrite", "'overwrite' must be one of never, changed, always", "--overwrite", "sometimes"),
    sft("key given twice on the command line", "--max_steps is given twice", "--max_steps", "2", "--max_steps=3"),
    sft("required key missing", "required key 'dataset_name' is missing", dataset_name=GONE),
    sft("rate below zero", "'learning_rate' must be at least 0, not -0.1", "--learning_rate", "-0.1"),
    sft(
        "batch of nothing",
        "config.yaml:1: 'per_device_train_batch_size' must be at least 1, not 0",
        per_device_train_batch_size=0,
    ),
    sft("seed below zero", "'seed' must be at least 0, not -1", seed=-1),
    sft("tracker that is not installed", "wandb", report_to="wandb"),
    sft("both precisions", "config.yaml:2: At most one of fp16 and bf16", fp16=True, bf16=True),
    sft(
        "best model without evaluation",
        "config.yaml:1: --load_best_model_at_end requires",
        load_best_model_at_end=True,
        eval_strategy="no",
    ),
]
YAML = [
    yaml_text("duplicate key", "config.yaml:2: key 'seed' is given twice", "seed: 1\nseed: 2\n"),
    yaml_text("invalid YAML", "config.yaml:3: not valid YAML", "seed: 1\nmax_steps: [1, 2\nbf16: false\n"),
    yaml_text("tab in YAML", "config.yaml:2: not valid YAML", "peft:\n\tr: 8\n"),
    yaml_text("YAML of a list", "a config is a list of 'key: value' lines", "- seed\n- 1\n"),
    yaml_text("empty YAML", "a config is a list of 'key: value' lines", ""),
    yaml_text("YAML that is not UTF-8", "config.yaml: not UTF-8 text", "seed: 1 # ä".encode("latin-1")),
    yaml_text("a block as key", "config.yaml:1: a key must be a word", "[a, b]: 1\n"),
    yaml_text("extends a missing file", "config.yaml:1: 'extends': no file", "extends: nowhere.yaml\n"),
    yaml_text("extends a list", "config.yaml:1: 'extends' names one file", "extends: [a.yaml]\n"),
    yaml_text(
        "extends in a circle",
        "'extends' leads back to itself",
        "extends: b.yaml\n",
        **{"b.yaml": "extends: config.yaml\n"},
    ),
    yaml_text(
        "duplicate key in a parent",
        "b.yaml:3: key 'seed' is given twice",
        "extends: b.yaml\n",
        **{"b.yaml": "\nseed: 1\nseed: 2\n"},
    ),
]
MODELS = [
    sft("model named twice", "config.yaml:7: set exactly one of model_name_or_path", model_config=LLAMA),
    sft("no model named", "set exactly one of model_name_or_path", model_name_or_path=GONE),
    sft("4-bit without peft", "add a peft block", load_in_4bit=True),
    sft("4-bit and 8-bit", "load_in_4bit and load_in_8bit exclude each other", load_in_4bit=True, load_in_8bit=True),
    sft("4-bit settings alone", "are of load_in_4bit, which is not set", use_bnb_nested_quant=True),
    sft("peft without method", "peft: 'method' must name a PEFT method", peft={"r": 8}),
    sft(
        "unknown peft method",
        "peft: 'method' must name a PEFT method, not 'lorra'; did you mean 'lora'?",
        peft={"method": "lorra"},
    ),
    sft("rank of zero", "peft: r must be above 0, not 0", peft={"method": "lora", "r": 0}),
    sft(
        "target modules that are not there",
        "q_projection",
        peft={"method": "lora", "target_modules": ["q_projection"]},
    ),
    of(
        "pretraining/causal",
        "unknown model_type",
        "'model_type' must name a model, not 'lama'; did you mean",
        model_config={**LLAMA, "model_type": "lama"},
    ),
    of(
        "pretraining/causal",
        "wrong type in model_config",
        "model_config: ",
        model_config={**LLAMA, "hidden_size": "big"},
    ),
    of("pretraining/causal", "no tokenizer", "set tokenizer_name_or_path", tokenizer_name_or_path=GONE),
    sft("missing model folder", "no folder './nowhere/model'", model_name_or_path="./nowhere/model"),
    sft(
        "parent not made yet",
        "was not made yet; make it with: python -m recipes run pretraining/causal/quickstart",
        model_name_or_path="runs/pretraining/causal/quickstart",
    ),
    sft(
        "parent not finished",
        "is not finished; make it with: python -m recipes run pretraining/causal/quickstart",
        model_name_or_path="runs/pretraining/causal/quickstart",
        files={"runs/pretraining/causal/quickstart/run.json": "{}"},
    ),
    sft(
        "folder without a model",
        "opened at ./some/model",
        model_name_or_path="./some/model",
        files={"some/model/notes.txt": "x"},
    ),
    sft("tokenizer, but no model", "no model could be opened at", model_name_or_path="{tiny}/tokenizer"),
    sft("Hub model without network", "nobody/nothing", model_name_or_path="nobody/nothing"),
    sft("environment variable in a path", "environment variables are not expanded", model_name_or_path="$HOME/model"),
    sft("no padding token", "has no pad_token; set tokenizer_kwargs", tokenizer_name_or_path="{tiny}/no-pad"),
    sft("no end token", "has no eos_token; set tokenizer_kwargs", tokenizer_name_or_path="{tiny}/no-eos"),
    sft("no chat template", "has no chat template", tokenizer_name_or_path="{tiny}/no-template"),
    sft("tokenizer of another model", "they do not belong together", tokenizer_name_or_path="{tiny}/larger"),
    sft("unknown attention", "attn", attn_implementation="flashy"),
]
FILES = [
    sft("missing file", "no file or folder 'nowhere.jsonl'", dataset_name="nowhere.jsonl"),
    sft(
        "environment variable in a data path",
        "environment variables are not expanded",
        dataset_name="$DATA/rows.jsonl",
    ),
    sft("folder without data", "holds no file of a known kind", dataset_name="./some", files={"some/notes.md": "x"}),
    sft("unknown kind of file", "unknown kind of file '.xlsx'", dataset_name="rows.xlsx", files={"rows.xlsx": "x"}),
    rows("empty file", "bad.jsonl: is empty", ""),
    rows("file of blank lines", "bad.jsonl: holds no row", "\n\n\n"),
    sft(
        "empty test split",
        "test.jsonl: is empty",
        dataset_name="./both",
        test_split_size=GONE,
        files={"both/train.jsonl": jsonl(CHAT), "both/test.jsonl": ""},
    ),
    sft(
        "header without rows",
        "bad.csv: holds no row",
        dataset_name="bad.csv",
        files={"bad.csv": "prompt,completion\n"},
    ),
    rows(
        "missing column",
        "needs the columns 'prompt' + 'completion' or 'messages' or 'text', has question, answer",
        jsonl([{"question": "a", "answer": "b"}] * 8),
    ),
    sft(
        "unknown column in dataset_columns",
        "has no column 'promt'; did you mean 'prompt'?",
        dataset_columns={"prompt": "promt"},
    ),
    rows("invalid JSON", "bad.jsonl: row 3: not valid JSON", jsonl(PLAIN[:2]) + '{"prompt": "a", \n'),
    rows("row that is no object", "bad.jsonl: row 2: must be an object of columns", '{"prompt": "a"}\n["a"]\n'),
    rows(
        "type that changes",
        "bad.jsonl: train row 3, column 'prompt': must be text, not 5",
        jsonl([*PLAIN[:2], {**PLAIN[2], "prompt": 5}]),
    ),
    rows(
        "CSV row with a missing cell",
        "bad.csv: row 3: 3 cells under 2 columns",
        "prompt,completion\na,b\nc,d,e\n",
        "bad.csv",
    ),
    rows(
        "row that is not UTF-8",
        "bad.jsonl: row 2: not UTF-8 text",
        jsonl(PLAIN[:1]).encode() + '{"prompt": "é", "completion": "b"}\n'.encode("latin-1"),
    ),
    rows("Parquet that is none", "bad.parquet", "not parquet", "bad.parquet"),
    rows("invalid JSON document", "bad.json", '[{"prompt": ', "bad.json"),
    rows(
        "null prompt",
        "train row 2, column 'prompt': must be text, not null",
        jsonl([PLAIN[0], {**PLAIN[1], "prompt": None}]),
        dataset_test_split=None,
    ),
    rows(
        "empty completion",
        "train row 1, column 'completion': is empty",
        jsonl([{**PLAIN[0], "completion": " "}, PLAIN[1]]),
        dataset_test_split=None,
    ),
    of(
        "rlhf/reward",
        "pair without a word",
        "bad.jsonl: train row 2, column 'rejected': is empty",
        dataset_name="bad.jsonl",
        files={"bad.jsonl": jsonl([CHAT[0], {**CHAT[1], "rejected": []}, *CHAT[2:]])},
    ),
    rows(
        "message without role",
        "row 1, column 'messages': must be a list of messages with 'role' and 'content'",
        jsonl([{"messages": [{"content": "a"}]}] * 4),
    ),
    rows(
        "message without content",
        "row 1, column 'messages': must be a list of messages",
        jsonl([{"messages": [{"role": "user"}]}] * 4),
    ),
    rows("dialogue without messages", "column 'messages'", jsonl([{"messages": []}] * 4)),
    rows(
        "number for text in a column",
        "column 'prompt': must be text, not 5",
        jsonl([{"prompt": 5, "completion": "a"}] * 4),
    ),
    sft("no test split", "no split 'test' to measure on; set test_split_size", test_split_size=GONE),
    sft("no such split", "no split 'trian'; did you mean 'train'?", dataset_train_split="trian"),
    sft("test share above one", "'test_split_size' must lie between 0 and 1, not 1.5", test_split_size=1.5),
    sft("too few rows to hold out", "test_split_size", dataset_name="bad.jsonl", files={"bad.jsonl": jsonl(CHAT[:1])}),
    sft("no training samples", "'max_train_samples' must be at least 1, not 0", max_train_samples=0),
    sft(
        "unknown embedded dataset",
        "no dataset 'embedded/instruction'; did you mean 'embedded/instructions'?",
        dataset_name="embedded/instruction",
    ),
    sft("configuration of data that have none", "is of a Hub dataset, and rows.jsonl is none", dataset_config="de"),
    sft(
        "joined data of two forms",
        "data that are joined must be of one form",
        dataset_name=["rows.jsonl", "other.jsonl"],
        files={"other.jsonl": jsonl([{"text": "b"}] * 8)},
    ),
    sft("answers without a test split", "answers: there is no test split", answers=2, dataset_test_split=None),
    rows(
        "nothing but empty rows",
        "split 'train' holds empty rows only",
        jsonl([{"messages": [{"role": "user", "content": " "}]}] * 4),
        drop_empty_rows=True,
    ),
    sft("Hub dataset without network", "dataset 'nobody/nothing' could not be loaded", dataset_name="nobody/nothing"),
    sft(
        "two sources of which one lacks a column",
        "other.jsonl: needs the columns",
        dataset_name=["rows.jsonl", "other.jsonl"],
        files={"other.jsonl": jsonl([{"a": "b"}] * 8)},
    ),
    of(
        "rlhf/reward",
        "pairs without the rejected answer",
        "needs the columns 'chosen' + 'rejected'",
        dataset_name="bad.jsonl",
        files={"bad.jsonl": jsonl(PLAIN)},
    ),
    sft("checkpoint to resume from", "resume_from_checkpoint: drop it", resume_from_checkpoint="x"),
    sft("checkpoints without an optimizer", "save_only_model: drop it; a run could not resume", save_only_model=True),
    sft(
        "adapter on an adapter",
        "model_name_or_path: ./adapter is an adapter, and one on it",
        model_name_or_path="./adapter",
        tokenizer_name_or_path="{tiny}/tokenizer",
        peft={"method": "lora", "r": 2},
        files={"adapter/adapter_config.json": "{}"},
    ),
    sft("no answer fits", "no token is supervised", max_length=2),
    sft(
        "answers to no prompts",
        "answers: only data with the columns 'prompt' and 'completion'",
        dataset_name="bad.jsonl",
        answers=2,
        files={"bad.jsonl": jsonl([{"text": row["text"]} for row in PLAIN])},
    ),
]
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}
T5_SPANS, T5_TASKS, UNILM, GLM = (
    f"pretraining/{name}" for name in ("span_corruption", "text_to_text", "unified", "blank_infilling")
)
OBJECTIVES = [
    of(
        "pretraining/causal",
        "rows longer than the positions",
        "max_length: rows of 16 tokens are longer than the model's 8 positions",
        model_config=GPT2,
    ),
    of("pretraining/causal", "rows of three tokens", "'max_length' must be at least 8, not 3", max_length=3),
    of("pretraining/causal", "baselines of no token", "'ngram_tokens' must be at least 1, not -1", ngram_tokens=-1),
    of("pretraining/causal", "texts shorter than a row", "of a split do not fill one row of 900", max_length=900),
    of(T5_SPANS, "tokenizer without sentinels", "the tokenizer has 0 sentinels", tokenizer_kwargs=GONE),
    of(
        T5_SPANS, "more spans than sentinels", "has 3 sentinels (<extra_id_0>, …) and a row has up to", input_length=64
    ),
    of(T5_SPANS, "noise of one whole", "'noise_density' must lie between 0 and 1, not 1.0", noise_density=1.0),
    of(T5_SPANS, "noise spans of nothing", "'mean_noise_span_length' must be at least 1", mean_noise_span_length=0.5),
    of(T5_SPANS, "input of one token", "input_length: 1 tokens hold no text", input_length=1),
    of(T5_SPANS, "texts shorter than an input", "do not fill one row", input_length=900, noise_density=0.001),
    of(T5_TASKS, "temperature of zero", "'mixing_temperature' must be above 0, not 0", mixing_temperature=0),
    of(T5_TASKS, "limit of zero", "'mixing_limit' must be above 0, not 0", mixing_limit=0),
    of(T5_TASKS, "answers of one token", "'max_target_length' must be at least 2, not 1", max_target_length=1),
    of(T5_TASKS, "mixture by length", "a mixture draws from its tasks", train_sampling_strategy="group_by_length"),
    of(T5_TASKS, "rows without a task", "needs the columns 'task' + 'prompt' + 'completion'", dataset_columns=GONE),
    of(UNILM, "UniLM without a mask", "has no mask_token; set tokenizer_kwargs", tokenizer_kwargs=GONE),
    of(UNILM, "rows longer than UniLM's positions", "max_length: rows of 64 tokens are longer", max_length=64),
    of(UNILM, "rows for nothing", "'max_length' must be at least 8, not 4", max_length=4),
    of(UNILM, "no held-out text for UniLM", "name a split for it", dataset_test_split=None, test_split_size=GONE),
    of(
        UNILM,
        "model without a head for pairs",
        "Unrecognized configuration class",
        model_config={**LLAMA, "max_position_embeddings": 64},
    ),
    of(GLM, "tokenizer without marks", "the tokenizer has no <|startofpiece|>, <|endofpiece|>", tokenizer_kwargs=GONE),
    of(GLM, "shares above one whole", "must be shares of one whole", sentence_share=0.7, document_share=0.7),
    of(GLM, "too few positions", "'max_position_embeddings' is 32; rows of max_length 64 need 65", max_length=64),
    of(
        GLM,
        "too few second positions",
        "'type_vocab_size' is 2; rows of max_length 16 need 18",
        model_config={"model_type": "bert", **ENCODER},
    ),
    of(GLM, "no held-out text for GLM", "name a split for it", dataset_test_split=None, test_split_size=GONE),
]
UNPAIRED = {"bad.jsonl": jsonl([{**row, "label": "good"} for row in PLAIN])}
RLHF = [
    of("rlhf/ppo", "no reward function", "'reward_funcs' is empty", reward_funcs=[]),
    of(
        "rlhf/ppo",
        "missing reward module",
        "reward function nowhere:score: No module named 'nowhere'",
        reward_funcs=["nowhere:score"],
    ),
    of(
        "rlhf/ppo",
        "missing reward function",
        "math has no function 'fsun'; did you mean 'fsum'?",
        reward_funcs=["math:fsun"],
    ),
    of(
        "rlhf/ppo",
        "reward model of two scores",
        "has 2 labels and no single score",
        reward_funcs=["{tiny}/two-labels"],
    ),
    of("rlhf/ppo", "missing reward model", "reward model: no folder './nowhere'", reward_funcs=["./nowhere"]),
    of(
        "rlhf/ppo",
        "reward model not made yet",
        "was not made yet; make it with: python -m recipes run rlhf/reward/quickstart",
        reward_funcs=["runs/rlhf/reward/quickstart"],
    ),
    of(
        "rlhf/ppo",
        "weights for other functions",
        "reward_weights has 2 entries for 1 reward functions",
        reward_weights=[1.0, 2.0],
    ),
    of("rlhf/ppo", "negative kl_coef", "config.yaml:1: kl_coef must be at least 0, not -1", kl_coef=-1),
    of("rlhf/ppo", "cliprange of zero", "config.yaml:1: cliprange must be above 0, not 0", cliprange=0),
    of("rlhf/ppo", "prompts beyond the context", "longer than", response_length=126),
    of("rlhf/ppo", "rollout larger than the data", "per_device_train_batch_size", per_device_train_batch_size=64),
    of(
        "rlhf/ppo",
        "AdaLoRA in PPO",
        "peft: adalora has no schedule in PPO",
        peft={"method": "adalora", "init_r": 4, "target_r": 2},
        value_model="shared",
    ),
    of(
        "rlhf/ppo",
        "prefix without a cache in PPO",
        "prefix_tuning needs activation_checkpointing: false",
        peft={"method": "prefix_tuning", "num_virtual_tokens": 2},
        value_model="shared",
        activation_checkpointing=True,
    ),
    of(
        "rlhf/reward",
        "padding that is the end",
        "'<|end|>' is both EOS and padding",
        tokenizer_kwargs={"pad_token": "<|end|>"},
    ),
    of("rlhf/ppo", "two lengths of training", "total_episodes and max_steps both set", max_steps=3),
    of("rlhf/ppo", "missing value model", "./nowhere", value_model="./nowhere"),
    of("rlhf/ppo", "reward function that returns no list", "reward function", reward_funcs=["builtins:dict"]),
    of(
        "rlhf/ppo",
        "pretraining texts that are not there",
        "config.yaml:1: ptx_dataset_name: no dataset 'embedded/txt'",
        ptx_dataset_name="embedded/txt",
    ),
    of("rlhf/reward", "no pair fits", "max_length: every pair of split 'train' is longer", max_length=2),
    of("rlhf/reward", "smoothed labels of pairs", "label_smoothing_factor has no effect", label_smoothing_factor=0.1),
    of("rlhf/dpo", "the smoothing of another loss", "DPO's own is label_smoothing", label_smoothing_factor=0.1),
    of("rlhf/grpo", "smoothed labels of rewards", "label_smoothing_factor has no effect", label_smoothing_factor=0.1),
    of("rlhf/kto", "label of answers that are pairs", "the data are pairs", desirable_label="good"),
    of("rlhf/evaluate", "temperature below zero", "temperature must be at least 0, not -1", temperature=-1),
    of("rlhf/evaluate", "answers of no token", "response_length must be at least 1, not 0", response_length=0),
    of("rlhf/evaluate", "no split to compare on", "compared on a test split", dataset_test_split=None),
    of("rlhf/evaluate", "prompts beyond the context of a policy", "longer than the", response_length=126),
    of("rlhf/dpo", "no answer fits for DPO", "every prompt is as long as max_length", max_length=2),
    of("rlhf/dpo", "pairs without a chosen answer", "needs the columns", dataset_name="bad.jsonl", files=UNPAIRED),
    of("rlhf/kto", "batch of one answer", "batch size must be > 1", per_device_train_batch_size=1),
    of("rlhf/kto", "labels in words", "say with desirable_label which", dataset_name="bad.jsonl", files=UNPAIRED),
    of(
        "rlhf/kto",
        "label that no answer has",
        "desirable_label: no row has 'goood'; did you mean 'good'?",
        dataset_name="bad.jsonl",
        desirable_label="goood",
        files=UNPAIRED,
    ),
    of(
        "rlhf/rloo",
        "groups that do not fill a rollout",
        "(4) must be divisible by num_generations (3)",
        num_generations=3,
    ),
    of("rlhf/grpo", "group of one", "GRPO requires at least 2 generations", num_generations=1),
    of("rlhf/rloo", "groups cut by an evaluation batch", "not whole groups of 3", num_generations_eval=3),
    of("rlhf/grpo", "checkpoint inside a rollout", "make it a multiple of 4", steps_per_generation=4),
    of("rlhf/grpo", "prompts beyond the context of GRPO", "longer than the", max_completion_length=126),
    of(
        "rlhf/rloo", "fewer prompts than a rollout takes", "one rollout takes 12", steps_per_generation=6, save_steps=6
    ),
    of("rlhf/rloo", "weights for other rewards", "reward_weights has 2 entries for 1", reward_weights=[1.0, 2.0]),
    of("rlhf/grpo", "penalty below zero", "missing_eos_penalty must be above 0, not -1", missing_eos_penalty=-1.0),
    of("rlhf/grpo", "missing reward of GRPO", "math has no function 'fsun'", reward_funcs=["math:fsun"]),
    of(
        "rlhf/rloo",
        "reference of a model from scratch",
        "beta: the KL reference of a model from scratch would be another model",
        model_name_or_path=GONE,
        model_config={**LLAMA, "max_position_embeddings": 64},
        tokenizer_name_or_path="{tiny}/tokenizer",
    ),
    of(
        "rlhf/grpo",
        "prompt that the assistant ends",
        "TRL would not ask the prompts of train_dataset as they are",
        dataset_name="bad.jsonl",
        dataset_columns={"prompt": "completion"},
        files={"bad.jsonl": jsonl(CHAT)},
    ),
    of("rlhf/evaluate", "reference that is no policy", "reference: no policy 'dpo'; known: sft", reference="dpo"),
    of("rlhf/evaluate", "no policies", "'policies' is missing or empty", policies=GONE),
    of("rlhf/evaluate", "missing judge", "math has no function 'gold'", gold="math:gold"),
    of(
        "rlhf/evaluate",
        "policies of two vocabularies",
        "policies: other has another vocabulary than sft",
        policies={"sft": "{tiny}/model", "other": "{tiny}/bart"},
    ),
    of("rlhf/evaluate", "missing policy", "no folder './nowhere'", policies={"sft": "./nowhere"}),
    of("rlhf/evaluate", "best of none", "'best_of_n' must list whole numbers of at least 1", best_of_n=[0]),
    of("tokenization/train", "vocabulary too small", "'vocab_size' must be at least 258", vocab_size=100),
    of(
        "tokenization/train",
        "missing chat template",
        "chat_template_path: no file 'nowhere.jinja'",
        chat_template_path="nowhere.jinja",
    ),
    of("tokenization/train", "padding that ends", "'pad_token' must differ from 'eos_token'", pad_token="<|end|>"),
    of(
        "tokenization/train",
        "unknown algorithm",
        "config.yaml:1: 'algorithm' must be one of byte_bpe, char_bpe, wordpiece",
        algorithm="bpe",
    ),
    of("tokenization/train", "no unknown token", "'unk_token' is missing; unigram needs one", algorithm="unigram"),
    of(
        "tokenization/train",
        "template of an unknown token",
        "'single_template': '[SEP]' is none of the special tokens",
        single_template="$A [SEP]",
        pair_template="$A [SEP] $B",
    ),
    of(
        "tokenization/train",
        "vocabulary below the alphabet",
        "5 tokens do not hold the special tokens and the characters of the texts",
        algorithm="wordpiece",
        unk_token="<unk>",
        vocab_size=5,
    ),
    of("tokenization/train", "empty corpus", "holds no row", dataset_name="none.jsonl", files={"none.jsonl": "\n"}),
    of("tokenization/explain", "nothing to explain", "'text' is empty", text=" "),
    of("tokenization/explain", "letter that is not there", "the text has no 'a'", words=["ax"]),
    of("tokenization/compare", "algorithm to compare that is not there", "no 'bpe'", algorithms=["bpe"]),
    of(
        "tokenization/compare",
        "nothing held out to compare on",
        "there is nothing to compare on",
        dataset_test_split=None,
    ),
    of(
        "tokenization/compare",
        "tokenizer with an algorithm's name",
        "two tokenizers are called 'wordpiece'",
        published=["some/wordpiece"],
    ),
    of(
        "tokenization/compare",
        "no such tokenizer",
        "no tokenizer could be opened at ./nowhere",
        published=["./nowhere"],
    ),
]
PROMPT = {"method": "prompt_tuning", "num_virtual_tokens": 2}
LORA = {"method": "lora", "r": 2}


def labelled(name: str, expected: str, **settings: Any) -> Mistake:
    return of("finetuning/classification", name, expected, **settings)


def split_files(train: list, test: list) -> dict[str, Any]:
    return {"dataset_name": "./both", "files": {"both/train.jsonl": jsonl(train), "both/test.jsonl": jsonl(test)}}


TASKS = [
    labelled("prompt under a decoder's head", "reads the last position, which may be padding", peft=PROMPT),
    of("rlhf/reward", "prompt under a scorer", "reads the last position, which may be padding", peft=PROMPT),
    labelled(
        "pseudo tokens without their method",
        "[P] are the pseudo tokens of peft: {method: p_tuning_template}",
        template="[P]*2 {text} it is [MASK]",
    ),
    labelled(
        "prompt inside a text without a template",
        "p_tuning_template: set template to a text with [P]",
        peft={"method": "p_tuning_template"},
    ),
    labelled(
        "one of two target modules that is not there",
        "LlamaForSequenceClassification has no module 'query'",
        peft={**LORA, "target_modules": ["q_proj", "query"]},
    ),
    labelled("rank below zero", "peft: r must be above 0, not -2", peft={**LORA, "r": -2}),
    labelled("task type by hand", "peft: 'task_type' is the recipe's to say", peft={**LORA, "task_type": "CAUSAL_LM"}),
    labelled("biases of a model without", "has no bias terms", peft={"method": "bitfit"}),
    labelled(
        "word of several tokens",
        "verbalizer: 'incomprehensible' must be one token of the vocabulary",
        template="{text} it is [MASK]",
        verbalizer={"short": "incomprehensible", "long": "one"},
    ),
    labelled(
        "label without a word",
        "verbalizer: has no word for the label 'long'",
        template="{text} it is [MASK]",
        verbalizer={"short": "one"},
    ),
    labelled("gap of a decoder in the middle", "[MASK] must be last", template="it is [MASK] : {text}"),
    labelled("two gaps", "must have one [MASK], not 2", template="{text} [MASK] [MASK]"),
    labelled("column that the template lacks", "the data has no column 'sentence'", template="{sentence} [MASK]"),
    labelled("words without a template", "verbalizer needs a template", verbalizer={"short": "one"}),
    labelled("auxiliary loss without a head", "template has no head", template="{text} [MASK]", lm_coef=0.5),
    labelled("auxiliary loss below zero", "lm_coef must be at least 0, not -0.5", lm_coef=-0.5),
    labelled(
        "label that training lacks",
        "label 'medium' of the test split is not in the training split",
        test_split_size=GONE,
        **split_files(LABELLED, [*LABELLED[:2], {"text": "say", "label": "medium"}]),
    ),
    labelled(
        "one label alone",
        "the training split has one label only",
        test_split_size=GONE,
        **split_files([LABELLED[0]] * 3, LABELLED[:1]),
    ),
    labelled(
        "label of nothing",
        "column 'label': must be a word or a whole number, not None",
        test_split_size=GONE,
        **split_files([{"text": "a", "label": None}, *LABELLED], LABELLED[:1]),
    ),
    labelled("frozen base under an adapter", "a peft block trains more", freeze_base=True, peft=LORA),
]
PRETRAINING = [
    of("pretraining/masked", "share of all tokens", "'mlm_probability' must lie between 0 and 1", mlm_probability=1.0),
    of("pretraining/masked", "share below none", "'short_share' must lie between 0 and 1", short_share=-0.1),
    of("pretraining/masked", "no duplicate", "'duplicates' must be at least 1", duplicates=0),
    of("pretraining/masked", "rows of a few tokens", "'max_length' must be at least 8", max_length=4),
    of("pretraining/masked", "rows beyond the positions", "longer than the model's 32 positions", max_length=64),
    of(
        "pretraining/masked",
        "rows beyond RoBERTa's positions",
        "longer than the model's 22 positions",
        model_config={**BERT, "model_type": "roberta", "max_position_embeddings": 24},
    ),
    of(
        "pretraining/masked",
        "tokenizer without a mask",
        "has no mask_token",
        tokenizer_name_or_path="{tiny}/tokenizer",
    ),
    of(
        "pretraining/masked",
        "pairs without a head for them",
        "next_sentence_prediction: roberta has no head for it",
        next_sentence_prediction=True,
        model_config={**BERT, "model_type": "roberta"},
    ),
    of(
        "pretraining/masked",
        "segments that are not told apart",
        "set type_vocab_size to 2",
        next_sentence_prediction=True,
        model_config={**BERT, "type_vocab_size": 1},
    ),
    of(
        "pretraining/masked",
        "pairs of single sentences",
        "no document has two sentences",
        next_sentence_prediction=True,
    ),
    of("pretraining/masked", "missing probe column", "the data has no column 'topic'", probe_column="topic"),
    of("pretraining/masked", "probe of single rows", "needs two classes of 100 training rows", probe_column="target"),
    of("pretraining/masked", "no held-out text", "name a split for it", dataset_test_split=None),
    of(
        "pretraining/denoising",
        "misspelt noise",
        "no noise 'text_infiling'; did you mean 'text_infilling'?",
        noise=["text_infiling"],
    ),
    of("pretraining/denoising", "no noise", "noise: is empty", noise=[]),
    of(
        "pretraining/denoising",
        "sentences permuted last",
        "sentence_permutation comes first",
        noise=["text_infilling", "sentence_permutation"],
    ),
    of("pretraining/denoising", "noise on everything", "'noise_share' must lie between 0 and 1", noise_share=1.0),
    of("pretraining/denoising", "spans of nothing", "'poisson_lambda' must be above 0", poisson_lambda=0.0),
    of("pretraining/denoising", "documents beyond the positions", "exceed the model's 32 positions", max_length=64),
    of(
        "pretraining/denoising",
        "decoder that is to denoise",
        "llama",
        model_config=LLAMA,
    ),
    of("pretraining/translation", "stage without a source", "stage: ", stage=2, source_tokenizer_name_or_path=GONE),
    of(
        "pretraining/translation",
        "stage 1 without a source tokenizer",
        "name the source language's tokenizer in stage 1",
        source_tokenizer_name_or_path=GONE,
    ),
    of(
        "pretraining/translation",
        "source tokenizer that is not there",
        "source_tokenizer_name_or_path: no folder './nowhere'",
        source_tokenizer_name_or_path="./nowhere",
    ),
    of("pretraining/translation", "translator of another kind", "is a llama", model_name_or_path="{tiny}/model"),
    of(
        "pretraining/translation",
        "translator from scratch",
        "starts from a trained BART",
        model_name_or_path=GONE,
        model_config=BART,
        tokenizer_name_or_path="{tiny}/bart",
    ),
    of(
        "pretraining/translation",
        "texts beyond BART's positions",
        "texts of 128 tokens exceed the model's 64 positions",
        max_length=128,
    ),
    of("pretraining/translation", "texts of nothing", "'max_length' must be at least 4, not 1", max_length=1),
    of(
        "pretraining/causal",
        "adapter in pretraining",
        "peft: this recipe trains all weights",
        model_config=GONE,
        model_name_or_path="{tiny}/model",
        peft={"method": "lora", "r": 2},
    ),
    of("pretraining/translation", "no source encoder", "'source_encoder_layers' must be", source_encoder_layers=0),
]
FOLDERS = [
    sft(
        "output folder of another run",
        "holds a run of another config (max_steps: 9 → 2)",
        output_dir="out",
        files={
            "out/run.json": json.dumps(
                {"settings": {**GOOD["finetuning/sft"], "max_steps": 9, "global_batch_size": 4}, "inputs": {}}
            ),
            "out/result.json": "{}",
        },
    ),
    sft(
        "output folder of something else",
        "out holds files of something else",
        output_dir="out",
        files={"out/thesis.txt": "x"},
    ),
    sft("file in the way of the output folder", "output_dir", output_dir="out", files={"out": "x"}),
    sft("file in the way of a folder above", "output_dir", output_dir="out/run", files={"out": "x"}),
    sft("output folder that cannot be written", "output_dir: cannot write in /proc", output_dir="/proc/recipes"),
]
MISTAKES = KEYS + YAML + MODELS + FILES + OBJECTIVES + RLHF + TASKS + FOLDERS + PRETRAINING


@pytest.fixture(scope="session")
def broken(tiny):
    """Beside the tiny model: tokenizers that lack something or are too large, a scorer of two labels."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    for name in ("no-pad", "no-eos", "no-template", "larger"):
        tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
        if name == "no-pad":
            tokenizer.pad_token = None
        elif name == "no-eos":
            tokenizer.eos_token = None
        elif name == "no-template":
            tokenizer.chat_template = None
        else:
            tokenizer.add_tokens(["<|more|>"])
        tokenizer.save_pretrained(tiny / name)
    config = LlamaConfig.from_pretrained(tiny / "scorer", num_labels=2)
    LlamaForSequenceClassification(config).save_pretrained(tiny / "two-labels")
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(tiny / "two-labels")
    return tiny


def located(value: Any, tiny: Path) -> Any:
    """`value` with `{tiny}` replaced, however deep it stands."""
    if isinstance(value, dict):
        return {key: located(inner, tiny) for key, inner in value.items()}
    if isinstance(value, list):
        return [located(inner, tiny) for inner in value]
    return value.replace("{tiny}", str(tiny)) if isinstance(value, str) else value


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def lay_out(folder: Path, mistake: Mistake, tiny: Path) -> None:
    """The working directory as the user has it: config, data and what else the mistake names."""
    settings = {
        key: value
        for key, value in {
            **mistake.settings,
            **{k: v for k, v in GOOD[mistake.recipe].items() if k not in mistake.settings},
        }.items()
        if value is not GONE
    }
    text = mistake.text if mistake.text is not None else yaml.safe_dump(located(settings, tiny), sort_keys=False)
    plain = mistake.recipe.startswith(("token", "pre"))
    rows = LABELLED if mistake.recipe == "finetuning/classification" else PLAIN if plain else CHAT
    files = {"config.yaml": text, "rows.jsonl": jsonl(rows), **located(mistake.files, tiny)}
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def the_line(capfd) -> str:
    """The one line that stands on stderr."""
    errors = capfd.readouterr().err
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: "), errors
    return lines[0]


def case(mistake: Mistake) -> Any:
    return pytest.param(mistake, id=mistake.name.replace(" ", "-"))


@pytest.mark.parametrize("mistake", map(case, MISTAKES))
def test_a_mistake_is_one_line_and_writes_nothing(mistake, broken, main, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, mistake, broken)
    command = main(mistake.recipe)
    before = snapshot(tmp_path)
    capfd.readouterr()

    with warnings.catch_warnings(record=True) as shown, pytest.raises(SystemExit) as stop:
        warnings.resetwarnings()
        warnings.simplefilter("ignore", DeprecationWarning)  # as Python does by itself
        command(["--config", "config.yaml", *mistake.argv])

    line = the_line(capfd)
    assert mistake.expected in line
    assert stop.value.code == 2
    assert not shown, shown[0]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("recipe", GOOD)
def test_without_a_mistake_the_same_config_runs(recipe, broken, main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, Mistake("none", "", recipe), broken)
    if recipe == "rlhf/evaluate":
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "judge.py").write_text("def length(prompts, completions, **_):\n    return [1.0] * len(prompts)\n")
        main(recipe)(["--config", "config.yaml", "--gold", "judge:length"])
    else:
        main(recipe)(["--config", "config.yaml"])
    assert (tmp_path / "runs" / recipe / "config" / "result.json").exists()


BEFORE_THE_CONFIG = {
    "no config": ([], "--config is missing: name a file, such as configs/finetuning/sft/quickstart.yaml"),
    "config without its name": (["--config"], "command line: --config names one file"),
    "two configs": (["--config", "config.yaml", "other.yaml"], "command line: --config names one file"),
    "unknown config": (
        ["--config", "finetuning/sft/quikstart"],
        "no config 'finetuning/sft/quikstart'; did you mean 'finetuning/sft/quickstart'?",
    ),
    "folder as config": (["--config", "."], "no config '.'"),
    "path below a file": (["--config", "config.yaml/x.yaml"], "no config 'config.yaml/x.yaml'"),
    "config of another recipe": (
        ["--config", "rlhf/reward/quickstart"],
        "is a config of rlhf/reward, not of finetuning/sft",
    ),
    "stray word": (["config.yaml"], "'config.yaml' belongs to no key; write --key value"),
    "config given twice": (["--config", "a.yaml", "--config=b.yaml"], "--config is given twice"),
}


@pytest.mark.parametrize(("argv", "expected"), BEFORE_THE_CONFIG.values(), ids=BEFORE_THE_CONFIG)
def test_a_mistake_in_naming_the_config_is_one_line(argv, expected, broken, main, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, Mistake("none", ""), broken)
    command = main("finetuning/sft")
    before = snapshot(tmp_path)

    with pytest.raises(SystemExit) as stop:
        command(argv)

    assert expected in the_line(capfd)
    assert stop.value.code == 2
    assert snapshot(tmp_path) == before


PROGRAM = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["lst"], "invalid choice: 'lst'"),
    "run nothing": (["run"], "required: config"),
    "run an unknown config": (["run", "rlhf/pppo/quickstart"], "did you mean 'rlhf/ppo/quickstart'?"),
    "show an unknown config": (["show", "rlhf/ppo/quickstrat"], "did you mean 'rlhf/ppo/quickstart'?"),
    "show with a misspelt key": (
        ["show", "finetuning/sft/quickstart", "--sed", "1"],
        "unknown key 'sed'; did you mean 'seed'?",
    ),
    "show a profile": (["show", "launch/ddp"], "no recipe 'launch'"),
    "unknown profile": (
        ["run", "finetuning/sft/quickstart", "--launch", "zero4"],
        "no launch profile 'zero4' in configs/launch; did you mean 'zero",
    ),
    "mistake under a profile": (
        ["run", "finetuning/sft/quickstart", "--launch", "ddp", "--seeed", "1"],
        "--seeed: unknown key 'seeed'",
    ),
    "processes without a profile": (
        ["run", "finetuning/sft/quickstart", "--num_processes", "2"],
        "--num_processes needs --launch",
    ),
    "validate with unknown words": (["validate", "--strict"], "unknown words: --strict"),
    "validate an unknown config": (["validate", "rlhf/ppo/nothing"], "no config 'rlhf/ppo/nothing'"),
    "validate a broken config": (["validate", "config.yaml"], "1 of 1 configs failed"),
    "config of no recipe": (["run", "alone.yaml"], "alone.yaml is not in configs/ and extends no config there"),
}


@pytest.mark.parametrize(("argv", "expected"), PROGRAM.values(), ids=PROGRAM)
def test_a_mistake_to_the_program_is_one_line(argv, expected, main, root, tmp_path, monkeypatch, capfd):
    main("finetuning/sft")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(f"extends: {root}/configs/finetuning/sft/quickstart.yaml\nlearning_rte: 1\n")
    (tmp_path / "alone.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(sys, "argv", ["recipes", *argv])
    before = snapshot(tmp_path)

    with pytest.raises(SystemExit) as stop:
        program.main()

    assert expected in the_line(capfd)
    assert stop.value.code == 2
    assert snapshot(tmp_path) == before


def test_validate_names_the_place_in_each_broken_config(main, root, tmp_path, monkeypatch, capfd):
    main("finetuning/sft")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(f"extends: {root}/configs/finetuning/sft/quickstart.yaml\nlearning_rte: 1\n")
    monkeypatch.setattr(sys, "argv", ["recipes", "validate", "finetuning/sft/quickstart", "config.yaml"])
    with pytest.raises(SystemExit):
        program.main()
    captured = capfd.readouterr()
    assert captured.out.splitlines() == [
        "ok     finetuning/sft/quickstart",
        "error  config.yaml: config.yaml:2: unknown key 'learning_rte'; did you mean 'learning_rate'?",
    ]
    assert captured.err == "error: 1 of 2 configs failed\n"


def test_the_libraries_keep_silent_in_a_process_of_its_own(broken, tmp_path):
    """The model is loaded and the trainer built before this mistake is found: warnings and bars had their chance."""
    lay_out(tmp_path, Mistake("no answer fits", "", settings={"max_length": 2}), broken)
    before = snapshot(tmp_path)
    command = [sys.executable, "-m", "recipes.finetuning.sft", "--config", "config.yaml"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: no token is supervised")
    assert ran.stderr.count("\n") == 1
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "recipe",
    [
        "finetuning/sft",
        "rlhf/reward",
        "pretraining/causal",
        "pretraining/masked",
        "pretraining/denoising",
        "rlhf/ppo",
        "rlhf/dpo",
        "rlhf/kto",
        "rlhf/rloo",
        "rlhf/grpo",
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(recipe, broken, main, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    settings = {"learning_rate": 1e36, "max_steps": 8, "save_steps": 1}
    if recipe == "rlhf/ppo":
        settings["total_episodes"] = GONE
    lay_out(tmp_path, Mistake("none", "", recipe, settings), broken)

    with pytest.raises(SystemExit) as stop:
        main(recipe)(["--config", "config.yaml"])

    last = capfd.readouterr().err.splitlines()[-1]
    assert (
        last.startswith(("error: the loss is ", "error: the gradient is ", "error: the policy's probabilities are "))
        and "step 2" in last
    )
    assert stop.value.code == 2
    from recipes.core.checkpoints import last_good_checkpoint

    folder = tmp_path / "runs" / recipe / "config"
    assert not (folder / "result.json").exists()
    assert last_good_checkpoint(folder) == folder / "checkpoint-1"
    assert not (folder / "checkpoint-2").exists()


def test_how_many_mistakes_there_are():
    names = [mistake.name for mistake in MISTAKES]
    assert len(names) == len(set(names))
    assert len(names) + len(BEFORE_THE_CONFIG) + len(PROGRAM) >= 146
