"""What the tests share: one thread, no network, and a tiny tokenizer and tiny models in a temporary folder."""

import atexit
import contextlib
import importlib
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

# Before any library is imported: they read these once.
CACHE = tempfile.mkdtemp(prefix="recipes-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_CACHE": CACHE,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

import pytest  # noqa: E402
import yaml  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = ["the quick brown fox jumps over the lazy dog", "one two three four five six seven", "yes no please thank you"]

BERT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "distributed":  # one of these at a time, where several workers run the tests
            item.add_marker(pytest.mark.xdist_group("several processes"))
    if not REAL_DATA.is_dir():
        for item in items:
            if item.get_closest_marker("real_data"):
                item.add_marker(pytest.mark.skip(reason=f"no {REAL_DATA}"))


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def main():
    """`main("finetuning/sft")`: the command that the recipe's script is.

    What the libraries log goes to the file descriptor, so that capfd sees it as a user would.
    """

    def command(recipe: str):
        with open(2, "w", closefd=False, buffering=1) as stderr, contextlib.redirect_stderr(stderr):
            return importlib.import_module("recipes." + recipe.replace("/", ".")).main

    return command


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder with `tokenizer`; `model`, a LLaMA of 2 layers that has that tokenizer; `scorer`, it with one score; `bart`.

    The tokenizer is byte-level BPE of 300 tokens with a chat template; pad and EOS differ. `bart` has a tokenizer of the
    same kind, with the special tokens of BART and RoBERTa, and a BART of one layer a side.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    roles = ["<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|end|>", *roles],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", extra_special_tokens=roles
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    masking = Tokenizer(models.BPE())
    masking.pre_tokenizer, masking.decoder = backend.pre_tokenizer, backend.decoder
    masking.train_from_iterator(TEXTS * 4, trainer)
    masking.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=masking, cls_token="<s>", sep_token="</s>", **dict(zip(names, special))
    ).save_pretrained(folder / "bart")

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        num_labels=1,
        classifier_dropout=0.0,
    )
    for name, cls in (("model", LlamaForCausalLM), ("scorer", LlamaForSequenceClassification)):
        cls(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    BartForConditionalGeneration(BartConfig(**BART, vocab_size=300, dropout=0.0)).save_pretrained(folder / "bart")
    return folder


class Built(Exception):
    """Carries a trainer out of its recipe, before it trains."""


@pytest.fixture
def trainer_of(main, tmp_path, monkeypatch):
    """`trainer_of("finetuning/sft", {"max_length": 64, …})`: the trainer that the recipe builds from this config."""

    def fit(self, trainer):
        raise Built(trainer)

    def build(recipe: str, config: dict):
        monkeypatch.setattr("recipes.core.run.Run.fit", fit)
        file = tmp_path / "config.yaml"
        file.write_text(json.dumps({"output_dir": str(tmp_path / "run"), "bf16": False} | config))
        with pytest.raises(Built) as built:
            main(recipe)(["--config", str(file)])
        return built.value.args[0]

    return build


# ------------------------------------------------------------------------------------------ small jobs, one a recipe
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def denoising_jobs(tokenizer: str) -> dict[str, dict]:
    """Those that build an encoder or an encoder-decoder, whose special tokens the tiny tokenizer is given."""
    t5 = {
        "model_type": "t5",
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 1,
        "num_heads": 4,
        "dropout_rate": 0.0,
    }
    encoder = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    marks = ["[MASK]", "[sMASK]", "[gMASK]", "<|startofpiece|>", "<|endofpiece|>"]
    return {
        "pretraining/span_corruption": {
            "model_config": t5,
            "tokenizer_name_or_path": tokenizer,
            "tokenizer_kwargs": {"extra_special_tokens": [f"<extra_id_{number}>" for number in range(9)]},
            "input_length": 24,
            "dataset_streaming": True,
            "num_samples": 2,
        },
        "pretraining/text_to_text": {
            "model_config": t5,
            "tokenizer_name_or_path": tokenizer,
            "dataset_columns": {"prompt": "question", "completion": "answer"},
            "max_source_length": 32,
            "max_target_length": 8,
            "num_samples": 2,
        },
        "pretraining/unified": {
            "model_config": {"model_type": "bert", **encoder, "type_vocab_size": 2},
            "tokenizer_name_or_path": tokenizer,
            "tokenizer_kwargs": {"cls_token": "<|user|>", "sep_token": "<|assistant|>", "mask_token": "<|system|>"},
            "max_length": 24,
            "num_samples": 2,
        },
        "pretraining/blank_infilling": {
            "model_config": {"model_type": "roberta-prelayernorm", **encoder, "type_vocab_size": 40},
            "tokenizer_name_or_path": tokenizer,
            "tokenizer_kwargs": {"extra_special_tokens": marks},
            "max_length": 24,
            "sentence_share": 0.25,
            "document_share": 0.25,
            "num_samples": 2,
        },
    }


@pytest.fixture(scope="session")
def job(tiny, tmp_path_factory):
    """`job("finetuning/sft", "runs")`: the command line of a run whose folder is `runs/job`."""
    folder = tmp_path_factory.mktemp("job")
    rows = [
        {
            "prompt": [{"role": "user", "content": f"say {first} {second}"}],
            "completion": [{"role": "assistant", "content": f"{first} and {second}"}],
            "chosen": [{"role": "assistant", "content": f"{first} and {second}"}],
            "rejected": [{"role": "assistant", "content": f"{second} please"}],
            "text": f"say {first} {second} and then. {second} {first} please thank you",
            "task": ["first", "second"][number % 2],
            "question": f"{first} {second}",
            "answer": [first, second][number % 2],
        }
        for number, (first, second) in enumerate(itertools.product(WORDS, WORDS[:4]))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [
        {
            "text": f"say {first} {second}",
            "label": "same" if first == second else "other",
            "words": ["say", first, second],
            "tags": ["O", "B-NUMBER", "I-NUMBER"],
            "question": f"say {first}",
            "context": f"say {first} and {second}",
            "answers": {"text": [second], "answer_start": [len(f"say {first} and ")]},
            "source": f"say {first} {second}",
            "target": f"{second} {first}",
        }
        for first in WORDS
        for second in WORDS[:4]
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    common = {
        "dataset_name": str(folder / "rows.jsonl"),
        "test_split_size": 0.2,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",  # a step too many would change the weights
        "logging_steps": 3,  # not in step with the checkpoints
        "save_steps": 2,
        "bf16": False,
        "seed": 3,
    }
    trained = {"model_name_or_path": str(tiny / "model"), "max_length": 64}
    scratch = {"model_config": json.loads((tiny / "model" / "config.json").read_text()), "max_length": 16}
    for key in ("architectures", "transformers_version", "dtype", "id2label", "label2id", "classifier_dropout"):
        scratch["model_config"].pop(key, None)
    task = {**trained, "dataset_name": str(folder / "tasks.jsonl")}
    seq2seq = {"model_type": "bart", **BART, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    groups = {  # answers come two to a prompt and serve two steps; an epoch is over after four steps
        "model_name_or_path": str(tiny / "model"),
        "reward_funcs": [str(tiny / "scorer")],
        "max_completion_length": 8,
        "beta": 0.1,
        "num_generations": 2,
        "steps_per_generation": 2,
        "missing_eos_penalty": 1.0,
        "max_train_samples": 8,
        "eval_on_start": True,
        "dataset_columns": {"prompt": "prompt"},
    }
    jobs = {
        "pretraining/causal": {
            **scratch,
            "tokenizer_name_or_path": str(tiny / "tokenizer"),
            "dataset_streaming": True,
            "num_samples": 2,
        },
        "pretraining/masked": {
            "model_config": {"model_type": "bert", **BERT},
            "tokenizer_name_or_path": str(tiny / "bart"),
            "max_length": 32,
            "dynamic_masking": True,
            "train_sampling_strategy": "group_by_length",
            "max_train_samples": 12,  # the checkpoints stand in the second epoch
        },
        "pretraining/denoising": {
            "model_config": {"model_type": "bart", **BART},
            "tokenizer_name_or_path": str(tiny / "bart"),
            "max_length": 64,
            "train_sampling_strategy": "group_by_length",
            "max_train_samples": 12,
        },
        "pretraining/translation": {
            "model_name_or_path": str(tiny / "bart"),
            "source_tokenizer_name_or_path": str(tiny / "tokenizer"),
            "source_encoder_layers": 1,
            "dataset_name": str(folder / "tasks.jsonl"),
            "max_length": 16,
        },
        **denoising_jobs(str(tiny / "tokenizer")),
        "finetuning/sft": {**trained, "eval_on_start": True},
        "finetuning/classification": task,
        "finetuning/token_classification": task,
        "finetuning/question_answering": {**task, "doc_stride": 8},
        "finetuning/sequence_to_sequence": {
            "model_config": seq2seq,
            "tokenizer_name_or_path": str(tiny / "tokenizer"),
            "dataset_name": str(folder / "tasks.jsonl"),
            "max_length": 32,
            "max_target_length": 16,
        },
        "rlhf/reward": trained,
        "rlhf/dpo": {**trained, "eval_on_start": True},
        "rlhf/kto": {**trained, "eval_on_start": True, "dataset_columns": {"prompt": "prompt"}},
        "rlhf/rloo": groups,
        "rlhf/grpo": groups,
        "rlhf/ppo": {
            "model_name_or_path": str(tiny / "model"),
            "reward_funcs": [str(tiny / "scorer")],
            "response_length": 8,
            "num_ppo_epochs": 3,  # the checkpoints of steps 2 and 4 stand inside a rollout
            "dataset_columns": {"prompt": "prompt"},
        },
    }

    def command_line(recipe: str, output_dir: Path, *more: str) -> list[str]:
        config = folder / recipe / "job.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(yaml.safe_dump({**common, **jobs[recipe]}))
        return ["--config", str(config), "--output_dir", str(output_dir), *more]

    return command_line


@pytest.fixture(scope="session")
def without_dropout():
    """`without_dropout("pretraining/masked")`: options for a job whose processes are to draw nothing for themselves."""
    rates = {
        "pretraining/masked": ["hidden_dropout_prob", "attention_probs_dropout_prob"],
        "pretraining/denoising": ["dropout"],
        "finetuning/sequence_to_sequence": ["dropout"],
    }
    return lambda recipe: [word for rate in rates.get(recipe, []) for word in (f"--model_config.{rate}", "0.0")]


TIMINGS = ("runtime", "_per_second", "preparation_time", "step_time")


@pytest.fixture(scope="session")
def log_of():
    """`log_of(folder)`: the lines of a run's log, without what depends on the clock."""

    def lines(folder: Path) -> list[dict]:
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [
            {
                key: value
                for key, value in entry.items()
                if not key.endswith(TIMINGS) and not key.startswith("seconds/")
            }
            for entry in entries
        ]

    return lines
