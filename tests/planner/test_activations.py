"""What a pass keeps: against the paper's formula, and against what autograd saves in a real pass."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from recipes.core import UserError
from recipes.planner.activations import Numbers, of_layers, of_logits
from recipes.planner.architecture import Adapter, Architecture

LORA = json.dumps({"method": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]})


def test_a_gpt_keeps_what_the_paper_says():
    """Korthikanti et al. 2022, arXiv 2205.05198, eq. 2: s b h (34 + 5 a s / h), and a byte more for each entry of the three
    masks of dropout, which are as wide as the numbers on a CPU: s b h (2 + a s / h)."""
    s, b, h, a = 512, 2, 256, 8
    config = GPT2Config(
        n_embd=h, n_layer=4, n_head=a, n_positions=s, vocab_size=100, activation_function="gelu", attn_pdrop=0.1
    )
    found = of_layers(Architecture("gpt", config), Numbers(torch.bfloat16, attention="eager"), b, s)
    assert found.layer == pytest.approx(s * b * h * (34 + 5 * a * s / h) + s * b * h * (2 + a * s / h), rel=0.005)


# How a real pass comes to each attention: a second document in the row makes transformers build a mask.
REAL = {"eager": ("eager", False), "sdpa": ("sdpa", True), "flash": ("sdpa", False)}


@pytest.mark.parametrize("attention", REAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", [None, Adapter(LORA)], ids=["whole", "LoRA"])
def test_a_llama_keeps_what_autograd_saves(llama, attention, dtype, adapter):
    """The difference between real passes through four layers and through two."""
    implementation, packed = REAL[attention]
    positions = torch.arange(48) % (24 if packed else 48)

    def saved(layers: int) -> int:
        model = AutoModelForCausalLM.from_config(
            llama.shortened(layers), dtype=dtype, attn_implementation=implementation
        )
        if adapter is not None:
            adapter.attach(model)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
            return tensor

        states = torch.randn(2, 48, llama.hidden, dtype=dtype, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = model.base_model(inputs_embeds=states, use_cache=False, position_ids=positions[None].expand(2, -1))
        assert kept.last_hidden_state.requires_grad
        return sum(tensor.untyped_storage().nbytes() for address, tensor in storages.items() if address not in weights)

    found = of_layers(llama, Numbers(dtype, attention=attention), 2, 48, adapter).layer
    assert found == pytest.approx((saved(4) - saved(2)) / 2, rel=0.03)


def test_a_mask_costs_what_heads_that_share_keys_save(llama):
    """Without one, sdpa takes two key-value heads for four heads; with one they are repeated, and the mask is a number for
    each pair of tokens."""
    masked, plain = (of_layers(llama, Numbers(torch.bfloat16, attention=a), 1, 64).layer for a in ("sdpa", "flash"))
    repeated, bias = 2 * 2 * (64 * 2 * 16), 2 * 64 * 64  # keys and values of two more heads; the mask in bf16
    assert masked - plain == pytest.approx(repeated + bias, rel=0.1)


def test_what_enters_an_adapter_is_cast_for_every_layer_unless_autocast_does(llama):
    """PEFT casts to float32 for each of two linear layers, autocast again to bf16; else both keep one tensor."""
    numbers = Numbers(torch.bfloat16, autocast=True, attention="flash")
    cast, plain = (of_layers(llama, numbers, 2, 64, Adapter(LORA, casts=casts)).layer for casts in (True, False))
    assert cast - plain == 2 * 64 * llama.hidden * 2


def test_autocast_keeps_a_cast_copy_of_every_matrix(llama):
    """They do not grow with the batch."""
    numbers = Numbers(torch.float32, autocast=True, attention="flash")
    one, two = (of_layers(llama, numbers, sequences, 64).layer for sequences in (1, 2))
    shared = 2 * one - two
    assert shared == pytest.approx(2 * llama.matrices / llama.layers, rel=0.1)


def test_checkpointing_keeps_the_inputs_and_runs_one_layer_again(llama):
    found = of_layers(llama, Numbers(torch.bfloat16), 4, 256)
    assert found.entering == 4 * 256 * llama.hidden * 2
    assert found.kept(10, False) == found.rest + 10 * found.layer
    assert found.kept(10, True) == found.rest + 10 * found.entering
    assert found.working(True) - found.working(False) == found.layer


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
    assert of_logits(1000, 16, numbers, 64, "torch tiles", trained=False) == 8 * cells + 4 * 64 * 16
    assert of_logits(200_000, 1024, numbers, 100_000, "blocks", trained=False) == 3 * 2**27
    assert of_logits(1000, 16, numbers, 64, "blocks") == 3 * cells + 2 * 4 * 1000 * 16


def test_a_model_that_cannot_be_counted_is_named():
    gpt = Architecture("gpt", GPT2Config(n_embd=32, n_layer=2, n_head=4))
    with pytest.raises(UserError, match="the activations of gpt cannot be counted with odd attention"):
        of_layers(gpt, Numbers(torch.float32, attention="odd"), 1, 8)
