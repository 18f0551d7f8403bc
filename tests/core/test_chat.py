"""The chat: greedy where that is asked, whatever the model's own settings are, and no flag that is ignored."""

import argparse

import pytest

from recipes.core.errors import UserError
from scripts.chat import talk


def options(model, **more) -> argparse.Namespace:
    plain = {"system": None, "temperature": 0.0, "max_new_tokens": 8, "keep_history": False}
    return argparse.Namespace(model=str(model), **{**plain, **more})


def said(monkeypatch, capsys, asked: argparse.Namespace) -> str:
    lines = iter(["one two", "one two", ""])

    def line(prompt: str) -> str:
        text = next(lines)
        if not text:
            raise EOFError
        return text

    monkeypatch.setattr("builtins.input", line)
    capsys.readouterr()
    talk(asked)
    return capsys.readouterr().out


def test_temperature_zero_is_greedy_for_a_model_that_samples_by_itself(tiny, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny / "tokenizer").save_pretrained(tmp_path)
    assert said(monkeypatch, capsys, options(tmp_path)) == said(monkeypatch, capsys, options(tmp_path))


def test_what_needs_a_chat_template_is_refused_without_one(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tiny / "model").save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no chat template and continues text: leave out --system"):
        talk(options(tmp_path, system="be brief"))
