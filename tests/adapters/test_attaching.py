"""The mistakes that PEFT passes over: each is one line that says what to change."""

import json

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from safetensors.torch import load_file, save_file
from small_models import build, disturb, logits

from recipes.adapters import BottleneckConfig, attach, check_config, open_adapter
from recipes.core.errors import UserError


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(r=0), "peft: r must be above 0, not 0"),
        (LoraConfig(r=8, lora_alpha=0), "peft: lora_alpha must be above 0, not 0"),
        (PromptTuningConfig(num_virtual_tokens=0, task_type="CAUSAL_LM"), "num_virtual_tokens must be above 0, not 0"),
        (AdaLoraConfig(total_step=10, init_r=2, target_r=4), r"target_r \(4\) must be below init_r \(2\)"),
    ],
    ids=lambda each: getattr(each, "peft_type", None),
)
def test_numbers_that_cannot_be(config, message):
    with pytest.raises(UserError, match=message):
        check_config(config)
    with pytest.raises(UserError, match=message):
        attach(build("llama"), config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(target_modules=["q_prj"]), "has no module 'q_prj'; did you mean 'q_proj'?"),
        (LoraConfig(target_modules=["q_proj", "quary"]), "target_modules: LlamaForCausalLM has no module 'quary'"),
        (LoraConfig(target_modules=r".*\.query"), "has no module '.*\\.query'"),
        (
            LoraConfig(target_modules=["q_proj"], modules_to_save=["scroe"]),
            "modules_to_save: LlamaForCausalLM has no module",
        ),
        (
            IA3Config(target_modules=["k_proj", "down_prj"], feedforward_modules=["down_prj"]),
            "target_modules: LlamaForCausalLM has no module 'down_prj'",
        ),
    ],
    ids=["near", "one of two", "expression", "to save", "ia3"],
)
def test_unknown_modules_are_named_with_those_that_there_are(config, message):
    with pytest.raises(UserError) as refused:
        attach(build("llama"), config)
    line = str(refused.value)
    assert message in line
    if "modules_to_save" not in message:
        assert line.endswith(
            "its linear layers: lm_head, mlp.down_proj, mlp.gate_proj, mlp.up_proj, "
            "self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"
        )


@pytest.mark.parametrize(
    "wanted", ["all-linear", ["q_proj", "v_proj"], r".*layers\.0.*q_proj", ["layers.1.mlp.up_proj"]]
)
def test_modules_that_there_are(wanted):
    assert attach(build("llama"), LoraConfig(target_modules=wanted)).get_nb_trainable_parameters()[0]


def test_what_peft_refuses_is_one_line_too():
    model = build("bert")
    model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="peft: PREFIX_TUNING does not work with gradient checkpointing"):
        attach(model, PrefixTuningConfig(num_virtual_tokens=3, task_type="FEATURE_EXTRACTION"))


def test_a_name_that_a_module_has_is_refused():
    """PEFT would take the module's tensors for another adapter's and leave them out of what is saved."""
    with pytest.raises(UserError, match="adapter name 'encoder': the model has a module of this name"):
        attach(build("bert"), BottleneckConfig(), "encoder")


@pytest.fixture
def saved(tmp_path):
    """`saved("bert")`: the folder of a LoRA adapter in this model, which itself is saved beside it."""

    def save(kind: str, **settings):
        build(kind).save_pretrained(tmp_path / kind)
        base = type(build(kind)).from_pretrained(tmp_path / kind)
        model = attach(base, LoraConfig(**{"target_modules": ["query", "value"], **settings}))
        disturb(model)
        model.save_pretrained(tmp_path / f"{kind}-adapter")
        return tmp_path / f"{kind}-adapter"

    return save


def test_an_adapter_of_another_base_model_is_refused(saved, tmp_path):
    folder = saved("bert")
    saved("roberta")
    other = type(build("roberta")).from_pretrained(tmp_path / "roberta")
    with pytest.raises(UserError, match=r"the adapter was trained on .*/bert, not on .*/roberta; open that model"):
        open_adapter(other, folder)


@pytest.mark.parametrize("to", ["roberta", "bert-wide", "bert-deep"])
def test_tensors_without_a_place_are_refused(to, saved):
    """A base without a name, as one from a config is: PEFT loads what fits and goes on, here to no adapter at all."""
    folder = saved("bert")
    changes = {"bert-wide": {"hidden_size": 64}, "bert-deep": {"num_hidden_layers": 3}}.get(to, {})
    with pytest.raises(UserError, match="the adapter does not fit"):
        open_adapter(build(to.partition("-")[0], **changes), folder)


def test_peft_alone_would_have_said_nothing(saved):
    folder = saved("bert")
    with pytest.warns(UserWarning, match="missing adapter keys"):
        PeftModel.from_pretrained(build("roberta"), folder)


def test_a_tensor_that_is_missing_is_noticed(saved):
    folder = saved("bert")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the adapter does not fit"):
        open_adapter(build("bert"), folder)


@pytest.mark.parametrize("name", ["bert", "google-bert/bert", "/models/bert"])
def test_names_of_the_same_model(name, saved):
    folder = saved("bert")
    model = build("bert")
    model.name_or_path = name
    after = logits(open_adapter(model, folder), "bert")
    assert torch.equal(after, logits(PeftModel.from_pretrained(build("bert"), folder), "bert"))


def test_two_runs_of_one_name_are_two_models(saved):
    folder = saved("bert")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "runs/pretraining/causal/quickstart"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    model = build("bert")
    model.name_or_path = "elsewhere/pretraining/causal/quickstart"
    open_adapter(model, folder)
    model = build("bert")
    model.name_or_path = "runs/finetuning/sft/quickstart"
    with pytest.raises(UserError, match="was trained on runs/pretraining/causal/quickstart"):
        open_adapter(model, folder)
    open_adapter(build("bert"), folder, any_base=True)


def test_the_callers_word_for_the_base(saved):
    folder = saved("bert")
    model = build("bert")
    model.name_or_path = "quite/another"
    with pytest.raises(UserError, match="not on quite/another"):
        open_adapter(model, folder)
    model = build("bert")
    model.name_or_path = "quite/another"
    open_adapter(model, folder, any_base=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no adapter could be opened at"),
        ({"adapter_config.json": '{"peft_type": "LORAA"}'}, "unknown kind of adapter 'LORAA'; did you mean"),
        ({"adapter_config.json": "{}"}, "no adapter could be opened at"),
    ],
)
def test_what_is_no_adapter(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_adapter(build("bert"), tmp_path)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_prompts_are_opened_too(method, tmp_path):
    config = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[method](
        task_type="CAUSAL_LM", num_virtual_tokens=4
    )
    model = attach(build("llama"), config)
    disturb(model)
    before = logits(model, "llama")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(open_adapter(build("llama"), tmp_path), "llama"), before)
    with pytest.raises(UserError, match="Cannot set a prompt learning adapter to trainable"):
        open_adapter(build("llama"), tmp_path, trainable=True)
