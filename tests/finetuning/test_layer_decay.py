"""Layer-wise learning rates against the paper's rule, worked out for a BERT of two layers."""

from types import SimpleNamespace

import pytest
import torch

from recipes.core.errors import UserError
from recipes.finetuning.layer_decay import depth, layer_groups, rates, use_layer_decay


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("classifier.weight", 0),
        ("bert.pooler.dense.bias", 0),
        ("bert.encoder.layer.11.output.dense.weight", 1),
        ("bert.encoder.layer.0.attention.self.query.weight", 12),
        ("bert.embeddings.word_embeddings.weight", 13),
        ("model.layers.11.mlp.up_proj.weight", 1),
        ("transformer.h.0.ln_1.weight", 12),
        ("transformer.wte.weight", 13),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", 9),
    ],
)
def test_depth_of_parameters_in_a_model_of_twelve_layers(name, expected):
    assert depth(name, 12) == expected


@pytest.fixture
def trainer(models):
    from transformers import BertForSequenceClassification, Trainer, TrainingArguments

    model = BertForSequenceClassification.from_pretrained(models / "encoder")
    return Trainer(model=model, args=TrainingArguments("unused", learning_rate=1e-3, weight_decay=0.1, use_cpu=True))


def test_each_layer_has_its_rate_and_every_parameter_is_in_one_group(trainer):
    """Top layer, pooler and head: 1e-3; layer 0: 1e-3 * 0.5; embeddings: 1e-3 * 0.25."""
    use_layer_decay(trainer, 0.5)
    optimizer = trainer.create_optimizer()
    assert rates(optimizer) == pytest.approx([1e-3, 5e-4, 2.5e-4])
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = dict(trainer.model.named_parameters())
    assert len(rate_of) == len(names) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, expected in {
        "classifier.weight": 1e-3,
        "bert.encoder.layer.1.output.dense.weight": 1e-3,
        "bert.encoder.layer.0.output.dense.weight": 5e-4,
        "bert.embeddings.word_embeddings.weight": 2.5e-4,
    }.items():
        assert rate_of[id(names[name])] == pytest.approx(expected)


def test_biases_and_norms_have_no_weight_decay(trainer):
    decay_of = {id(p): group["weight_decay"] for group in layer_groups(trainer, 0.9) for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        plain = name.endswith("bias") or "LayerNorm" in name
        assert decay_of[id(parameter)] == (0.0 if plain else 0.1), name


def test_a_decay_of_one_is_one_rate(trainer):
    assert {group["lr"] for group in layer_groups(trainer, 1.0)} == {1e-3}


def test_a_model_without_layers_is_refused():
    model = torch.nn.Linear(2, 2)
    trainer = SimpleNamespace(model=model, args=SimpleNamespace(learning_rate=1.0, weight_decay=0.0))
    with pytest.raises(UserError, match="has no numbered layers"):
        layer_groups(trainer, 0.9)
