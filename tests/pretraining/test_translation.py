"""BART for translation: what the two stages train, what the new encoder replaces, and a model that comes back whole."""

import json

import pytest

from recipes.pretraining.source_encoder import BartForTranslation

SOURCE_VOCABULARY = 50
BART = {
    "vocab_size": 300,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "init_std": 0.2,
}


@pytest.fixture
def bart():
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    return BartForConditionalGeneration(BartConfig(**BART))


@pytest.fixture
def translator(bart) -> BartForTranslation:
    return BartForTranslation.from_bart(
        bart, {"vocab_size": SOURCE_VOCABULARY, "encoder_layers": 1, "pad_token_id": 0}
    )


def moved(model, steps: int = 2) -> set[str]:
    """The names of the parameters that a few optimizer steps change."""
    import torch

    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        source = torch.randint(1, SOURCE_VOCABULARY, (8, 20), generator=generator)
        target = torch.randint(5, 300, (8, 60), generator=generator)
        model(input_ids=source, attention_mask=torch.ones_like(source), labels=target).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def test_stage_1_moves_the_new_encoder_the_positions_and_one_input_projection(translator):
    translator.train_in_stage(1)
    changed = moved(translator)
    new = {name for name, _ in translator.named_parameters() if name.startswith("model.encoder.source.")}
    assert len(new) > 15
    # The query-key part of attention does not depend on the key's bias: its gradient is zero up to rounding.
    assert changed - new == {
        "model.encoder.bart.embed_positions.weight",
        "model.decoder.embed_positions.weight",
        "model.encoder.bart.layers.0.self_attn.q_proj.weight",
        "model.encoder.bart.layers.0.self_attn.k_proj.weight",
        "model.encoder.bart.layers.0.self_attn.v_proj.weight",
    }
    assert new - changed <= {name for name in new if name.endswith("k_proj.bias")}


def test_stage_2_moves_everything(translator):
    translator.train_in_stage(1)
    translator.train_in_stage(2)
    everything = {name for name, _ in translator.named_parameters()}
    assert {name for name in everything - moved(translator) if not name.endswith("k_proj.bias")} == set()


def test_everything_but_the_new_encoder_is_barts(translator, bart):
    import torch

    ours = translator.state_dict()
    for name, value in bart.state_dict().items():
        renamed = name.replace("model.encoder.", "model.encoder.bart.")
        assert torch.equal(ours[renamed], value), name
    assert len(list(translator.model.encoder.source.layers)) == 1
    assert translator.model.encoder.source.embed_tokens.num_embeddings == SOURCE_VOCABULARY
    tied = (translator.model.decoder.embed_tokens, translator.lm_head, translator.model.encoder.bart.embed_tokens)
    assert all(module.weight is translator.model.shared.weight for module in tied)
    own = sum(value.numel() for value in translator.model.encoder.source.parameters())
    assert sum(value.numel() for value in translator.parameters()) == own + sum(
        value.numel() for value in bart.parameters()
    )


def test_the_new_encoder_stands_where_embeddings_stood(translator, bart):
    """BART given the source encoder's states as embeddings says the same."""
    import torch

    translator.eval()
    bart.eval()
    source, target = torch.randint(1, SOURCE_VOCABULARY, (2, 9)), torch.randint(5, 300, (2, 7))
    mask = torch.ones_like(source)
    mask[1, 6:] = 0
    with torch.inference_mode():
        states = translator.model.encoder.source(source, attention_mask=mask).last_hidden_state
        expected = bart(inputs_embeds=states, attention_mask=mask, labels=target).loss
        assert translator(input_ids=source, attention_mask=mask, labels=target).loss == expected
        written = translator.generate(source, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=1)
        alone = translator.generate(source[1:, :6], max_new_tokens=5, do_sample=False, num_beams=1)
    assert written[1].tolist() == alone[0].tolist(), "padding changes nothing"


def test_it_comes_back_whole(translator, tmp_path):
    import torch

    with torch.no_grad():
        for value in translator.parameters():
            value.add_(torch.randn_like(value) * 0.01)
    translator.save_pretrained(tmp_path)
    again = BartForTranslation.from_pretrained(tmp_path)
    for (name, value), (other, back) in zip(translator.named_parameters(), again.named_parameters()):
        assert name == other
        assert torch.equal(value, back)
    assert again.lm_head.weight is again.model.shared.weight


def test_a_page_and_a_score_say_what_was_written(bart_tokenizer):
    from datasets import Dataset

    from recipes.pretraining.translated import PairDataset, score

    pairs = Dataset.from_dict({"source": ["een vos", "twee | drie"], "target": ["a fox", "two | three"]})
    rows = PairDataset(pairs, bart_tokenizer, bart_tokenizer, 16)
    assert rows[0]["labels"] == bart_tokenizer("a fox")["input_ids"]
    assert rows.lengths.tolist() == [len(rows[row]["input_ids"]) + len(rows[row]["labels"]) for row in range(2)]
    assert "| een vos | a fox | a dog |\n| twee \\| drie |" in rows.page(["a dog", "two"])
    assert score(["a fox", "two | three"], pairs["target"])["chrf"] == pytest.approx(100)
    assert score(["xyz", "qqq"], pairs["target"])["chrf"] < 5


# --------------------------------------------------------------------------------------------------------------- recipe
@pytest.fixture
def config(bart, tiny, tmp_path) -> dict:
    """Stage 1 of a small BART, from a folder that also holds a tokenizer."""
    from transformers import AutoTokenizer

    bart.save_pretrained(tmp_path / "bart")
    AutoTokenizer.from_pretrained(tiny / "bart").save_pretrained(tmp_path / "bart")
    words = ["one", "two", "three", "four", "five", "six"]
    rows = [{"source": f"{a[::-1]} {b[::-1]}", "target": f"{a} {b}"} for a in words for b in words]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(tmp_path / "bart"),
        "source_tokenizer_name_or_path": str(tiny / "bart"),
        "source_encoder_layers": 1,
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "test_split_size": 0.2,
        "max_length": 16,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_steps": 2,
        "bf16": False,
        "report_to": "none",
        "output_dir": str(tmp_path / "stage-1"),
    }


def run(main, tmp_path, config: dict) -> dict:
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    main("pretraining/translation")(["--config", str(tmp_path / "config.yaml")])
    folder = tmp_path / config["output_dir"]
    return json.loads((folder / "result.json").read_text())


def test_stage_2_goes_on_from_stage_1(config, main, tmp_path):
    first = run(main, tmp_path, config)
    assert first["trained_parameters"] < first["parameters"]
    stage_2 = config | {
        "stage": 2,
        "model_name_or_path": config["output_dir"],
        "output_dir": str(tmp_path / "stage-2"),
    }
    del stage_2["source_tokenizer_name_or_path"]
    second = run(main, tmp_path, stage_2)
    assert second["trained_parameters"] == second["parameters"] == first["parameters"]
    assert second["baselines"]["chrf"] == pytest.approx(first["metrics"]["chrf"]), "it begins where stage 1 ended"
    assert second["baselines"]["chrf_of_the_source"] == first["baselines"]["chrf_of_the_source"]
    assert (tmp_path / "stage-2" / "samples.md").exists()
    assert (tmp_path / "stage-2" / "source_tokenizer").is_dir()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": 2, "source_tokenizer_name_or_path": None}, "has no source encoder yet"),
        ({"source_tokenizer_name_or_path": None}, "name the source language's tokenizer in stage 1"),
        ({"source_tokenizer_name_or_path": "./nowhere"}, "no folder './nowhere'"),
        ({"stage": 3}, "must be one of 1, 2"),
    ],
)
def test_a_mistake_is_one_line(settings, message, config, main, tmp_path, capfd):
    (tmp_path / "config.yaml").write_text(json.dumps(config | settings))
    with pytest.raises(SystemExit) as stop:
        main("pretraining/translation")(["--config", str(tmp_path / "config.yaml")])
    assert stop.value.code == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "stage-1").exists()
