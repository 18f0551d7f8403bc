"""Every trainer under every strategy with two real processes: it ends, and what it saves is the model it trained."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedModel

from recipes.pretraining.source_encoder import BartForTranslation

OBJECTIVES = ["masked", "denoising", "span_corruption", "text_to_text", "unified", "blank_infilling"]
FROM_SCRATCH = [
    "pretraining/causal",
    *(f"pretraining/{name}" for name in OBJECTIVES),
    "finetuning/sequence_to_sequence",
]
TASKS = ["classification", "token_classification", "question_answering"]
METHODS = ["reward", "ppo", "dpo", "kto", "rloo", "grpo"]
RECIPES = [
    *FROM_SCRATCH,
    "pretraining/translation",
    "finetuning/sft",
    *(f"finetuning/{name}" for name in TASKS),
    *(f"rlhf/{name}" for name in METHODS),
]
OWN_SAMPLES = {
    "rlhf/rloo",
    "rlhf/grpo",
    "rlhf/kto",
}  # what a process draws, or pairs at random, depends on their number
FULL_STEPS = dict.fromkeys(("pretraining/masked", "pretraining/denoising"), ("--max_train_samples", "16"))
WITHOUT_GRADIENT = {"qa_outputs.bias"}  # adds as much to the scores of all positions
PROFILES = ["ddp", "zero2", "zero3", "fsdp2"]
SAMPLED = {  # in `make test`; all of them in `make verify`
    ("finetuning/sft", "zero3"),
    ("rlhf/ppo", "fsdp2"),
    ("finetuning/token_classification", "fsdp2"),  # two new weights, which only one process has at first
    ("pretraining/denoising", "fsdp2"),  # a weight in three places, and a buffer that is saved
}
REFUSED = {("pretraining/translation", "zero3"): "ZeRO-3 does not gather a source encoder inside BART"}
CASES = [
    pytest.param(recipe, profile, marks=[] if (recipe, profile) in SAMPLED else pytest.mark.slow)
    for recipe in RECIPES
    for profile in PROFILES
    if (recipe, profile) not in REFUSED
]
LORA = "{method: lora, r: 4, target_modules: all-linear}"
TOLERANCE = 1e-4


@pytest.fixture
def launched(job, without_dropout, root, tmp_path):
    """`launched(recipe, profile, "--key", "value", …)`: a run of two steps that has ended; profile None: one process."""

    def run(recipe: str, profile: str | None, *options: str) -> subprocess.CompletedProcess:
        size = "4" if profile else "8"
        rows = () if "--max_train_samples" in options else FULL_STEPS.get(recipe, ())
        options = ("--max_steps", "2", "--per_device_train_batch_size", size, *rows, *options)
        words = job(recipe, tmp_path / (profile or "one"), *options, *without_dropout(recipe))
        launcher = ["-m", "accelerate.commands.launch", "--config_file", f"configs/launch/{profile}.yaml"]
        command = [sys.executable, *(launcher if profile else []), "-m", "recipes." + recipe.replace("/", "."), *words]
        return subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture
def train(launched, tmp_path):
    """`train(recipe, profile, "--key", "value", …)`: the folder of a finished run."""

    def run(recipe: str, profile: str | None, *options: str) -> Path:
        done = launched(recipe, profile, *options)
        assert done.returncode == 0, done.stderr[-3000:]
        folder = tmp_path / (profile or "one")
        assert (folder / "result.json").exists()
        return folder

    return run


def opened(folder: Path) -> PreTrainedModel:
    """The model of a run, as its own class opens it, with nothing missing and nothing left over."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    kind = BartForTranslation if kind == "BartForTranslation" else getattr(transformers, kind)
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model


@pytest.mark.parametrize(("recipe", "profile"), CASES)
def test_what_two_processes_save_is_what_they_trained(train, tiny, recipe, profile):
    saved = {name: tensor.float() for name, tensor in opened(train(recipe, profile)).state_dict().items()}
    assert all(tensor.isfinite().all() for tensor in saved.values())
    if recipe not in FROM_SCRATCH:
        begun = load_file(tiny / ("bart" if "translation" in recipe else "model") / "model.safetensors")
        ours = {
            name.replace("transformer.", "model."): tensor for name, tensor in saved.items()
        }  # of a reader of spans
        assert any((ours[name] - tensor).abs().max() > 1e-4 for name, tensor in begun.items() if name in ours)
    if recipe not in OWN_SAMPLES and not (recipe in FROM_SCRATCH and profile == "zero3"):
        # from scratch, ZeRO-3 draws the weights in another order
        one = opened(train(recipe, None)).state_dict()
        assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in saved.items()}
        learned = one.keys() - WITHOUT_GRADIENT
        off = {name: (saved[name] - one[name]).abs().max().item() for name in learned}
        assert max(off.values()) < TOLERANCE, max(off.items(), key=lambda item: item[1])


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("recipe", ["finetuning/sft", "rlhf/ppo"])
def test_an_adapter_of_two_processes_is_whole(train, recipe, profile):
    adapters = [
        load_file(train(recipe, each, "--peft", LORA) / "adapter_model.safetensors") for each in (profile, None)
    ]
    found, one = adapters
    assert found.keys() == one.keys()
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in found.items())
    for name, tensor in one.items():
        assert (found[name].float() - tensor).abs().max() < TOLERANCE, name


@pytest.fixture
def encoder(tiny, tmp_path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    for part in (BertModel(config), tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


@pytest.mark.slow
def test_an_adapter_finds_its_shapes_under_zero3(train, encoder):
    options = ("--model_name_or_path", encoder, "--peft", "{method: bottleneck, placement: pfeiffer}")
    found, one = (
        load_file(train("finetuning/classification", profile, *options) / "adapter_model.safetensors")
        for profile in ("zero3", None)
    )
    assert {name: tensor.shape for name, tensor in found.items()} == {name: t.shape for name, t in one.items()}
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert any(tensor.abs().max() > 0 for tensor in found.values())


@pytest.mark.slow
def test_biases_that_zero3_would_mix_up_are_one_line(launched, encoder):
    done = launched(
        "finetuning/classification", "zero3", "--model_name_or_path", encoder, "--peft", "{method: bitfit}"
    )
    assert done.returncode != 0
    assert "error: bitfit: puts its biases in the place of others" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "profile"), REFUSED)
def test_what_a_profile_cannot_do_is_one_line(launched, recipe, profile):
    done = launched(recipe, profile)
    assert done.returncode != 0
    assert f"error: {recipe.rpartition('/')[2]}: {REFUSED[recipe, profile]}" in done.stderr
    assert "Traceback" not in done.stderr.split("error: ")[0]


DRAWN_IN_PARTS = """
import deepspeed, torch
from transformers import AutoModelForCausalLM, GPTNeoConfig
from transformers.integrations import HfDeepSpeedConfig
from recipes.core.weights import whole_weights
from recipes.pretraining.gpt import initialize

deepspeed.init_distributed("gloo")
sharded = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
shape = {"vocab_size": 300, "hidden_size": 64, "num_heads": 4, "num_layers": 2, "attention_types": [[["global"], 2]]}
model = AutoModelForCausalLM.from_config(GPTNeoConfig(**shape, max_position_embeddings=64))
attention = model.transformer.h[0].attn.attention
assert attention.q_proj.weight.numel() == 0
initialize(model)
with whole_weights(attention):
    print("found", *(layer.weight.std().item() for layer in (attention.k_proj, attention.q_proj, attention.out_proj)))
"""


@pytest.mark.slow
def test_first_weights_are_the_papers_under_zero3_too(root):
    """GPT-3's, which this code draws and transformers does not, where a process has a part of each weight."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-c", DRAWN_IN_PARTS]
    done = subprocess.run(command, cwd=root, env=os.environ | alone, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    keys, queries, writes = map(float, done.stdout.rpartition("found ")[2].split())
    assert keys == pytest.approx(0.02, rel=0.05)
    assert queries == pytest.approx(0.02 / 16**0.5, rel=0.05)
    assert writes == pytest.approx(0.02 / 4**0.5, rel=0.05)


@pytest.mark.slow
def test_states_are_probed_before_training_under_zero3_too(train, tmp_path):
    rows = [
        {
            "text": f"say {number} {'one two' if number % 2 else 'five six'}. and then {number}.",
            "source": f"{number % 2}/x",
        }
        for number in range(300)
    ]
    (tmp_path / "probed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        "--dataset_name",
        str(tmp_path / "probed.jsonl"),
        "--probe_column",
        "source",
        "--max_train_samples",
        "240",
    )
    folders = [train("pretraining/masked", profile, *options) for profile in ("zero3", "ddp")]
    found = [json.loads((folder / "result.json").read_text()) for folder in folders]
    for result in found:
        assert result["metrics"]["probe_accuracy"] > 0.6
        assert result["baselines"]["probe_accuracy"] > 0.6
