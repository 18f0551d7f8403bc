"""The exported model opens without PEFT and says what base and adapter say; what cannot be merged is refused."""

import json
import subprocess
import sys

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
)
from small_models import MODELS, build, disturb, inputs_of, logits
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from recipes.adapters import BitFitConfig, BottleneckConfig, PTuningTemplateConfig, attach
from recipes.core.errors import UserError
from scripts.export import compare, main

MERGED = {
    "lora": ("llama", LoraConfig, {"task_type": "CAUSAL_LM"}),
    "rslora": ("llama", LoraConfig, {"task_type": "CAUSAL_LM", "use_rslora": True}),
    "dora": ("llama", LoraConfig, {"task_type": "CAUSAL_LM", "use_dora": True, "target_modules": "all-linear"}),
    "lora on a classifier": ("bert-classifier", LoraConfig, {"task_type": "SEQ_CLS"}),
    "lora on a seq2seq model": ("t5", LoraConfig, {"task_type": "SEQ_2_SEQ_LM"}),
    "lora without a task type": ("bert", LoraConfig, {"target_modules": ["query", "value"]}),
    "adalora": ("llama", AdaLoraConfig, {"task_type": "CAUSAL_LM", "total_step": 10}),
    "ia3": ("t5", IA3Config, {"task_type": "SEQ_2_SEQ_LM"}),
    "bitfit": ("gpt2", BitFitConfig, {"task_type": "CAUSAL_LM"}),
    "bitfit on a classifier": ("roberta-classifier", BitFitConfig, {"task_type": "SEQ_CLS"}),
    "layer norms": ("llama", LNTuningConfig, {"task_type": "CAUSAL_LM"}),
}
AUTO = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}


def auto(kind: str):
    return AutoModelForSequenceClassification if kind.endswith("classifier") else AUTO.get(kind, AutoModelForCausalLM)


@pytest.fixture
def make(tmp_path):
    """`make("llama", LoraConfig(…))`: folders of a base model and of a trained adapter of it."""

    def folders(kind, config, **changes):
        build(kind, **changes).save_pretrained(tmp_path / "base")
        model = attach(auto(kind).from_pretrained(tmp_path / "base"), config)
        disturb(model)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "base", tmp_path / "adapter", logits(model.eval(), kind)

    return folders


def run(*words) -> None:
    main([str(word) for word in words])


def refused(capsys, *words) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    return error


@pytest.mark.parametrize("case", MERGED)
def test_the_exported_model_says_the_same(case, make, tmp_path, capsys):
    kind, config, settings = MERGED[case]
    _, adapter, before = make(kind, config(**settings))
    run(adapter, "--output_dir", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "merged model: largest difference of a logit" in shown
    assert "saved model (float32): largest difference of a logit" in shown
    opened = auto(kind).from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(opened, kind), before, atol=1e-5, rtol=1e-4)
    assert type(opened) is MODELS[kind][0]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names and not any("adapter" in name for name in names)


def test_labels_go_with_the_head(make, tmp_path):
    base, adapter, _ = make("bert-classifier", LoraConfig(task_type="SEQ_CLS"))
    labels = ["negative", "neutral", "positive"]
    settings = json.loads((base / "config.json").read_text())
    settings |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    (adapter / "config.json").write_text(json.dumps(settings))
    plain = json.loads((base / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        plain.pop(key, None)
    (base / "config.json").write_text(json.dumps(plain))  # a base with two labels, as any has that was not fine-tuned
    run(adapter, "--output_dir", tmp_path / "out")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert opened.config.id2label == dict(enumerate(labels))


def test_the_number_of_labels_is_read_from_the_head(make, tmp_path):
    base, adapter, before = make("roberta-classifier", LoraConfig(task_type="SEQ_CLS"), num_labels=5)
    plain = json.loads((base / "config.json").read_text())
    for key in ("id2label", "label2id", "num_labels"):
        plain.pop(key, None)
    (base / "config.json").write_text(json.dumps(plain))
    run(adapter, "--output_dir", tmp_path / "out")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(opened, "roberta-classifier"), before, atol=1e-5, rtol=1e-4)


def test_bfloat16_is_measured_too(make, tmp_path, capsys):
    _, adapter, before = make("llama", LoraConfig(task_type="CAUSAL_LM"))
    run(adapter, "--output_dir", tmp_path / "out", "--dtype", "bfloat16")
    assert "saved model (bfloat16)" in capsys.readouterr().out
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.dtype == torch.bfloat16
    error = refused(capsys, adapter, "--output_dir", tmp_path / "exact", "--dtype", "bfloat16", "--tolerance", "1e-6")
    assert "saved model (bfloat16): largest difference" in error and "(tolerance 1e-06)" in error
    assert not [path for path in tmp_path.iterdir() if "exact" in path.name]
    assert before.abs().max() > 0


def test_the_tokenizer_goes_with_it(tiny, tmp_path):
    model = attach(AutoModelForCausalLM.from_pretrained(tiny / "model"), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    run(tmp_path / "adapter", "--output_dir", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template
    assert len(tokenizer) == 300


def test_a_scorer_whose_base_knows_no_padding(tiny, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(tiny / "model", num_labels=1)
    base.config.pad_token_id = None
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    attach(base, LoraConfig(task_type="SEQ_CLS")).save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "adapter")
    run(tmp_path / "adapter", "--output_dir", tmp_path / "out")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert opened.config.pad_token_id == tokenizer.pad_token_id


CANNOT = {
    "prompt": (PromptTuningConfig, {"num_virtual_tokens": 3}, "its prompt is part of the input"),
    "prefix": (PrefixTuningConfig, {"num_virtual_tokens": 3}, "its prompt is part of the input"),
    "p-tuning": (PTuningTemplateConfig, {"num_pseudo_tokens": 3}, "its prompt is part of the input"),
    "bottleneck": (BottleneckConfig, {}, "its non-linearity stands after a layer of the base"),
}


@pytest.mark.parametrize("method", CANNOT)
def test_what_cannot_be_merged_is_refused_with_the_reason(method, make, tmp_path, capsys):
    config, settings, reason = CANNOT[method]
    _, adapter, _ = make("llama", config(task_type="CAUSAL_LM", **settings))
    error = refused(capsys, adapter, "--output_dir", tmp_path / "out")
    assert "adapter cannot be merged: " + reason in error
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_is_refused_and_the_full_one_taken(make, tmp_path, capsys):
    """QLoRA: the adapter names a base that was stored in 4 bits; --base names the weights that it was made from."""
    base, adapter, before = make("llama", LoraConfig(task_type="CAUSAL_LM"))
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    settings = json.loads((base / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(settings))
    adapter_settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(adapter_settings | {"base_model_name_or_path": str(quantised)})
    )
    error = refused(capsys, adapter, "--output_dir", tmp_path / "out")
    assert "is stored quantised; merging would round the adapter away: name the model it was quantised from" in error
    run(adapter, "--output_dir", tmp_path / "out", "--base", base)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(opened, "llama"), before, atol=1e-5, rtol=1e-4)


def test_qlora_is_merged_into_the_weights_it_was_quantised_from(tmp_path):
    """An adapter trained on a base opened in 4 bits: the merged model is full-precision base and adapter."""
    from transformers import BitsAndBytesConfig

    build("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantised)
    model = attach(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    run(tmp_path / "adapter", "--output_dir", tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    full = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(opened, "llama"), logits(full, "llama"), atol=1e-5, rtol=1e-4)
    rounded = (logits(opened, "llama") - logits(model, "llama")).abs().max()
    assert rounded > 1e-3  # the base's own rounding, which the adapter was trained on and the export is rid of


def test_an_adapter_of_another_base_is_refused(make, tmp_path, capsys):
    _, adapter, _ = make("llama", LoraConfig(task_type="CAUSAL_LM"))
    build("llama", hidden_size=64).save_pretrained(tmp_path / "other")
    error = refused(capsys, adapter, "--output_dir", tmp_path / "out", "--base", tmp_path / "other")
    assert "the adapter does not fit LlamaForCausalLM; it was trained on" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no adapter could be opened at nowhere"),
        (["adapter", "--base", "./nowhere"], "no base model could be opened at ./nowhere"),
    ],
)
def test_what_is_not_there(words, message, make, tmp_path, monkeypatch, capsys):
    make("llama", LoraConfig(task_type="CAUSAL_LM"))
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words, "--output_dir", "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_touched(make, tmp_path, capsys):
    _, adapter, _ = make("llama", LoraConfig(task_type="CAUSAL_LM"))
    assert "is there already; name a new folder" in refused(capsys, adapter, "--output_dir", adapter)


def test_a_difference_that_is_no_number_is_not_within_the_tolerance():
    good = torch.ones(2)
    compare("x", good, good, 0.0)
    for bad in (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.inf])):
        with pytest.raises(UserError):
            compare("x", good, bad, 1.0)


def test_the_program_by_itself(make, tmp_path, root):
    _, adapter, _ = make("llama", LoraConfig(task_type="CAUSAL_LM"))
    command = [sys.executable, "-m", "scripts.export", str(adapter), "--output_dir", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    shown = [line.partition(":")[0] for line in ran.stdout.splitlines() if not line.startswith("[")]  # DeepSpeed's log
    assert shown == ["note", "merged model", "saved model (float32)", str(tmp_path / "out")]
    with torch.no_grad():
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")(**inputs_of("llama")).logits.isfinite().all()
