"""Every method of the `peft` block in the scripts: two steps, a saved adapter that opens again with equal outputs.

Each method goes through classification and one more script on every run; `slow` tests have the whole matrix.
"""

import json

import pytest
import torch
import yaml

METHODS = {
    "full": None,
    "bitfit": {"method": "bitfit"},
    "prompt-tuning-random": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "prompt-tuning-vocabulary": {
        "method": "prompt_tuning",
        "num_virtual_tokens": 3,
        "prompt_tuning_init": "SAMPLE_VOCAB",
    },
    "prompt-tuning-labels": {
        "method": "prompt_tuning",
        "num_virtual_tokens": 3,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "good bad",
    },
    "p-tuning": {"method": "p_tuning", "num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM"},
    "p-tuning-v2": {"method": "prefix_tuning", "num_virtual_tokens": 3},
    "prefix-tuning": {"method": "prefix_tuning", "num_virtual_tokens": 3, "prefix_projection": True},
    "lora": {"method": "lora", "r": 2, "target_modules": "all-linear"},
    "dora": {"method": "lora", "r": 2, "use_dora": True, "target_modules": "all-linear"},
    "rslora": {"method": "lora", "r": 2, "use_rslora": True, "target_modules": "all-linear"},
    "adalora": {"method": "adalora", "init_r": 4, "target_r": 2, "deltaT": 1, "target_modules": "all-linear"},
    "qlora": {"method": "lora", "r": 2, "target_modules": "all-linear"},
    "ia3": {"method": "ia3"},
    "houlsby": {"method": "bottleneck", "placement": "houlsby", "reduction_factor": 4},
    "pfeiffer": {"method": "bottleneck", "placement": "pfeiffer", "reduction_factor": 4},
}
PROMPTS = [name for name in METHODS if name.startswith(("prompt", "p-tuning")) and name != "p-tuning-v2"]
SCRIPTS = {
    "finetuning/classification": ("encoder", "labels", {"max_length": 32}),
    "finetuning/classification with a gap": (
        "encoder",
        "labels",
        {"max_length": 32, "template": "{text} . it was [MASK] ."},
    ),
    "finetuning/classification of a decoder": ("model", "labels", {"max_length": 32}),
    "finetuning/token_classification": ("encoder", "words", {"max_length": 32}),
    "finetuning/question_answering": ("encoder", "questions", {"max_length": 48, "doc_stride": 4}),
    "finetuning/sequence_to_sequence": ("t5", "pairs", {"max_length": 32, "max_target_length": 8}),
    "finetuning/sequence_to_sequence with BART": ("bart", "pairs", {"max_length": 32, "max_target_length": 8}),
    "finetuning/sft": ("model", "texts", {"max_length": 32, "activation_checkpointing": False}),
}
# The second script of each method; of the first, all are in classification with a head.
SECOND = {
    "full": "finetuning/question_answering",
    "bitfit": "finetuning/token_classification",
    "prompt-tuning-random": "finetuning/sequence_to_sequence",
    "prompt-tuning-vocabulary": "finetuning/classification with a gap",
    "prompt-tuning-labels": "finetuning/token_classification",
    "p-tuning": "finetuning/question_answering",
    "p-tuning-v2": "finetuning/sft",
    "prefix-tuning": "finetuning/sequence_to_sequence with BART",
    "lora": "finetuning/sft",
    "dora": "finetuning/question_answering",
    "rslora": "finetuning/token_classification",
    "adalora": "finetuning/classification with a gap",
    "qlora": "finetuning/token_classification",
    "ia3": "finetuning/sequence_to_sequence",
    "houlsby": "finetuning/token_classification",
    "pfeiffer": "finetuning/sequence_to_sequence with BART",
}
IMPOSSIBLE = {  # and why, in the words of the error
    ("bitfit", "finetuning/sequence_to_sequence"): "has no bias terms",
    ("bitfit", "finetuning/classification of a decoder"): "has no bias terms",
    ("bitfit", "finetuning/sft"): "has no bias terms",
    **{(method, "finetuning/classification of a decoder"): "reads the last position" for method in PROMPTS},
}


@pytest.fixture
def finetune(main, models, task_data, tmp_path, monkeypatch):
    """`finetune(script, method, **settings)`: its trainer, its result and its folder, after two steps."""
    from recipes.core.run import Run

    fit, kept = Run.fit, []

    def keep(self, trainer):
        kept.append(trainer)
        fit(self, trainer)

    monkeypatch.setattr(Run, "fit", keep)
    monkeypatch.setattr("recipes.core.results.draw_curves", lambda *_: None)

    def run(script: str, method: str, **settings):
        base, data, more = SCRIPTS[script]
        recipe = script.partition(" ")[0]
        folder = tmp_path / "run"
        config = {
            "model_name_or_path": str(models / base),
            "dataset_name": str(task_data / f"{data}.jsonl"),
            "test_split_size": 0.2,
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "bf16": False,
            "seed": 0,
            "output_dir": str(folder),
            **more,
            **({"load_in_4bit": True} if method == "qlora" else {}),
            **({"peft": METHODS[method]} if METHODS[method] else {}),
            **settings,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        main(recipe)(["--config", str(tmp_path / "config.yaml")])
        return kept[-1], json.loads((folder / "result.json").read_text()), folder

    return run


def outputs(model, batch) -> torch.Tensor:
    """The scores of a model for a batch, without labels, in float32."""
    model.eval()
    forward = {"input_ids", "attention_mask", "token_type_ids"}
    inputs = {key: value for key, value in batch.items() if key in forward}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = batch["labels"].clamp(min=0)
    with torch.no_grad():
        found = model(**inputs)
    return (found["logits"] if "logits" in found else torch.cat([found["start_logits"], found["end_logits"]])).float()


def opened(trainer, folder, models, script, method):
    """The finished run's model, opened from its folder as a user would."""
    from peft import PeftModel

    if not isinstance(trainer.model, PeftModel):
        return type(trainer.model).from_pretrained(folder, dtype=torch.float32)
    base = trainer.model.get_base_model()
    options = {"quantization_config": base.config.quantization_config} if method == "qlora" else {}
    again = type(base).from_pretrained(
        models / SCRIPTS[script][0],
        num_labels=base.config.num_labels,
        **options,
    )
    return PeftModel.from_pretrained(again, folder)


def check(finetune, models, script, method):
    if reason := IMPOSSIBLE.get((method, script)):
        with pytest.raises(SystemExit):
            finetune(script, method)
        return reason
    trainer, result, folder = finetune(script, method)
    assert result["steps"] == 2
    assert result["metrics"]
    if method == "full":
        assert result["trained_parameters"] == result["parameters"]
    else:
        assert 0 < result["trained_parameters"] < result["parameters"]
        assert (folder / "adapter_model.safetensors").exists()
    batch = next(iter(trainer.get_eval_dataloader()))
    again = opened(trainer, folder, models, script, method)
    tolerance = 5e-3 if method == "qlora" else 1e-5  # on some CPUs bitsandbytes computes in bf16
    torch.testing.assert_close(outputs(again, batch), outputs(trainer.model, batch), atol=tolerance, rtol=tolerance)
    return None


@pytest.mark.parametrize("method", METHODS)
def test_classification_with_a_head(method, finetune, models):
    check(finetune, models, "finetuning/classification", method)


@pytest.mark.parametrize("method", METHODS)
def test_another_script(method, finetune, models):
    check(finetune, models, SECOND[method], method)


@pytest.mark.slow
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "finetuning/classification"])
@pytest.mark.parametrize("method", METHODS)
def test_the_whole_matrix(method, script, finetune, models, capfd):
    reason = check(finetune, models, script, method)
    if reason:
        assert reason in capfd.readouterr().err


def test_p_tuning_places_its_prompt_by_the_template(finetune, models):
    template = "[P]*2 {text} [P] it was [MASK] ."
    peft = {"method": "p_tuning_template", "num_pseudo_tokens": 3}
    trainer, result, folder = finetune("finetuning/classification with a gap", "full", template=template, peft=peft)
    assert 0 < result["trained_parameters"] < result["parameters"]
    batch = next(iter(trainer.get_eval_dataloader()))
    vocabulary = trainer.model.get_input_embeddings().weight.shape[0]
    assert (batch["input_ids"] >= vocabulary).sum(1).tolist() == [3] * len(batch["input_ids"])
    again = opened(trainer, folder, models, "finetuning/classification with a gap", "p-tuning")
    torch.testing.assert_close(outputs(again, batch), outputs(trainer.model, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("script", "method", "settings", "message"),
    [
        (
            "finetuning/classification",
            "full",
            {"max_length": 200},
            "max_length: a row has 200 tokens, and the model reads",
        ),
        ("finetuning/classification", "prompt-tuning-random", {"max_length": 126}, "tokens beside 3 virtual ones"),
        (
            "finetuning/question_answering",
            "full",
            {"label_smoothing_factor": 0.1},
            "label_smoothing_factor has no effect",
        ),
        ("finetuning/sft", "p-tuning", {"packing": True}, "packed texts would see each other"),
        ("finetuning/sft", "p-tuning", {"label_smoothing_factor": 0.1}, "cannot place it under the virtual tokens"),
        ("finetuning/sft", "full", {"do_train": False}, "do_train: a recipe trains"),
    ],
)
def test_what_would_go_wrong_later_is_one_line(
    script, method, settings, message, finetune, task_data, tmp_path, capfd
):
    if "max_length" in settings:
        rows = [{"text": "one two three " * 100, "label": label} for label in ("good", "bad")] * 20
        (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {**settings, "dataset_name": str(tmp_path / "long.jsonl")}
    with pytest.raises(SystemExit) as stop:
        finetune(script, method, **settings)
    assert stop.value.code == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["finetuning/token_classification", "finetuning/classification with a gap"])
def test_smoothed_labels_change_the_loss(script, finetune):
    losses = []
    for smoothing in (0.0, 0.5):
        settings = {"label_smoothing_factor": smoothing, "overwrite": "always"}
        _, _, folder = finetune(script, "full", logging_steps=1, **settings)
        losses.append(json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)
