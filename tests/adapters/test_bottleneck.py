"""Bottleneck adapters: their places, their arithmetic and their size, against the papers."""

import pytest
import torch
from accelerate import init_empty_weights
from small_models import HIDDEN, LAYERS, MODELS, build, disturb, inputs_of, logits, loss_of
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from recipes.adapters import BottleneckConfig, attach
from recipes.adapters.bottleneck import Bottleneck, BottleneckLayer
from recipes.core.errors import UserError

PLACES = {  # by the end of their names, of one encoder and one decoder block
    "bert": (["attention.output.dense", "output.dense"], ["output.LayerNorm"]),
    "roberta": (["attention.output.dense", "output.dense"], ["output.LayerNorm"]),
    "llama": (["self_attn.o_proj", "mlp.down_proj"], ["mlp.down_proj"]),
    "qwen2": (["self_attn.o_proj", "mlp.down_proj"], ["mlp.down_proj"]),
    "qwen3": (["self_attn.o_proj", "mlp.down_proj"], ["mlp.down_proj"]),
    "gpt2": (["attn.c_proj", "mlp.c_proj"], ["mlp.c_proj"]),
    "t5": (
        ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"]
        + ["layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"],
        ["layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"],
    ),
    "bart": (["self_attn.out_proj", "encoder_attn.out_proj", "fc2"], ["final_layer_norm"]),
}
COUNTS = {"t5": (5, 2), "bart": (5, 2)}  # in an encoder and a decoder block together; elsewhere 2 and 1


def layers_of(model) -> dict[str, BottleneckLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BottleneckLayer)}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_the_places_are_found(kind, placement):
    model = attach(build(kind), BottleneckConfig(placement=placement))
    found = layers_of(model)
    which = placement == "pfeiffer"
    assert len(found) == LAYERS * COUNTS.get(kind, (2, 1))[which]
    for name in found:
        assert any(name.endswith(f".{end}") for end in PLACES[kind][which]), name


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_step_0_is_the_base_model(kind, placement):
    """Exactly with a projection up of zeros; with the paper's 1e-2 to a thousandth of the largest logit."""
    base = logits(build(kind), kind)
    exact = attach(build(kind), BottleneckConfig(placement=placement, init_weights="identity"))
    assert torch.equal(logits(exact, kind), base)
    near = attach(build(kind), BottleneckConfig(placement=placement))
    difference = (logits(near, kind) - base).abs().max()
    assert 0 < difference < 1e-3 * base.abs().max()
    assert any(p.grad.abs().sum() for p in grads(exact, kind))  # zeros can be left


def grads(model, kind):
    loss_of(model, kind).backward()
    return [p for p in model.parameters() if p.grad is not None]


def test_weights_begin_as_in_houlsby_et_al():
    """A normal distribution of 1e-2, cut off at two standard deviations: its own deviation is 0.8796 of that."""
    torch.manual_seed(0)
    block = Bottleneck(512, BottleneckConfig(reduction_factor=2))
    for linear in (block.down, block.up):
        assert linear.weight.abs().max() <= 0.02
        assert linear.weight.std().item() == pytest.approx(0.008796, rel=0.01)  # 131,072 draws: 0.2 % is one sigma
        assert linear.weight.mean().item() == pytest.approx(0, abs=1e-4)
        assert not linear.bias.any()


@pytest.mark.parametrize(("hidden", "factor", "bottleneck"), [(768, 16, 48), (1024, 16, 64), (768, 12, 64)])
def test_the_number_of_parameters_is_the_papers_formula(hidden, factor, bottleneck):
    """2md + d + m an adapter (Houlsby et al., section 2.1), two a layer, and 2d a layer norm; one with Pfeiffer et al."""
    config = BertConfig(hidden_size=hidden, num_attention_heads=hidden // 64, intermediate_size=4 * hidden)
    adapter = 2 * bottleneck * hidden + hidden + bottleneck
    counts = {}
    for placement in ("houlsby", "pfeiffer"):
        with init_empty_weights():
            model = attach(BertModel(config), BottleneckConfig(placement=placement, reduction_factor=factor))
        counts[placement] = model.get_nb_trainable_parameters()[0]
    norms = 2 * 12 + 1  # two a layer and the embeddings'
    assert counts == {"houlsby": 12 * 2 * adapter + norms * 2 * hidden, "pfeiffer": 12 * adapter}


def by_hand(block: Bottleneck, hidden: torch.Tensor) -> torch.Tensor:
    inner = hidden @ block.down.weight.T + block.down.bias
    inner = (
        nn.functional.gelu(inner)
        if isinstance(block.non_linearity, nn.Module) and ("GELU" in type(block.non_linearity).__name__)
        else inner.clamp(min=0)
    )
    return block.scaling * (inner @ block.up.weight.T + block.up.bias)


def test_houlsby_stands_before_the_sum():
    """One layer of BERT by hand: LayerNorm(x + h + U·f(D·h)), where h is what the attention's output layer puts out."""
    model = attach(build("bert"), BottleneckConfig(scaling=1.5))
    disturb(model)
    seen = {}
    block = model.base_model.model.bert.encoder.layer[0]
    output = block.attention.output
    output.dense.base_layer.register_forward_hook(lambda module, args, out: seen.update(hidden=out))
    output.register_forward_hook(lambda module, args, out: seen.update(entered=args[1], left=out))
    logits(model, "bert")
    adapter = output.dense.bottleneck_blocks["default"]
    norm = output.LayerNorm.modules_to_save["default"]
    total = seen["entered"] + seen["hidden"] + by_hand(adapter, seen["hidden"])
    expected = nn.functional.layer_norm(total, (HIDDEN,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(seen["left"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_pfeiffer_reads_the_layer_norm_and_is_normalised_again(kind):
    """LayerNorm(x + h + U·f(D·LayerNorm(x + h))), h being what the feed-forward block puts out (MAD-X, figure 3)."""
    model = attach(build(kind), BottleneckConfig(placement="pfeiffer"))
    disturb(model)
    layer = next(iter(layers_of(model).values()))
    seen = {}
    layer.register_forward_hook(lambda module, args, out: seen.update(total=args[0], left=out))
    logits(model, kind)
    norm = layer.base_layer

    def normed(hidden):
        return nn.functional.layer_norm(hidden, (HIDDEN,), norm.weight, norm.bias, norm.eps)

    change = by_hand(layer.bottleneck_blocks["default"], normed(seen["total"]))
    torch.testing.assert_close(seen["left"], normed(seen["total"] + change), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_where_the_norm_comes_first_the_adapter_reads_the_block(kind):
    model = attach(build(kind), BottleneckConfig(placement="pfeiffer"))
    disturb(model)
    layer = next(iter(layers_of(model).values()))
    seen = {}
    layer.base_layer.register_forward_hook(lambda module, args, out: seen.update(hidden=out))
    layer.register_forward_hook(lambda module, args, out: seen.update(left=out))
    logits(model, kind)
    change = by_hand(layer.bottleneck_blocks["default"], seen["hidden"])
    torch.testing.assert_close(seen["left"], seen["hidden"] + change, atol=1e-6, rtol=1e-5)


def test_layer_norms_are_trained_in_copies():
    base = build("llama")
    before = logits(base, "llama")
    model = attach(base, BottleneckConfig(task_type="CAUSAL_LM"))
    norms = [name for name, p in model.named_parameters() if p.requires_grad and "norm" in name]
    assert len(norms) == 2 * LAYERS + 1
    disturb(model)
    with model.disable_adapter():
        assert torch.equal(logits(model, "llama"), before)
    without = attach(build("llama"), BottleneckConfig(train_layer_norms=False))
    assert not [name for name, p in without.named_parameters() if p.requires_grad and "norm" in name]


def test_a_second_adapter_trains_layer_norms_of_its_own():
    model = attach(build("bert"), BottleneckConfig())
    model.add_adapter("second", BottleneckConfig())
    model.set_adapter("second")
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "LayerNorm" in name]
    assert len(trained) == 2 * (2 * LAYERS + 2)
    assert all(".second." in name for name in trained)


def test_in_bfloat16_the_adapter_is_kept_in_float32():
    model = attach(build("gpt2").to(torch.bfloat16), BottleneckConfig(train_layer_norms=False))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model, "gpt2").dtype == torch.bfloat16


def test_named_places():
    model = attach(build("gpt2"), BottleneckConfig(target_modules=["attn.c_proj"], train_layer_norms=False))
    assert [name.split(".")[-3:] for name in layers_of(model)] == [[str(i), "attn", "c_proj"] for i in range(LAYERS)]
    model = attach(build("gpt2"), BottleneckConfig(target_modules=r".*h\.1\.mlp\.c_proj", train_layer_norms=False))
    assert len(layers_of(model)) == 1


def test_an_unknown_place_is_refused_with_those_that_there_are():
    with pytest.raises(UserError, match=r"no linear layer 'mlp.c_prj'; did you mean 'mlp.c_proj'"):
        attach(build("gpt2"), BottleneckConfig(target_modules=["mlp.c_prj"]))
    with pytest.raises(UserError, match=r"known: attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj"):
        attach(build("gpt2"), BottleneckConfig(target_modules=["xyz"]))


def test_a_model_without_known_places_is_refused_with_its_layers():
    model = build("gpt2")
    for block in model.transformer.h:
        block.feed = block.mlp
        del block.mlp
    with pytest.raises(
        UserError, match=r"no feed-forward output .* target_modules .*: attn.c_attn, attn.c_proj, feed"
    ):
        attach(model, BottleneckConfig())


def test_layer_norms_have_one_user():
    model = attach(build("bert"), BottleneckConfig())
    with pytest.raises(UserError, match="another adapter trains the layer norms that this one would stand at"):
        model.add_adapter("other", BottleneckConfig(placement="pfeiffer"))
    assert list(model.peft_config) == ["default"]
    model = attach(build("bert"), BottleneckConfig(placement="pfeiffer"))
    with pytest.raises(UserError, match="another adapter stands at the layer norms that this one would train"):
        model.add_adapter("other", BottleneckConfig())
    model.add_adapter("without", BottleneckConfig(train_layer_norms=False))
    logits(model, "bert")


def test_a_model_with_barts_names_that_normalises_before():
    """OPT's layers have fc2 and final_layer_norm as BART's do, and normalise before the block: the adapter is at fc2."""
    config = OPTConfig(
        vocab_size=60,
        hidden_size=HIDDEN,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    model = attach(OPTForCausalLM(config), BottleneckConfig(placement="pfeiffer"))
    assert [name.split(".")[-1] for name in layers_of(model)] == ["fc2"]


def test_cross_attention_of_a_decoder_has_an_adapter_too():
    config = GPT2Config(vocab_size=60, n_embd=HIDDEN, n_layer=1, n_head=4, add_cross_attention=True, is_decoder=True)
    model = attach(GPT2LMHeadModel(config), BottleneckConfig())
    assert sorted(name.split("h.0.")[1] for name in layers_of(model)) == [
        "attn.c_proj",
        "crossattention.c_proj",
        "mlp.c_proj",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"non_linearity": "rleu"}, "no function 'rleu'; did you mean 'relu'"),
        ({"reduction_factor": 0}, "must be above 0"),
        ({"init_std": -1.0}, "init_std must be at least 0"),
        ({"placement": "pfeiffer", "train_layer_norms": True}, "train_layer_norms belongs to placement: houlsby"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        BottleneckConfig(**settings)


def test_a_padded_row_gives_what_it_gives_alone():
    model = attach(build("bert"), BottleneckConfig())
    disturb(model)
    batch = inputs_of("bert")
    batch["attention_mask"][0, 6:] = 0
    short = {key: value[:1, :6] for key, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[:1, :6], model(**short).logits, atol=1e-5, rtol=1e-5)
