"""Counts of parameters: published ones, and those of models that are really built."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from recipes.core.catalog import CONFIGS
from recipes.planner.architecture import Adapter
from recipes.planner.reading import ARCHITECTURES, RECIPES, find_architecture

KNOWN = yaml.safe_load(ARCHITECTURES.read_text(encoding="utf-8"))
# What the checkpoints on the Hub hold; 405B by the safetensors index of its repository.
PUBLISHED = {
    "openai-community/gpt2": 124_439_808,
    "EleutherAI/pythia-1b-deduped": 1_011_781_632,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_checkpoint(name):
    assert find_architecture(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "task", "parameters"),
    [
        ("google-bert/bert-base-uncased", "SEQ_CLS", 109_482_240 + 2 * 769),
        ("google-bert/bert-base-uncased", "QUESTION_ANS", 109_482_240 - 768 * 769 + 2 * 769),  # without the pooler
        ("FacebookAI/roberta-base", "SEQ_CLS", 124_055_040 + 768 * 769 + 2 * 769),
        ("facebook/bart-large", "SEQ_2_SEQ_LM", 406_291_456),
    ],
)
def test_a_model_has_the_head_of_its_task(name, task, parameters):
    assert replace(find_architecture(name), task=task).parameters == parameters


def test_an_encoder_decoder_has_two_stacks_and_a_token_meets_one():
    bart = replace(find_architecture("facebook/bart-large"), task="SEQ_2_SEQ_LM")
    model = bart.model
    counts = [
        sum(weight.numel() for weight in stack.layers.parameters())
        for stack in (model.get_encoder(), model.get_decoder())
    ]
    assert bart.in_layers == sum(counts)
    assert bart.layers == 12
    read, written = (sum(4 * 1024**2 * each + 2 * 1024 * 4096 for _ in range(12)) for each in (1, 2))
    assert (bart.active(0.0), bart.active(1.0), bart.active(0.5)) == (read, written, (read + written) / 2)


def test_every_model_of_the_hub_that_a_config_names_is_known_without_network():
    named = set()
    for path in (path for recipe in RECIPES for path in (CONFIGS / recipe).glob("*.yaml")):
        for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            texts = value if isinstance(value, list) else [value]
            if key in ("model_name_or_path", "reward_funcs"):
                named |= {text for text in texts if re.fullmatch(r"[\w-]+/[\w.-]+", text)}
    assert "meta-llama/Llama-3.1-8B" in named
    assert named <= set(KNOWN)


def test_the_parts_are_those_of_a_model_that_is_really_built(llama):
    model = AutoModelForCausalLM.from_config(llama.config)
    assert llama.parameters == model.num_parameters()
    assert llama.embedding == model.model.embed_tokens.weight.numel()
    assert llama.layer == sum(weight.numel() for weight in model.model.layers[0].parameters())
    assert llama.matrices == llama.linear == 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192)
    assert llama.active() == llama.matrices


def test_a_token_meets_two_of_eight_experts():
    """12.9 billion of 46.7 (Jiang et al. 2024, Mixtral of Experts, arXiv 2401.04088), head and embedding included."""
    mixtral = find_architecture("mistralai/Mixtral-8x7B-v0.1")
    assert mixtral.active() + 2 * mixtral.head == pytest.approx(12.9e9, rel=0.01)


def test_an_adapter_trains_what_peft_trains(llama):
    """And for Llama 2 7B what LitGPT's table says of rank 8 on queries and values."""
    block = {"method": "lora", "r": 8, "target_modules": ["q_proj", "v_proj"]}
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(AutoModelForCausalLM.from_config(llama.config), config)
    adapter = Adapter(json.dumps(block))
    assert adapter.parameters(llama) == sum(w.numel() for w in model.parameters() if w.requires_grad)
    assert adapter.parameters(find_architecture("meta-llama/Llama-2-7b-hf")) == 4_194_304


def test_the_adapter_keeps_the_dtype_it_is_given(llama):
    block = json.dumps({"method": "lora", "r": 2, "target_modules": "all-linear"})
    for in_float32, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        model = AutoModelForCausalLM.from_config(llama.config, dtype=torch.bfloat16)
        Adapter(block, in_float32).attach(model)
        assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {dtype}


def test_one_of_two_processes_has_half_of_every_matrix(llama):
    half = llama.split(2)
    assert 2 * half.matrices == llama.matrices
    assert half.hidden == llama.hidden
    assert llama.can_split(2)
    assert not llama.can_split(4)  # it has two key-value heads
    assert not find_architecture("openai-community/gpt2").can_split(2)  # transformers has no plan for it
