"""PEFT's own methods, each against its paper's definition worked out by hand."""

import math

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from small_models import HIDDEN, LAYERS, VOCABULARY, build, disturb, inputs_of, logits
from torch import nn
from transformers import DynamicCache

from recipes.adapters import attach

HEADS = 4


def adapted(model, name: str):
    return next(module for path, module in model.named_modules() if path.endswith(name))


# -------------------------------------------------------------------------------------------------------------- LoRA
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
def test_lora_is_the_base_at_step_0(kind):
    base = logits(build(kind), kind)
    model = attach(build(kind), LoraConfig(r=4, init_lora_weights="gaussian"))
    assert torch.equal(logits(model, kind), base)


def test_lora_begins_with_a_gaussian_a_and_b_at_zero():
    model = attach(
        build("bert", hidden_size=512), LoraConfig(r=64, init_lora_weights="gaussian", target_modules=["query"])
    )
    layer = adapted(model, "layer.0.attention.self.query")
    assert not layer.lora_B["default"].weight.any()
    a = layer.lora_A["default"].weight
    assert a.std().item() == pytest.approx(1 / 64, rel=0.03)
    kurtosis = ((a - a.mean()) ** 4).mean() / a.var() ** 2
    assert kurtosis.item() == pytest.approx(3, abs=0.15)  # 1.8 for a uniform distribution


@pytest.mark.parametrize(
    ("settings", "scaling"), [({}, 16 / 4), ({"use_rslora": True}, 16 / math.sqrt(4))], ids=["lora", "rslora"]
)
def test_lora_is_merged_as_in_the_paper(settings, scaling):
    """W0 + (α/r)·BA (Hu et al., section 4.1); α/√r with rank stabilisation (Kalajdzievski 2023, 2312.03732)."""
    base = build("llama")
    weight = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    model = attach(base, LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], **settings))
    disturb(model)
    layer = adapted(model, "layers.0.self_attn.q_proj")
    delta = scaling * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    before = logits(model, "llama")
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, weight + delta)
    torch.testing.assert_close(logits(merged, "llama"), before, atol=1e-5, rtol=1e-5)


def test_dora_scales_the_direction():
    """m · (W0 + ΔW) / ‖W0 + ΔW‖ by rows of PyTorch's weight, which are the paper's columns (Liu et al. 2024, 2402.09353)."""
    base = build("llama")
    weight = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    before = logits(base, "llama")
    model = attach(base, LoraConfig(r=4, lora_alpha=4, use_dora=True, target_modules=["q_proj"]))
    torch.testing.assert_close(logits(model, "llama"), before, atol=1e-6, rtol=1e-5)
    disturb(model)
    layer = adapted(model, "layers.0.self_attn.q_proj")
    direction = weight + layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    expected = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, expected)


# --------------------------------------------------------------------------------------------------------------- IA3
def test_ia3_rescales_keys_values_and_the_inner_activations():
    """One learned number for each key, value and inner feature, beginning at one (Liu et al. 2022, equation in 3.3)."""
    base = build("bert")
    before = logits(base, "bert")
    config = IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"])
    config.exclude_modules = r".*attention\.output\.dense"
    model = attach(base, config)
    assert torch.equal(logits(model, "bert"), before)
    assert model.get_nb_trainable_parameters()[0] == LAYERS * (HIDDEN + HIDDEN + 64)
    disturb(model, size=0.3)
    key, down = adapted(model, "layer.0.attention.self.key"), adapted(model, "layer.0.output.dense")
    hidden, inner = torch.randn(3, HIDDEN), torch.randn(3, 64)
    torch.testing.assert_close(key(hidden), key.ia3_l["default"].flatten() * key.base_layer(hidden))
    torch.testing.assert_close(down(inner), down.base_layer(inner * down.ia3_l["default"].flatten()))

    weights = {
        "key": key.base_layer.weight * key.ia3_l["default"].view(-1, 1),
        "bias": key.base_layer.bias * key.ia3_l["default"].flatten(),
        "down": down.base_layer.weight * down.ia3_l["default"].view(1, -1),
        "down bias": down.base_layer.bias.clone(),
    }
    adapted_logits = logits(model, "bert")
    merged = model.merge_and_unload().bert.encoder.layer[0]
    torch.testing.assert_close(merged.attention.self.key.weight, weights["key"])
    torch.testing.assert_close(merged.attention.self.key.bias, weights["bias"])
    torch.testing.assert_close(merged.output.dense.weight, weights["down"])
    torch.testing.assert_close(merged.output.dense.bias, weights["down bias"])
    torch.testing.assert_close(logits(model.base_model.model, "bert"), adapted_logits, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ prefixes
PREFIX = 5


def prefix_of(model, layers: int = LAYERS, heads: int = HEADS) -> torch.Tensor:
    """Keys and values of every layer: (layers, 2, heads, tokens, features of a head)."""
    with torch.no_grad():
        flat = model.prompt_encoder["default"](torch.arange(PREFIX))
    return flat.view(PREFIX, layers, 2, heads, HIDDEN // HEADS).permute(1, 2, 3, 0, 4)


@pytest.mark.parametrize("projection", [False, True], ids=["table", "mlp"])
@pytest.mark.parametrize(("kind", "heads"), [("gpt2", 4), ("llama", 2)])
def test_prefix_tuning_is_a_prefix_of_keys_and_values(kind, heads, projection):
    """Against the base model that is given the same keys and values as its past."""
    model = attach(
        build(kind),
        PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=PREFIX, prefix_projection=projection, encoder_hidden_size=24
        ),
    )
    after = logits(model, kind)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(prefix_of(model, heads=heads)):
        cache.update(keys.expand(2, -1, -1, -1), values.expand(2, -1, -1, -1), layer)
    batch = inputs_of(kind)
    mask = torch.ones(2, PREFIX + batch["input_ids"].shape[1], dtype=torch.long)
    with torch.no_grad():
        expected = build(kind)(input_ids=batch["input_ids"], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-5)
    assert (after - logits(build(kind), kind)).abs().max() > 1e-3


def test_the_prefix_is_attended_to():
    """One layer of GPT-2 by hand: softmax(q·[P_k; k]ᵀ/√d)·[P_v; v], each token seeing the prefix and what is before it."""
    model = attach(build("gpt2", n_layer=1), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX))
    attention, seen = model.base_model.transformer.h[0].attn, {}
    attention.c_attn.register_forward_hook(lambda module, args, out: seen.update(qkv=out))
    attention.c_proj.register_forward_hook(lambda module, args, out: seen.update(mixed=args[0]))
    logits(model, "gpt2")
    batch, length, _ = seen["qkv"].shape
    q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in seen["qkv"].split(HIDDEN, dim=-1))
    keys, values = (part.expand(batch, -1, -1, -1) for part in prefix_of(model, layers=1)[0])
    k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
    scores = q @ k.transpose(-1, -2) / math.sqrt(HIDDEN // HEADS)
    visible = torch.ones(length, PREFIX + length).tril(diagonal=PREFIX).bool()
    mixed = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ v
    torch.testing.assert_close(
        seen["mixed"], mixed.transpose(1, 2).reshape(batch, length, HIDDEN), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["bert-classifier", "roberta-classifier"])
def test_p_tuning_v2_has_prompts_at_every_layer(kind):
    """Prefix-tuning without reparameterisation on an encoder with a linear head (Liu et al. 2021, 2110.07602)."""
    base = build(kind, attn_implementation="eager")
    model = attach(base, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=PREFIX, prefix_projection=False))
    encoder = model.prompt_encoder["default"]
    assert sum(p.numel() for p in encoder.parameters()) == PREFIX * LAYERS * 2 * HIDDEN
    output = model(**inputs_of(kind), labels=torch.tensor([0, 1]), output_attentions=True)
    assert [attention.shape[-1] for attention in output.attentions] == [PREFIX + 9] * LAYERS
    output.loss.backward()
    gradients = encoder.embedding.weight.grad.view(PREFIX, LAYERS, 2, HIDDEN)
    assert (gradients.abs().sum(dim=-1) > 0).all()  # of every token, in every layer, key and value
    assert {name.split(".")[0] for name, p in model.base_model.named_parameters() if p.requires_grad} == {"classifier"}


def test_prompt_tuning_stands_at_the_input_only():
    """Against the base model given the prompt's embeddings and the text's (Lester et al. 2021, section 2)."""
    base = build("llama")
    table = base.get_input_embeddings().weight
    model = attach(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX))
    prompt = model.prompt_encoder["default"].embedding.weight
    assert prompt.shape == (PREFIX, HIDDEN)
    ids = inputs_of("llama")["input_ids"]
    embeddings = torch.cat([prompt.expand(2, -1, -1), table[ids]], dim=1)
    with torch.no_grad():
        expected = build("llama")(inputs_embeds=embeddings).logits
    torch.testing.assert_close(logits(model, "llama"), expected, atol=1e-6, rtol=1e-5)


def test_a_prompt_from_the_vocabulary_is_made_of_its_rows():
    model = attach(
        build("llama"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX, prompt_tuning_init="SAMPLE_VOCAB"),
    )
    table = model.get_input_embeddings().weight
    for row in model.prompt_encoder["default"].embedding.weight:
        assert (table == row).all(dim=1).any()
    assert len(table) == VOCABULARY


# --------------------------------------------------------------------------------------------------------------- QLoRA
def test_nf4_takes_the_memory_of_the_paper():
    """Half a byte a parameter and the constants: 32/64 bits without, 8/64 + 32/(64·256) with double quantisation.

    Dettmers et al. 2023 (2305.14314), section 3: 0.5 bits become 0.127, a saving of 0.373.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch.manual_seed(0)
    weight = torch.randn(1024, 1024)
    bits = {}
    for double in (False, True):
        packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
        assert packed.numel() * packed.element_size() * 8 == 4 * weight.numel()
        constants = [state.absmax, state.state2.absmax] if double else [state.absmax]
        bits[double] = sum(c.numel() * c.element_size() * 8 for c in constants) / weight.numel()
        error = (dequantize_4bit(packed, state) - weight).abs().mean()
        assert error < 0.08  # of values of deviation 1 at 16 levels
    assert bits[False] == 0.5
    assert bits[True] == pytest.approx(0.127, abs=1e-3)
    assert bits[False] - bits[True] == pytest.approx(0.373, abs=1e-3)


def test_nf4s_levels_are_the_quantiles_of_a_normal_distribution():
    """Equation 4 of the paper, with its asymmetric form that has an exact zero, scaled to [−1, 1]."""
    from bitsandbytes.functional import get_4bit_type

    levels = get_4bit_type("nf4", device="cpu")
    normal = torch.distributions.Normal(0, 1)
    offset = 0.9677083  # the paper's code: the mean of 1 − 1/30 and 1 − 1/32
    upper = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    lower = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    expected = torch.cat([lower, torch.zeros(1), upper]).sort().values
    torch.testing.assert_close(levels, expected / expected.max(), atol=1e-4, rtol=0)


def test_a_quantised_base_takes_adapters_of_ours(tmp_path):
    """4-bit linear layers: the adapter is of the computing type, and only it is trained."""
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    from recipes.adapters import BottleneckConfig

    build("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantised)
    model = attach(base, BottleneckConfig(task_type="CAUSAL_LM"))
    batch = inputs_of("llama")
    before = model(**batch, labels=batch["input_ids"]).loss
    before.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trained)
    torch.optim.SGD(trained, lr=0.5).step()
    assert model(**batch, labels=batch["input_ids"]).loss < before
    assert isinstance(adapted(model, "layers.0.mlp.down_proj").base_layer, nn.Linear)
