"""GPT-1 to LLaMA-2 as their papers have them: blocks, attention pattern layer by layer, first weights, schedule."""

import math

import pytest
import torch

from recipes.core.config import nest, read_yaml

SMALL = ["gpt1", "gpt2", "gpt3-banded", "llama1", "llama2"]
REAL = ["gpt1-117m", "gpt2-124m", "gpt3-125m", "llama1-7b", "llama-1b"]


@pytest.fixture
def settings(root):
    def read(name: str) -> dict:
        return nest(read_yaml(root / "configs/pretraining/causal" / f"{name}.yaml")[0])

    return read


@pytest.fixture
def build(settings, tiny):
    from recipes.core import ModelConfig
    from recipes.pretraining.gpt import initialize, keep_documents_apart

    def model(name: str, **changes):
        asked = settings(name)
        torch.manual_seed(0)
        _, made = ModelConfig(
            model_config=asked["model_config"] | changes,
            tokenizer_name_or_path=str(tiny / "tokenizer"),
            attn_implementation=asked["attn_implementation"],
        ).load_causal_lm()
        keep_documents_apart(made)
        initialize(made)
        return made.eval()

    return model


def config_of(settings: dict, vocab_size: int):
    from transformers import CONFIG_MAPPING

    block = dict(settings["model_config"])
    return CONFIG_MAPPING[block.pop("model_type")](vocab_size=vocab_size, **block)


@pytest.mark.parametrize(
    ("name", "vocab_size", "millions"),
    [
        ("gpt1-117m", 40478, 116.5),
        ("gpt2-124m", 50257, 124.4),
        ("gpt3-125m", 50257, 125.2),
        ("llama1-7b", 32000, 6738.4),
        ("llama-1b", 32000, 1100.0),
    ],
)
def test_the_real_ones_have_the_published_number_of_parameters(name, vocab_size, millions, settings):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(settings(name), vocab_size))
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_the_small_ones_are_of_one_size_and_one_budget(name, settings, build):
    asked, reference = settings(name), settings("llama1")
    for key in ("dataset_name", "tokenizer_name_or_path", "max_length", "max_steps", "per_device_train_batch_size"):
        assert asked[key] == reference[key]
    assert 0.6e6 < sum(weight.numel() for weight in build(name).parameters()) < 0.95e6, "with 300 tokens"


@pytest.mark.parametrize("name", ["gpt3-banded", "gpt3-125m"])
def test_dense_and_banded_layers_alternate(name, build, settings):
    """Layer by layer, which keys have any weight: all before, or those of the last `window_size` positions."""
    sizes = {"hidden_size": 32, "num_heads": 2, "max_position_embeddings": 32, "window_size": 5}
    model = build(name, **sizes)
    ids = torch.randint(10, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.arange(16), torch.cat([torch.arange(7), torch.arange(9)])])
    with torch.no_grad():
        layers = model(
            input_ids=ids, position_ids=positions, use_cache=False, output_attentions=True, return_dict=True
        ).attentions
    query, key = torch.arange(16)[:, None], torch.arange(16)
    document = torch.stack([torch.zeros(16), (torch.arange(16) >= 7).float()])
    same = document[:, :, None] == document[:, None]
    assert len(layers) == settings(name)["model_config"]["num_layers"]
    for number, weights in enumerate(layers):
        band = 5 if number % 2 else 16
        allowed = same & (key <= query) & (key > query - band)
        assert torch.equal(weights.amax(1) > 0, allowed), f"layer {number}"


@pytest.mark.parametrize("name", ["gpt2", "gpt3-banded"])
def test_layers_that_write_to_the_residual_stream_start_smaller(name, build):
    """0.02/√(2·layers): GPT-2, section 2.3; GPT-3 has the same."""
    model = build(name)
    layers = len(model.transformer.h)
    for block in model.transformer.h:
        attention = block.attn.attention if name == "gpt3-banded" else block.attn
        writes = [attention.out_proj if name == "gpt3-banded" else attention.c_proj, block.mlp.c_proj]
        for weight in (module.weight for module in writes):
            assert weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * layers), rel=0.03)
        assert block.mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_gpt3_starts_with_scaled_attention(build):
    """GPT-Neo does not divide scores by √d; with its queries drawn smaller the first scores are those of GPT-2."""
    attention = build("gpt3-banded").transformer.h[0].attn.attention
    assert attention.head_dim == 32
    assert attention.q_proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(32), rel=0.03)
    assert attention.k_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_gpt1_normalizes_after_each_block_and_gpt2_before(build):
    """GPT-1's last operation is a normalisation inside its last block; GPT-2 has one more at the end (section 2.3)."""
    one, two = build("gpt1").transformer, build("gpt2").transformer
    assert not hasattr(one, "ln_f")
    assert hasattr(two, "ln_f")
    states = torch.randn(1, 5, 128) * 3
    with torch.no_grad():
        normalized = one.h[0](states)[0]
        raw = two.h[0](states)
    raw = raw[0] if isinstance(raw, tuple) else raw
    assert torch.allclose(normalized.std(-1, unbiased=False), torch.ones(1, 5), atol=0.01)
    assert raw.std(-1).min() > 2


def test_llama2_shares_keys_and_values_between_queries(build, settings):
    one, two = (build(name).model.layers[0].self_attn for name in ("llama1", "llama2"))
    assert one.k_proj.weight.shape == one.q_proj.weight.shape
    assert two.k_proj.weight.shape[0] * 2 == two.q_proj.weight.shape[0]
    assert settings("llama-1b")["model_config"]["num_key_value_heads"] == 4
    kinds = {type(module).__name__ for module in build("llama1").modules()}
    assert {"LlamaRMSNorm", "LlamaRotaryEmbedding", "SiLUActivation"} <= kinds or {"LlamaRMSNorm", "SiLU"} <= kinds


@pytest.mark.parametrize("name", SMALL + REAL)
def test_embeddings_are_tied_as_the_config_says(name, settings):
    from transformers import AutoModelForCausalLM

    asked = settings(name)
    with torch.device("meta"):
        config = config_of(asked, 300)
        for key in ("num_hidden_layers", "n_layer"):
            if key in asked["model_config"]:
                setattr(config, key, 1)
        model = AutoModelForCausalLM.from_config(config)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (name not in ("llama1-7b", "llama-1b"))


@pytest.mark.parametrize("name", SMALL + REAL)
def test_the_rate_falls_to_nothing_for_gpt1_and_to_a_tenth_for_the_others(name, settings):
    from transformers import get_scheduler

    asked = settings(name)
    steps = asked.get("max_steps", 20_000)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=asked["learning_rate"])
    kwargs = asked.get("lr_scheduler_kwargs")
    schedule = get_scheduler(asked["lr_scheduler_type"], optimizer, asked["warmup_steps"], steps, kwargs)
    shape = schedule.lr_lambdas[0]
    assert shape(0) < 1e-3
    assert shape(asked["warmup_steps"]) == pytest.approx(1.0, abs=0.01)
    assert shape(steps) == pytest.approx(0.0 if name.startswith("gpt1") else 0.1, abs=1e-6)
