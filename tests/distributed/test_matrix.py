"""Every trainer under every strategy with two real processes: it ends, and what it saves is the model it trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

RECIPES = [
    "pretraining/causal",
    "finetuning/sft",
    "rlhf/reward",
    "rlhf/ppo",
    "rlhf/dpo",
    "rlhf/kto",
    "rlhf/rloo",
    "rlhf/grpo",
]
OWN_SAMPLES = {
    "rlhf/rloo",
    "rlhf/grpo",
    "rlhf/kto",
}  # what a process draws, or pairs at random, depends on their number
PROFILES = ["ddp", "zero2", "zero3", "fsdp2"]
SAMPLED = {("finetuning/sft", "zero3"), ("rlhf/ppo", "fsdp2")}  # in `make test`; all of them in `make verify`
CASES = [
    pytest.param(recipe, profile, marks=[] if (recipe, profile) in SAMPLED else pytest.mark.slow)
    for recipe in RECIPES
    for profile in PROFILES
]
LORA = "{method: lora, r: 4, target_modules: all-linear}"
TOLERANCE = 1e-4


@pytest.fixture
def train(job, root, tmp_path):
    """`train(recipe, profile, "--key", "value", …)`: the folder of a finished run of two steps; None: one process."""

    def run(recipe: str, profile: str | None, *options: str) -> Path:
        folder = tmp_path / (profile or "one")
        launch = ["-m", "accelerate.commands.launch", "--config_file", f"configs/launch/{profile}.yaml"]
        size = "4" if profile else "8"
        options = ("--max_steps", "2", "--per_device_train_batch_size", size, *options)
        module = ["-m", "recipes." + recipe.replace("/", "."), *job(recipe, folder, *options)]
        command = [sys.executable, *(launch if profile else []), *module]
        done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (folder / "result.json").exists()
        return folder

    return run


@pytest.mark.parametrize(("recipe", "profile"), CASES)
def test_what_two_processes_save_is_what_they_trained(train, tiny, recipe, profile):
    folder = train(recipe, profile)
    auto = AutoModelForSequenceClassification if recipe == "rlhf/reward" else AutoModelForCausalLM
    model, told = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    saved = {name: tensor.float() for name, tensor in model.state_dict().items()}
    begun = AutoModelForCausalLM.from_pretrained(tiny / "model").state_dict()
    assert all(tensor.isfinite().all() for tensor in saved.values())
    if recipe != "pretraining/causal":
        assert any((saved[name] - tensor).abs().max() > 1e-4 for name, tensor in begun.items() if name in saved)
    if recipe not in OWN_SAMPLES and not (recipe == "pretraining/causal" and profile == "zero3"):
        # from scratch, ZeRO-3 draws the weights in another order
        one = auto.from_pretrained(train(recipe, None)).state_dict()
        assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in saved.items()}
        off = {name: (saved[name] - tensor).abs().max().item() for name, tensor in one.items()}
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
