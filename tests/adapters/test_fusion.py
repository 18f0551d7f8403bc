"""AdapterFusion: what it starts as, what it trains, and what it holds."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_models import HIDDEN, build, disturb, inputs_of, logits, loss_of
from transformers import Trainer, TrainingArguments

from recipes.adapters import AdapterFusionConfig, BitFitConfig, BottleneckConfig, attach, open_adapter
from recipes.adapters.fusion import Fusion, FusionLayer
from recipes.core.adapter_penalty import add_fusion_penalty
from recipes.core.errors import UserError


def save_adapter(folder, seed: int, kind: str = "bert", **settings) -> str:
    torch.manual_seed(seed)
    config = BottleneckConfig(**{"placement": "pfeiffer", "reduction_factor": 4, **settings})
    model = attach(build(kind), config)
    disturb(model, seed)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, str]:
    """Three trained adapters of a BERT, the third with a bottleneck of another size."""
    factors = {"news": 4, "films": 4, "cooking": 8}
    return {
        name: save_adapter(tmp_path_factory.mktemp(name), seed, reduction_factor=factor)
        for seed, (name, factor) in enumerate(factors.items())
    }


def fused(adapters, **settings) -> PeftModel:
    torch.manual_seed(9)
    return attach(build("bert"), AdapterFusionConfig(adapters=adapters, **settings))


def layers_of(model) -> list[FusionLayer]:
    return [module for module in model.modules() if isinstance(module, FusionLayer)]


def test_only_the_fusion_is_trained(adapters):
    model = fused(adapters)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(name.endswith((".query.weight", ".key.weight", ".value.weight")) for name in trained)
    assert len(trained) == 3 * len(layers_of(model))
    assert model.get_nb_trainable_parameters()[0] == len(layers_of(model)) * 3 * HIDDEN**2
    model.set_adapter("default")
    with model.disable_adapter():
        pass
    model.set_requires_grad("default", True)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_the_size_for_bert_base_is_the_papers():
    """Three matrices of 768 × 768 in each of 12 layers: 21.2 million."""
    block = Fusion(768, {})
    trained = sum(p.numel() for p in block.parameters() if p.requires_grad)
    assert 12 * trained == 21_233_664


def test_adapters_are_those_that_were_saved(adapters):
    model = fused(adapters)
    for name, folder in adapters.items():
        tensors = load_file(f"{folder}/adapter_model.safetensors")
        for number, layer in enumerate(layers_of(model)):
            held = layer.blocks["default"].adapters[name].state_dict()
            start = f"base_model.model.bert.encoder.layer.{number}.output.LayerNorm.bottleneck_blocks."
            assert all(torch.equal(tensor, tensors[start + key]) for key, tensor in held.items())


def test_it_starts_with_values_as_they_are(adapters):
    """V is the identity but for 1e-6, so that step 0 is the adapters' outputs, weighted, added to the hidden state."""
    model = fused(adapters)
    block = layers_of(model)[0].blocks["default"]
    value = block.value.weight.detach()
    assert torch.equal(value.diagonal(), torch.ones(HIDDEN))
    off = value - torch.diag(value.diagonal())
    assert 0 < off.abs().max() < 1e-5
    torch.manual_seed(0)
    hidden = torch.randn(2, 7, HIDDEN)
    outputs = torch.stack([block.adapters[name](hidden) for name in adapters], dim=-2)
    scores = torch.empty(2, 7, 3)
    for row in range(2):
        for place in range(7):
            query = block.query.weight @ hidden[row, place]
            for number in range(3):
                scores[row, place, number] = query @ (block.key.weight @ outputs[row, place, number])
    shares = scores.softmax(dim=-1)
    expected = (shares[..., None] * outputs).sum(dim=-2)
    torch.testing.assert_close(block(hidden), expected, atol=1e-5, rtol=1e-4)
    assert (shares - 1 / 3).abs().max() < 0.05  # small random Q and K prefer no adapter


def test_a_residual_inside_the_outputs_would_change_no_share(adapters):
    """The paper's z has the residual in it; all keys then change by the same, which a softmax does not see."""
    block = layers_of(fused(adapters))[0].blocks["default"]
    hidden = torch.randn(4, HIDDEN)
    outputs = torch.stack([adapter(hidden) for adapter in block.adapters.values()], dim=-2)
    torch.testing.assert_close(block.weights(hidden, outputs), block.weights(hidden, outputs + hidden[:, None]))


def test_of_equal_adapters_the_fusion_is_the_adapter(adapters):
    model = fused({"one": adapters["news"], "two": adapters["news"]})
    single = open_adapter(build("bert"), adapters["news"])
    torch.testing.assert_close(logits(model, "bert"), logits(single, "bert"), atol=1e-5, rtol=1e-4)


def test_the_regularizer_is_the_squared_distance_from_the_identity(adapters):
    base = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = attach(base, AdapterFusionConfig(adapters=adapters, regularization=0.5)).eval()
    disturb(model)
    plain = loss_of(model, "bert")  # evaluation: the loss alone
    model.train()
    distance = sum(
        ((layer.blocks["default"].value.weight - torch.eye(HIDDEN)) ** 2).sum() for layer in layers_of(model)
    )
    torch.testing.assert_close(loss_of(model, "bert"), plain + 0.5 * distance)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(model, "bert"), plain)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("who", ["model", "trainer"])
def test_the_regularizer_is_in_the_loss_once_whoever_works_it_out(who, parts, adapters, tmp_path):
    base = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = attach(base, AdapterFusionConfig(adapters=adapters, regularization=0.5))
    disturb(model)
    arguments = TrainingArguments(str(tmp_path), gradient_accumulation_steps=parts, use_cpu=True, report_to="none")
    loss = {"compute_loss_func": lambda outputs, labels, num_items_in_batch: outputs.logits.mean() * 0}
    trainer = Trainer(model, arguments, **(loss if who == "trainer" else {}))
    add_fusion_penalty(trainer)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = parts
    batch = inputs_of("bert")
    batch["labels"] = batch["input_ids"]
    for _ in range(parts):
        trainer.training_step(model, dict(batch), num_items_in_batch=torch.tensor(parts * batch["labels"].numel()))
    values = [layer.blocks["default"].value.weight for layer in layers_of(model)]
    plain = torch.autograd.grad(loss_of(model.eval(), "bert"), values)  # a mean, which Trainer takes for a part
    for value, before in zip(values, plain):
        regularizer = 0.5 * 2 * (value - torch.eye(HIDDEN))
        torch.testing.assert_close(
            value.grad, regularizer + (parts * before if who == "model" else 0), atol=1e-5, rtol=1e-4
        )


def test_one_folder_holds_the_fusion_and_its_adapters(adapters, tmp_path):
    model = fused(adapters)
    disturb(model)
    before = logits(model, "bert")
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {name: each["reduction_factor"] for name, each in settings["adapter_configs"].items()} == {
        "news": 4,
        "films": 4,
        "cooking": 8,
    }
    settings["adapters"] = dict.fromkeys(settings["adapters"], "gone")  # their own folders are needed no more
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert torch.equal(logits(open_adapter(build("bert"), tmp_path), "bert"), before)


def test_two_placements_can_be_fused_where_they_agree(tmp_path):
    adapters = {
        name: save_adapter(tmp_path / name, seed, placement="houlsby", train_layer_norms=False)
        for seed, name in enumerate(("a", "b"))
    }
    assert len(layers_of(fused(adapters))) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_layer_norms": True, "placement": "houlsby"}, "'other' has layer norms of its own"),
        ({"invertible": True}, "'other' has an invertible adapter of its own"),
        ({"placement": "houlsby", "train_layer_norms": False}, "'news' has placement pfeiffer and 'other' houlsby"),
    ],
)
def test_adapters_that_cannot_be_fused_are_refused(settings, message, adapters, tmp_path):
    other = save_adapter(tmp_path, 0, **settings)
    with pytest.raises(UserError, match=message):
        fused({"news": adapters["news"], "other": other})


def test_what_is_no_adapter_is_refused(adapters, tmp_path):
    with pytest.raises(UserError, match="'gone': no adapter at /nowhere"):
        fused({"news": adapters["news"], "gone": "/nowhere"})
    attach(build("bert"), BitFitConfig()).save_pretrained(tmp_path / "bitfit")
    with pytest.raises(UserError, match="'bitfit' is a bitfit adapter; fuse bottleneck adapters"):
        fused({"news": adapters["news"], "bitfit": str(tmp_path / "bitfit")})
    other = save_adapter(tmp_path / "roberta", 0, kind="roberta")
    with pytest.raises(UserError, match=r"'roberta' \(.*\) does not fit BertForMaskedLM at bert.encoder.layer.0"):
        fused({"news": adapters["news"], "roberta": other})
    with pytest.raises(UserError, match="name at least two trained adapters"):
        fused({"news": adapters["news"]})
    with pytest.raises(UserError, match="must not hold a dot"):
        fused({"news": adapters["news"], "a.b": adapters["films"]})


def test_a_head_beside_the_fusion_is_trained_too(adapters, tmp_path):
    folders = {}
    for seed, name in enumerate(("a", "b")):
        model = attach(
            build("bert-classifier"), BottleneckConfig(task_type="SEQ_CLS", placement="pfeiffer", reduction_factor=4)
        )
        disturb(model, seed)
        folders[name] = str(tmp_path / name)
        model.save_pretrained(folders[name])
    model = attach(build("bert-classifier"), AdapterFusionConfig(task_type="SEQ_CLS", adapters=folders))
    trained = {name.rpartition(".")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"query", "key", "value", "default"}  # default: the copy of the classifier
    with torch.no_grad():
        assert model(**inputs_of("bert-classifier")).logits.shape == (2, 3)
