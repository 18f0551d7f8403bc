"""nanoGPT's anchor: its split of Tiny Shakespeare, its settings, and rows that are one document from end to end."""

import json
import sys

import pytest

from recipes.core.config import nest, read_yaml

NANOGPT = {  # config/train_shakespeare_char.py with the flags of its README for a CPU
    "max_length": 65,  # a block of 64 and the token after it, which is the last one's label
    "max_steps": 2000,
    "per_device_train_batch_size": 12,
    "learning_rate": 1e-3,
    "lr_scheduler_kwargs": {"min_lr": 1e-4},
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "adam_beta2": 0.99,
    "max_grad_norm": 1.0,
}
MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 65, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


def test_the_settings_are_nanogpts(root):
    asked = nest(read_yaml(root / "configs/pretraining/causal/shakespeare-char.yaml")[0])
    assert {key: asked[key] for key in NANOGPT} == NANOGPT
    assert {key: asked["model_config"][key] for key in MODEL} == MODEL
    assert "gradient_accumulation_steps" not in asked


@pytest.mark.real_data
def test_the_split_is_nanogpts(root, tmp_path, monkeypatch):
    from scripts import prepare_shakespeare

    data = root.parent / "shared" / "data"
    monkeypatch.setattr(sys, "argv", ["prepare", "--data", str(data), "--output_dir", str(tmp_path)])
    prepare_shakespeare.main()
    texts = {split: json.loads((tmp_path / f"{split}.jsonl").read_text())["text"] for split in ("train", "test")}
    assert (len(texts["train"]), len(texts["test"])) == (1_003_854, 111_540), "the tokens that its README counts"
    assert len(set(texts["train"])) == 65
    whole = (data / "tinyshakespeare" / "tiny-shakespeare.txt").read_text()
    assert texts["train"] + texts["test"] == whole


def test_missing_data_is_one_line(tmp_path, monkeypatch, capsys):
    from scripts import prepare_shakespeare

    argv = ["prepare", "--data", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        prepare_shakespeare.main()
    assert stopped.value.code == 2
    assert "no file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
