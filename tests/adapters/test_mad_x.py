"""MAD-X: invertible adapters with an exact inverse, task adapters stacked on language adapters, and their exchange."""

import pytest
import torch
from peft import PeftModel
from small_models import HIDDEN, VOCABULARY, build, disturb, inputs_of, logits, loss_of
from torch import nn

from recipes.adapters import BottleneckConfig, attach, open_adapter, stack
from recipes.adapters.bottleneck import BottleneckLayer
from recipes.adapters.invertible import EmbeddingLayer, NiceCoupling, OutputLayer
from recipes.core.errors import UserError

LANGUAGE = {"placement": "pfeiffer", "reduction_factor": 2, "invertible": True}
TASK = {"placement": "pfeiffer", "reduction_factor": 16}


@pytest.mark.parametrize(("std", "tolerance"), [(0.01, 1e-6), (0.3, 1e-5)])
def test_the_inverse_is_exact(std, tolerance):
    torch.manual_seed(0)
    coupling = NiceCoupling(768, 192, std)
    for parameter in coupling.parameters():
        nn.init.normal_(parameter, std=std / 4)
    embeddings = torch.randn(4, 16, 768)
    hidden = coupling(embeddings)
    assert (hidden - embeddings).abs().max() > std
    assert (coupling.inverse(hidden) - embeddings).abs().max() < tolerance
    assert (coupling(coupling.inverse(embeddings)) - embeddings).abs().max() < tolerance


def test_the_coupling_by_hand():
    """o1 = F(e2) + e1 and o2 = G(o1) + e2, F(x) = U·ReLU(D·x) (MAD-X, section 3.3)."""
    torch.manual_seed(0)
    coupling = NiceCoupling(8, 2, 0.5)
    embeddings = torch.randn(3, 8)
    down_f, up_f = coupling.f[0], coupling.f[2]
    down_g, up_g = coupling.g[0], coupling.g[2]
    e1, e2 = embeddings[:, :4], embeddings[:, 4:]
    o1 = (e2 @ down_f.weight.T + down_f.bias).clamp(min=0) @ up_f.weight.T + up_f.bias + e1
    o2 = (o1 @ down_g.weight.T + down_g.bias).clamp(min=0) @ up_g.weight.T + up_g.bias + e2
    torch.testing.assert_close(coupling(embeddings), torch.cat([o1, o2], dim=1))


def test_the_sizes_are_the_papers():
    """For XLM-R base: 384 units in a language adapter, 48 in a task adapter, 192 in F and in G."""
    model = attach(build("bert", hidden_size=768, num_attention_heads=12), BottleneckConfig(**LANGUAGE))
    block = next(m for m in model.modules() if isinstance(m, BottleneckLayer)).blocks["default"]
    coupling = next(m for m in model.modules() if isinstance(m, EmbeddingLayer)).blocks["default"]
    assert block.down.weight.shape == (384, 768)
    assert coupling.f[0].weight.shape == coupling.g[0].weight.shape == (192, 384)
    model = attach(build("bert", hidden_size=768, num_attention_heads=12), BottleneckConfig(**TASK))
    assert next(m for m in model.modules() if isinstance(m, BottleneckLayer)).blocks["default"].down.out_features == 48


@pytest.mark.parametrize(
    ("kind", "embeddings", "scores"),
    [
        ("bert", "bert.embeddings.dropout", "cls.predictions.decoder"),
        ("roberta", "roberta.embeddings.dropout", "lm_head.decoder"),
        ("llama", "model.embed_tokens", "lm_head"),
        ("gpt2", "transformer.drop", "lm_head"),
        ("bert-classifier", "bert.embeddings.dropout", None),
    ],
)
def test_the_coupling_stands_at_both_ends(kind, embeddings, scores):
    model = attach(build(kind), BottleneckConfig(**LANGUAGE)).base_model.model
    found = {type(m): name for name, m in model.named_modules() if isinstance(m, (EmbeddingLayer, OutputLayer))}
    assert found == {EmbeddingLayer: embeddings} | ({OutputLayer: scores} if scores else {})


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_the_output_undoes_what_the_embeddings_did(kind):
    model = attach(build(kind), BottleneckConfig(**LANGUAGE))
    disturb(model)
    layer = next(m for m in model.modules() if isinstance(m, EmbeddingLayer))
    output = next(m for m in model.modules() if isinstance(m, OutputLayer))
    hidden = torch.randn(2, 5, HIDDEN)
    coupled = layer.blocks["default"](hidden)
    torch.testing.assert_close(output(coupled), output.base_layer(hidden), atol=1e-5, rtol=1e-5)


def test_one_set_of_tensors_for_both_ends(tmp_path):
    model = attach(build("llama", tie_word_embeddings=True), BottleneckConfig(task_type="CAUSAL_LM", **LANGUAGE))
    names = [name for name, _ in model.named_parameters(remove_duplicate=False) if "bottleneck_invertible" in name]
    assert len(names) == 8
    loss_of(model, "llama").backward()
    disturb(model)
    before = logits(model, "llama")
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(build("llama", tie_word_embeddings=True), tmp_path)
    assert torch.equal(logits(opened, "llama"), before)


def stacked(kind: str = "bert-classifier") -> PeftModel:
    model = attach(build(kind), BottleneckConfig(**LANGUAGE), "english")
    disturb(model, 1)
    model.add_adapter("german", BottleneckConfig(**LANGUAGE))
    model.set_adapter("german")
    disturb(model, 2)
    head = ["classifier"] if kind.endswith("-classifier") else None
    model.add_adapter("task", BottleneckConfig(**TASK, modules_to_save=head))
    stack(model, "english", "task")
    disturb(model, 4)
    return model


@pytest.mark.parametrize("kind", ["bert", "bart", "llama", "gpt2"])
def test_the_stack_by_hand(kind):
    """LA = U·ReLU(D·h) + r and TA = U'·ReLU(D'·LA) + r: both with the feed-forward block's output r (equations 1, 3)."""
    model = attach(build(kind), BottleneckConfig(**LANGUAGE | {"invertible": False}), "english")
    disturb(model, 1)
    model.add_adapter("task", BottleneckConfig(**TASK))
    stack(model, "english", "task")
    disturb(model, 2, size=0.3)
    layer = next(m for m in model.modules() if isinstance(m, BottleneckLayer))
    seen = {}
    layer.register_forward_hook(lambda module, args, out: seen.update(given=args[0], left=out))
    after_norm = kind in ("bert", "bart")
    if after_norm:
        name = next(name for name, module in model.named_modules() if module is layer)
        block = model.get_submodule(name.removesuffix(".output.LayerNorm").removesuffix(".final_layer_norm"))
        dense = block.output.dense if kind == "bert" else block.fc2
        dense.register_forward_hook(lambda module, args, out: seen.update(residual=out))
    logits(model, kind)

    def add(block, hidden, residual):
        return (
            (hidden @ block.down.weight.T + block.down.bias).clamp(min=0) @ block.up.weight.T
            + block.up.bias
            + residual
        )

    read = layer.base_layer(seen["given"])
    residual = seen["residual"] if after_norm else read
    language = add(layer.blocks["english"], read, residual)
    task = add(layer.blocks["task"], language, residual)
    expected = layer.base_layer(seen["given"] - residual + task) if after_norm else task
    torch.testing.assert_close(seen["left"], expected, atol=1e-5, rtol=1e-5)


def test_the_task_adapter_alone_is_trained():
    model = stacked()
    assert model.active_adapters == ["task"]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".task." in name for name in trained)
    with model.disable_adapter():
        assert not [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    loss_of(model, "bert-classifier").backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_language_is_exchanged_under_the_task():
    model = stacked()
    english = logits(model, "bert-classifier")
    stack(model, "german", "task")
    german = logits(model, "bert-classifier")
    assert (german - english).abs().max() > 1e-4
    stack(model, "english", "task")
    assert torch.equal(logits(model, "bert-classifier"), english)
    stack(model, "task")
    alone = logits(model, "bert-classifier")
    assert (alone - english).abs().max() > 1e-4
    with model.disable_adapter():
        base = build("bert-classifier")
        assert torch.equal(logits(model, "bert-classifier"), logits(base, "bert-classifier"))


def test_adapters_in_a_list_are_applied_in_its_order():
    """PEFT's own way, without a config that says so."""
    model = stacked()
    english = logits(model, "bert-classifier")
    stack(model, "task")
    model.base_model.set_adapter(["english", "task"])
    assert torch.equal(logits(model, "bert-classifier"), english)
    model.base_model.set_adapter(["task", "english"])
    assert (logits(model, "bert-classifier") - english).abs().max() > 1e-4


def test_the_stack_outlasts_saving(tmp_path):
    """What Trainer does when it resumes: all adapters are loaded, then the active one is set by its name."""
    model = stacked()
    english = logits(model, "bert-classifier")
    model.save_pretrained(tmp_path)
    opened = open_adapter(build("bert-classifier"), tmp_path / "english", "english")
    open_adapter(opened, tmp_path / "german", "german")
    open_adapter(opened, tmp_path / "task", "task", trainable=True)
    opened.set_adapter("task")
    assert torch.equal(logits(opened, "bert-classifier"), english)
    assert all(".task." in name for name, p in opened.named_parameters() if p.requires_grad)


def test_a_missing_adapter_below_is_named(tmp_path):
    model = stacked()
    model.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="adapter 'task' is stacked on 'english', which is not loaded; load that one first"
    ):
        open_adapter(build("bert-classifier"), tmp_path / "task", "task")
    with pytest.raises(UserError, match="no adapter 'englsh' is loaded; did you mean 'english'"):
        stack(model, "englsh", "task")
    model.peft_config["english"].stacked_on = "task"
    with pytest.raises(UserError, match="is stacked on itself"):
        model.set_adapter("task")


def test_a_language_model_scores_with_the_inverse_of_the_language():
    model = stacked("bert")
    assert logits(model, "bert").shape[-1] == VOCABULARY
    stack(model, "german", "task")
    before = logits(model, "bert")
    output = next(m for m in model.modules() if isinstance(m, OutputLayer))
    assert list(output.blocks) == ["english", "german"]
    output._disable_adapters = True
    assert (logits(model, "bert") - before).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_has_no_place_for_an_inverse(kind):
    with pytest.raises(UserError, match="has an encoder and a decoder"):
        attach(build(kind), BottleneckConfig(**LANGUAGE))


def test_inputs_do_not_linger():
    """What the stack needs of a block's input is dropped as soon as it was used."""
    model = stacked()
    model(**inputs_of("bert-classifier"))
    assert all(m._entered is None for m in model.modules() if isinstance(m, BottleneckLayer))
