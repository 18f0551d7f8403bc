"""What a pass keeps: against the paper's formula, and against what autograd saves in a real pass."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from recipes.planner import activations
from recipes.planner.activations import Numbers, by_formula, of_layers, of_logits
from recipes.planner.architecture import Adapter, Architecture

LORA = json.dumps({"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]})


def test_a_gpt_keeps_what_the_paper_says():
    """Korthikanti et al. 2022, arXiv 2205.05198, eq. 2: s b h (34 + 5 a s / h), and a byte more for each entry of the three
    masks of dropout, which are as wide as the numbers on a CPU: s b h (2 + a s / h)."""
    s, b, h, a = 512, 2, 256, 8
    config = GPT2Config(
        n_embd=h, n_layer=4, n_head=a, n_positions=s, vocab_size=100, activation_function="gelu", attn_pdrop=0.1
    )
    gpt = Architecture("gpt", config)
    numbers = Numbers(torch.bfloat16, attention="eager")
    paper = s * b * h * (34 + 5 * a * s / h)
    found = of_layers(gpt, numbers, b, s).layer
    assert found == pytest.approx(paper + s * b * h * (2 + a * s / h), rel=0.005)
    assert by_formula(gpt, numbers, b, s).layer == paper


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [None, Adapter(LORA)])
def test_a_llama_keeps_what_autograd_saves(llama, attention, dtype, adapter):
    """The difference between real passes through four layers and through two."""

    def saved(layers: int) -> int:
        model = AutoModelForCausalLM.from_config(llama.shortened(layers), dtype=dtype, attn_implementation=attention)
        if adapter is not None:
            adapter.attach(model)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
            return tensor

        states = torch.randn(2, 48, llama.hidden, dtype=dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = model.base_model(inputs_embeds=states, use_cache=False).last_hidden_state
        assert kept.requires_grad
        return sum(tensor.untyped_storage().nbytes() for address, tensor in storages.items() if address not in weights)

    assert of_layers(llama, Numbers(dtype, attention=attention), 2, 48, adapter).layer == pytest.approx(
        (saved(4) - saved(2)) / 2, rel=0.03
    )


def test_autocast_keeps_a_cast_copy_of_every_matrix(llama):
    """They do not grow with the batch."""
    numbers = Numbers(torch.float32, autocast=True)
    one, two = (of_layers(llama, numbers, sequences, 64).layer for sequences in (1, 2))
    shared = 2 * one - two
    assert shared == pytest.approx(2 * llama.matrices / llama.layers, rel=0.1)


def test_checkpointing_keeps_the_inputs_and_runs_one_layer_again(llama):
    found = of_layers(llama, Numbers(torch.bfloat16), 4, 256)
    assert found.entering == 4 * 256 * llama.hidden * 2
    assert found.peak(10, False, 0) == found.rest + 10 * found.layer + found.passing
    assert found.peak(10, True, 0) == found.rest + 10 * found.entering + found.layer + found.passing
    assert found.peak(10, True, 10**12) == found.rest + 10 * found.entering + 10**12


def test_logits_by_hand():
    """Of float32: the logits, their log-softmax, and while the gradient is made, that and the gradient of the
    log-softmax; with a trained head its gradient."""
    numbers = Numbers(torch.float32)
    cells = 4 * 64 * 1000
    assert of_logits(1000, 16, numbers, 64, "full", trained=False) == pytest.approx(4 * cells, rel=0.05)
    assert of_logits(1000, 16, numbers, 64, "score") == 0
    tiles = of_logits(200_000, 1024, Numbers(torch.bfloat16), 100_000, "tiles", trained=False)
    assert tiles == 2 * 4096 * 32768 + 4 * 100_000 * 1024
    assert tiles < of_logits(200_000, 1024, Numbers(torch.bfloat16), 100_000, "full", trained=False) / 100


def test_a_model_that_cannot_be_run_without_values_is_counted_by_the_formula(llama, monkeypatch):
    def fail(*args):
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(activations, "_run", fail)
    numbers = Numbers(torch.bfloat16, attention="sdpa")
    assert of_layers.__wrapped__(llama, numbers, 1, 96) == by_formula(llama, numbers, 1, 96)
    assert by_formula(llama, numbers, 1, 96).layer == 96 * 64 * 34
