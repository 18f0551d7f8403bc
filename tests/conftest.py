"""What the tests share: one thread, no network, and a tiny tokenizer and tiny models in a temporary folder."""

import atexit
import contextlib
import importlib
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

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = ["the quick brown fox jumps over the lazy dog", "one two three four five six seven", "yes no please thank you"]


def pytest_collection_modifyitems(items):
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
    """Folder with `tokenizer`; `model`, a LLaMA of 2 layers that has that tokenizer; `scorer`, it with one score.

    The tokenizer is byte-level BPE of 300 tokens with a chat template; pad and EOS differ.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

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
    )
    for name, cls in (("model", LlamaForCausalLM), ("scorer", LlamaForSequenceClassification)):
        cls(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
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
