"""Each of our methods is a method of PEFT in everything PEFT does with one, on each architecture it is for."""

import copy
import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from small_models import MODELS, TASK_TYPES, build, disturb, inputs_of, logits, loss_of

from recipes.adapters import (
    AdapterFusionConfig,
    BitFitConfig,
    BottleneckConfig,
    PTuningTemplateConfig,
    attach,
    open_adapter,
)
from recipes.core.errors import UserError

ENCODER_DECODERS = ("t5", "bart")
WITHOUT_BIASES = ("llama", "llama-classifier", "qwen3", "t5")
CONFIGS = {
    "bitfit": lambda **kw: BitFitConfig(**kw),
    "houlsby": lambda **kw: BottleneckConfig(reduction_factor=4, **kw),
    "pfeiffer": lambda **kw: BottleneckConfig(placement="pfeiffer", reduction_factor=4, **kw),
    "invertible": lambda **kw: BottleneckConfig(placement="pfeiffer", reduction_factor=2, invertible=True, **kw),
    "p_tuning_template": lambda **kw: PTuningTemplateConfig(num_pseudo_tokens=3, **kw),
    "adapter_fusion": lambda **kw: AdapterFusionConfig(**kw),
}
CASES = [
    (method, kind)
    for method in CONFIGS
    for kind in MODELS
    if not (method == "bitfit" and kind in WITHOUT_BIASES)
    and not (method in ("invertible", "p_tuning_template") and kind in ENCODER_DECODERS)
]


def task_type(kind: str) -> str | None:
    return "SEQ_CLS" if kind.endswith("-classifier") else TASK_TYPES.get(kind)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """`trained(kind)`: the folders of two Pfeiffer adapters in this model, for a fusion."""
    made = {}

    def folders(kind: str) -> dict[str, str]:
        if kind not in made:
            made[kind] = {}
            for seed, name in enumerate(("one", "two")):
                torch.manual_seed(seed)
                model = attach(build(kind), CONFIGS["pfeiffer"](task_type=task_type(kind)))
                disturb(model, seed)
                folder = tmp_path_factory.mktemp(f"{kind}-{name}")
                model.save_pretrained(folder)
                made[kind][name] = str(folder)
        return made[kind]

    return folders


@pytest.fixture
def config_of(trained):
    def config(method: str, kind: str):
        more = {"adapters": trained(kind)} if method == "adapter_fusion" else {}
        return CONFIGS[method](task_type=task_type(kind), **more)

    return config


def adapted_logits(method: str, model, kind: str) -> torch.Tensor:
    """Logits, of an input with pseudo tokens where the method learns these."""
    if method != "p_tuning_template":
        return logits(model, kind)
    batch = inputs_of(kind)
    batch["input_ids"][:, [0, 3, 4]] = MODELS[kind][2]["vocab_size"] + torch.arange(3)
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_an_adapter_is_saved_and_opened_and_switched_off(method, kind, config_of, tmp_path):
    base = build(kind)
    before = logits(base, kind)
    model = attach(base, config_of(method, kind))
    disturb(model)
    after = adapted_logits(method, model, kind)
    if method != "p_tuning_template":
        assert (after - before).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(logits(model, kind), before)
    assert torch.equal(adapted_logits(method, model, kind), after)

    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").exists()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    trained, _ = model.get_nb_trainable_parameters()
    frozen = sum(tensor.numel() for key, tensor in tensors.items() if "_blocks.adapters." in key)
    assert sum(tensor.numel() for tensor in tensors.values()) - frozen == trained
    assert not any("default" in key for key in tensors)
    assert (
        PeftConfig.from_pretrained(tmp_path).peft_type.value
        == json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"]
    )

    opened = PeftModel.from_pretrained(build(kind), tmp_path)
    assert torch.equal(adapted_logits(method, opened, kind), after)
    assert not any(parameter.requires_grad for parameter in opened.parameters())
    other = open_adapter(build(kind), tmp_path, adapter_name="another", trainable=True)
    assert torch.equal(adapted_logits(method, other, kind), after)
    assert other.get_nb_trainable_parameters()[0] == trained


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_gradients_reach_the_adapter_alone_and_every_part_of_it(method, kind, config_of):
    model = attach(build(kind), config_of(method, kind))
    disturb(model)
    model.train()
    batch = inputs_of(kind)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    if method == "p_tuning_template":
        batch["input_ids"][:, [0, 3, 4]] = MODELS[kind][2]["vocab_size"] + torch.arange(3)
        labels = torch.tensor([0, 1]) if kind.endswith("-classifier") else inputs_of(kind)["input_ids"]
        model(**batch, labels=labels).loss.backward()
    else:
        loss_of(model, kind).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    missing = [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum()]
    # a key's bias adds the same to all of a query's scores; a model for classes reads no output embedding
    assert not [
        name for name in missing if not name.endswith((".key.bitfit_bias.default", "k_proj.bitfit_bias.default"))
    ]
    torch.optim.SGD(trained.values(), lr=0.1).step()
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


@pytest.mark.parametrize(("method", "kind"), [case for case in CASES if case[1] in ("bert", "gpt2", "qwen2", "bart")])
def test_several_adapters_live_side_by_side(method, kind, config_of, tmp_path):
    model = attach(build(kind), config_of(method, kind), "first")
    disturb(model, 1)
    first = adapted_logits(method, model, kind)
    model.add_adapter("second", config_of(method, kind))
    assert torch.equal(adapted_logits(method, model, kind), first)  # the new one is not active
    assert not any(p.requires_grad for name, p in model.named_parameters() if "second" in name)
    model.set_adapter("second")
    assert not any(p.requires_grad for name, p in model.named_parameters() if "first" in name)
    disturb(model, 2)
    second = adapted_logits(method, model, kind)
    assert (second - first).abs().max() > 1e-4
    model.set_adapter("first")
    assert torch.equal(adapted_logits(method, model, kind), first)

    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(build(kind), tmp_path / "first", adapter_name="first")
    opened.load_adapter(tmp_path / "second", "second")
    assert torch.equal(adapted_logits(method, opened, kind), first)
    opened.set_adapter("second")
    assert torch.equal(adapted_logits(method, opened, kind), second)
    opened.delete_adapter("second")
    assert not any("second" in name for name, _ in opened.named_parameters())
    assert torch.equal(adapted_logits(method, opened, kind), first)


@pytest.mark.parametrize(("method", "kind"), [case for case in CASES if case[1] in ("bert", "llama", "t5", "roberta")])
def test_unloading_gives_the_base_back(method, kind, config_of):
    base = build(kind)
    names, before = list(base.state_dict()), logits(base, kind)
    model = attach(base, config_of(method, kind))
    disturb(model)
    plain = model.unload()
    assert list(plain.state_dict()) == names
    assert torch.equal(logits(plain, kind), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())


@pytest.mark.parametrize("method", [method for method in CONFIGS if method != "bitfit"])
def test_what_cannot_be_merged_is_refused_with_the_reason(method, config_of):
    model = attach(build("bert"), config_of(method, "bert"))
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match=r"cannot be merged into the base: its (non-linearity|prompt)"):
            merge()


@pytest.mark.parametrize("method", CONFIGS)
def test_a_copy_of_the_model_is_a_model_of_its_own(method, config_of):
    model = attach(build("bert"), config_of(method, "bert"))
    disturb(model, 1)
    before = adapted_logits(method, model, "bert")
    twin = copy.deepcopy(model)
    disturb(twin, 2)
    assert torch.equal(adapted_logits(method, model, "bert"), before)
    assert (adapted_logits(method, twin, "bert") - before).abs().max() > 1e-4


@pytest.mark.parametrize("method", CONFIGS)
def test_gradient_checkpointing_changes_no_gradient(method, config_of):
    gradients = []
    for checkpointing in (False, True):
        base = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        torch.manual_seed(0)
        model = attach(base, config_of(method, "bert"))
        disturb(model)
        model.train()
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = inputs_of("bert")
        if method == "p_tuning_template":
            batch["input_ids"][:, 2] = 61
        model(**batch, labels=inputs_of("bert")["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("method", ["bitfit", "houlsby", "pfeiffer", "p_tuning_template"])
def test_peft_itself_attaches_them(method):
    """Without our `attach`, as any code does that knows PEFT alone."""
    model = get_peft_model(build("gpt2"), CONFIGS[method](task_type="CAUSAL_LM"))
    trained, total = model.get_nb_trainable_parameters()
    assert 0 < trained < total
    status = model.get_model_status()
    assert status.enabled is True
    assert status.available_adapters == ["default"]


@pytest.mark.parametrize(
    ("method", "kind"),
    [case for case in CASES if case[1] in TASK_TYPES and case[0] in ("bitfit", "houlsby", "pfeiffer")],
)
def test_generation_with_a_cache_equals_generation_without(method, kind, config_of):
    model = attach(build(kind), config_of(method, kind))
    disturb(model, size=0.3)
    ids = inputs_of(kind)["input_ids"]
    mask = torch.ones_like(ids)
    made = [
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0
        )
        for cache in (True, False)
    ]
    assert torch.equal(*made)
