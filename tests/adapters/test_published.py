"""Adapters that were published elsewhere: converted by the script, they compute what their authors' code computes."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from accelerate import init_empty_weights
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaForSequenceClassification, T5Config, T5ForConditionalGeneration

from recipes.adapters import open_adapter
from scripts.convert_adapter import main

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FILES = {
    "microsoft-lora": "adapter_lora_roberta_mnli/roberta_base_lora_mnli.bin",
    "t-few-ia3": "adapter_ia3_t03b/t03b_ia3_finish.pt",
    "t5-prompt": "soft_prompts_t5base/t5_1_1_lm100k_base/sst2.npy",
}
BASES = {
    "microsoft-lora": "FacebookAI/roberta-base",
    "t-few-ia3": "bigscience/T0_3B",
    "t5-prompt": "google/t5-v1_1-base",
}
T0_3B = {
    "d_model": 2048,
    "d_ff": 5120,
    "d_kv": 64,
    "num_heads": 32,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """`converted("t-few-ia3")`: the folder that the script makes of the published file."""
    folders = {}

    def folder(kind: str):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("converted") / kind
            main([kind, str(DATA / FILES[kind]), "--base", BASES[kind], "--output_dir", str(folders[kind])])
        return folders[kind]

    return folder


@pytest.mark.real_data
def test_lora_for_mnli_on_roberta(converted):
    """On RoBERTa-base of random weights, for 2 of its 12 layers by hand: x·Wᵀ + b + α/r · x·Aᵀ·Bᵀ with α/r = 2."""
    folder = converted("microsoft-lora")
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (8, 16)
    assert settings["target_modules"] == ["attention.self.query", "attention.self.value"]
    torch.manual_seed(0)
    base = RobertaForSequenceClassification(RobertaConfig(num_labels=3, vocab_size=100, max_position_embeddings=64))
    model = open_adapter(base, folder, any_base=True)
    original = torch.load(DATA / FILES["microsoft-lora"], weights_only=True)
    assert len(original) == 52
    hidden = torch.randn(2, 768)
    for layer in (0, 11):
        for name in ("query", "value"):
            module = model.base_model.model.roberta.encoder.layer[layer].attention.self.get_submodule(name)
            a, b = (original[f"roberta.encoder.layer.{layer}.attention.self.{name}.lora_{x}"] for x in "AB")
            expected = module.base_layer(hidden) + 2 * hidden @ a.T @ b.T
            torch.testing.assert_close(module(hidden), expected)
            assert (module(hidden) - module.base_layer(hidden)).abs().max() > 0.01
    head = model.base_model.model.classifier
    features = torch.randn(2, 5, 768)
    inner = torch.tanh(features[:, 0] @ original["classifier.dense.weight"].T + original["classifier.dense.bias"])
    expected = inner @ original["classifier.out_proj.weight"].T + original["classifier.out_proj.bias"]
    torch.testing.assert_close(head(features), expected)

    ids = torch.randint(4, 100, (2, 9))
    with torch.no_grad():
        before = model(input_ids=ids).logits
        weight = model.base_model.model.roberta.encoder.layer[0].attention.self.query.base_layer.weight.clone()
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=ids).logits, before, atol=1e-4, rtol=1e-4)
    a, b = (original[f"roberta.encoder.layer.0.attention.self.query.lora_{x}"] for x in "AB")
    torch.testing.assert_close(merged.roberta.encoder.layer[0].attention.self.query.weight, weight + 2 * b @ a)


@pytest.mark.real_data
def test_ia3_for_t0_3b_fits_its_size(converted):
    with init_empty_weights():
        base = T5ForConditionalGeneration(T5Config(**T0_3B))
    model = PeftModel.from_pretrained(base, converted("t-few-ia3"), low_cpu_mem_usage=True)
    held = {name for name, p in model.named_parameters() if "ia3_l" in name}
    assert len(held) == len(load_file(converted("t-few-ia3") / "adapter_model.safetensors")) == 192
    assert sum(p.numel() for name, p in model.named_parameters() if "ia3_l" in name) == 24 * (
        2 * 2 * 2048 + 2 * 2048 + 2 * 5120
    )


@pytest.mark.real_data
def test_ia3_computes_what_t_few_computes(converted):
    """One layer of T0-3B's width and random weights, with the file's vectors for the first: T-Few multiplies what k, v and
    wi_1 put out."""
    original = torch.load(DATA / FILES["t-few-ia3"], weights_only=True)
    first = {key: tensor for key, tensor in original.items() if ".block.0." in key}
    assert len(first) == 3 + 5

    def build():
        torch.manual_seed(0)
        config = T5Config(**T0_3B | {"num_layers": 1, "vocab_size": 50, "dropout_rate": 0.0})
        return T5ForConditionalGeneration(config).eval()

    plain = build()
    for key, scale in first.items():
        module = plain.get_submodule(key.removesuffix(".multi_lora_b"))
        module.register_forward_hook(lambda module, args, out, scale=scale: out * scale.flatten())
    folder = converted("t-few-ia3")
    cut = folder.parent / "first-layer"
    cut.mkdir()
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key: tensor for key, tensor in tensors.items() if ".block.0." in key}, cut / "adapter_model.safetensors"
    )
    (cut / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    model = open_adapter(build(), cut, any_base=True)
    batch = {"input_ids": torch.randint(0, 50, (2, 7)), "decoder_input_ids": torch.randint(0, 50, (2, 4))}
    with torch.no_grad():
        expected, base = plain(**batch).logits, build()(**batch).logits
        adapted = model(**batch).logits
        torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=1e-4)
        assert (adapted - base).abs().max() > 0.01 * base.abs().max()
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.real_data
def test_a_soft_prompt_stands_before_the_text(converted):
    folder = converted("t5-prompt")
    prompt = torch.from_numpy(numpy.load(DATA / FILES["t5-prompt"]))
    config = T5Config(
        d_model=768, d_ff=256, num_heads=4, num_layers=1, vocab_size=50, decoder_start_token_id=0, dropout_rate=0.0
    )
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(config).eval()
    ids, answer = torch.randint(0, 50, (2, 7)), torch.randint(0, 50, (2, 4))
    embeddings = torch.cat([prompt.expand(2, -1, -1), base.shared(ids)], dim=1)
    with torch.no_grad():
        expected = base(inputs_embeds=embeddings, decoder_input_ids=answer).logits
        adapted = open_adapter(base, folder, any_base=True)(input_ids=ids, decoder_input_ids=answer).logits
    torch.testing.assert_close(adapted, expected)


# ---------------------------------------------------------------------------------------- the script, without real data
def test_a_small_file_of_the_same_form(tmp_path, capsys):
    name = "roberta.encoder.layer.0.attention.self.query"
    torch.save({f"{name}.lora_A": torch.ones(2, 4), f"{name}.lora_B": torch.ones(4, 2)}, tmp_path / "lora.bin")
    main(["microsoft-lora", str(tmp_path / "lora.bin"), "--base", "x", "--output_dir", str(tmp_path / "out")])
    assert "LORA for x, 2 tensors, 16 numbers" in capsys.readouterr().out
    assert set(load_file(tmp_path / "out" / "adapter_model.safetensors")) == {
        f"base_model.model.{name}.lora_{x}.weight" for x in "AB"
    }


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("microsoft-lora", None, "no such file"),
        ("microsoft-lora", b"hello", "no tensors could be read"),
        ("microsoft-lora", {"x": Harmful()}, "no tensors could be read"),
        ("microsoft-lora", {"a.b": torch.ones(2)}, "not a file of microsoft/LoRA: no lora_A and lora_B in it"),
        ("microsoft-lora", {"q.lora_A": torch.ones(2, 4), "v.lora_A": torch.ones(3, 4)}, "several ranks in it"),
        ("microsoft-lora", [torch.ones(2)], "holds something else than tensors by their names"),
        ("t-few-ia3", {"k.lora_A": torch.ones(2, 4)}, "it holds k.lora_A of shape (2, 4)"),
        ("t5-prompt", {"a": torch.ones(3)}, "not a soft prompt"),
    ],
)
def test_other_files_are_refused_in_one_line(kind, content, message, tmp_path, capsys):
    file = tmp_path / "file.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(SystemExit) as stop:
        main([kind, str(file), "--base", "x", "--output_dir", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert "executed" not in captured.out
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_touched(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["t5-prompt", "x.npy", "--base", "x", "--output_dir", str(tmp_path)])
    assert "is there already; name a new folder" in capsys.readouterr().err
