"""BitFit: bias terms and nothing else, as many as in the paper, and the same training as without PEFT."""

import pytest
import torch
from accelerate import init_empty_weights
from small_models import MODELS, build, disturb, inputs_of, logits
from transformers import BertConfig, BertModel

from recipes.adapters import BitFitConfig, attach
from recipes.adapters.bitfit import BitFitLayer
from recipes.core.errors import UserError

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def trained_of_bert(config: BertConfig, bias_terms: str = "all") -> tuple[int, int]:
    with init_empty_weights():
        model = attach(BertModel(config), BitFitConfig(bias_terms=bias_terms))
    return model.get_nb_trainable_parameters()[0], sum(p.numel() for p in model.unload().parameters())


@pytest.mark.parametrize(("size", "hidden", "middle", "layers"), [("base", 768, 3072, 12), ("large", 1024, 4096, 24)])
def test_the_share_of_bert_is_the_papers(size, hidden, middle, layers):
    config = BertConfig(**(LARGE if size == "large" else {}))
    trained, total = trained_of_bert(config)
    # query, key, value, output; both of the MLP; two layer norms; and the embeddings' layer norm and the pooler
    assert trained == layers * (4 * hidden + middle + hidden + 2 * hidden) + 2 * hidden
    assert total == {"base": 109_482_240, "large": 335_141_888}[size]
    share = 100 * trained / total
    assert {"base": 0.090 <= share < 0.095, "large": 0.080 <= share < 0.082}[size], share


@pytest.mark.parametrize(("config", "share"), [({}, 0.042), (LARGE, 0.037)])
def test_the_papers_subset_is_half_of_it(config, share):
    """Ben Zaken et al. give 0.04 %: the query and the MLP's hidden layer."""
    trained, total = trained_of_bert(BertConfig(**config), "query_and_intermediate")
    assert 100 * trained / total == pytest.approx(share, abs=5e-4)


def test_training_is_that_of_the_models_own_biases():
    """Against the same model with requires_grad on its biases: equal losses, equal biases at the end, to the last bit."""
    plain, adapted = build("bert-classifier"), build("bert-classifier")
    for name, parameter in plain.named_parameters():
        parameter.requires_grad = name.endswith("bias") or name.startswith("classifier")
    adapted = attach(adapted, BitFitConfig(task_type="SEQ_CLS"))
    batch = inputs_of("bert-classifier") | {"labels": torch.tensor([0, 2])}
    losses = []
    for model in (plain, adapted):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        losses.append([])
        for _ in range(5):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == losses[1]
    merged = adapted.merge_and_unload().state_dict()
    assert list(merged) == list(plain.state_dict())
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.state_dict().items())


def test_biases_move_and_no_weight_does():
    base = build("roberta-classifier")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = attach(base, BitFitConfig(task_type="SEQ_CLS"))
    disturb(model)
    after = model.merge_and_unload().state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.endswith("bias") or name.startswith("classifier")}


def test_merging_and_unmerging_give_the_same_numbers_back():
    base = build("gpt2")
    before = logits(base, "gpt2")
    model = attach(base, BitFitConfig(task_type="CAUSAL_LM"))
    disturb(model)
    adapted = logits(model, "gpt2")
    model.merge_adapter(safe_merge=True)
    assert torch.equal(logits(model, "gpt2"), adapted)
    model.unmerge_adapter()
    assert torch.equal(logits(model, "gpt2"), adapted)
    with model.disable_adapter():
        assert torch.equal(logits(model, "gpt2"), before)
    model.merge_adapter()
    with model.disable_adapter():  # switched off while merged: PEFT's layers unmerge
        assert torch.equal(logits(model, "gpt2"), before)
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged, "gpt2"), adapted)
    assert not any(isinstance(module, BitFitLayer) for module in merged.modules())


def test_an_adapter_beside_a_merged_one_begins_at_the_base():
    base = build("gpt2")
    before = logits(base, "gpt2")
    model = attach(base, BitFitConfig(task_type="CAUSAL_LM"))
    disturb(model)
    model.merge_adapter()
    model.add_adapter("second", BitFitConfig(task_type="CAUSAL_LM"))
    model.set_adapter("second")
    assert torch.equal(logits(model, "gpt2"), before)


def test_two_biases_at_once_are_refused():
    model = attach(build("gpt2"), BitFitConfig(task_type="CAUSAL_LM"))
    model.add_adapter("second", BitFitConfig(task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="a bias has one value"):
        logits(model, "gpt2")
    with pytest.raises(UserError, match="a bias has one value"):
        model.merge_adapter()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "t5"])
def test_a_model_without_biases_is_refused_with_advice(kind):
    with pytest.raises(
        UserError, match=f"{MODELS[kind][0].__name__} has no bias terms .* take ln_tuning, ia3 or lora"
    ):
        attach(build(kind), BitFitConfig())


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("gpt2", {"bias_terms": "query_and_intermediate"}, "GPT2LMHeadModel has no query with a bias of its own"),
        (
            "qwen2",
            {"bias_terms": "query_and_intermediate"},
            "Qwen2ForCausalLM has no hidden layer of an MLP with a bias",
        ),
        ("bert", {"target_modules": ["query", "quary"]}, "no module 'quary' with a bias; did you mean 'query'"),
        ("bert", {"target_modules": r".*\.quary"}, "no module '.*.quary' with a bias"),
    ],
)
def test_biases_that_are_not_there_are_refused(kind, config, message):
    with pytest.raises(UserError) as refused:
        attach(build(kind), BitFitConfig(**config))
    assert message in str(refused.value).replace("\\", "")


def test_named_modules_alone():
    model = attach(build("bert"), BitFitConfig(target_modules=["query", "output.dense"]))
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(names) == 2 * 3  # in each of two layers the query and both blocks' output
    whole = attach(build("bert"), BitFitConfig(target_modules=r".*layer\.1\..*query"))
    assert sum(p.requires_grad for p in whole.parameters()) == 1


def test_a_new_head_is_trained_whole_and_not_as_biases():
    model = attach(build("roberta-classifier"), BitFitConfig(task_type="SEQ_CLS"))
    head = {name for name, p in model.named_parameters() if p.requires_grad and ".classifier." in name}
    assert len(head) == 4
    assert not any("bitfit" in name for name in head)
    assert isinstance(model.base_model.model.get_submodule("roberta.encoder.layer.0.output.dense"), BitFitLayer)
