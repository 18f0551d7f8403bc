"""Recipes of several stages, two steps each: what is frozen in each, what each is given, and that nothing is made twice."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file

COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "max_length": 32,
    "test_split_size": 0.2,
    "bf16": False,
    "seed": 0,
}


@pytest.fixture
def run(main, models, task_data, tmp_path, monkeypatch):
    """`run(recipe, **settings)`: result and folder; a second call goes on in the same folder."""
    monkeypatch.setattr("recipes.core.results.draw_curves", lambda *_: None)

    def command(recipe: str, **settings):
        config = {
            "model_name_or_path": str(models / "encoder"),
            "dataset_name": str(task_data / "labels.jsonl"),
            "output_dir": str(tmp_path / "run"),
            **COMMON,
            **settings,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        main(recipe)(["--config", str(tmp_path / "config.yaml")])
        return json.loads((tmp_path / "run" / "result.json").read_text()), tmp_path / "run"

    return command


PFEIFFER = {"method": "bottleneck", "placement": "pfeiffer", "reduction_factor": 4}
STAGES = {
    "finetuning/three_stage": {"further_dataset_name": "texts", "further_steps": 2, "in_domain_steps": 2},
    "finetuning/adapter_fusion": {"peft": PFEIFFER, "sources": {"other": "labels"}, "fusion_steps": 2, "seeds": [0]},
    "finetuning/cross_lingual": {
        "peft": {**PFEIFFER, "invertible": True},
        "language_dataset_name": "texts",
        "other_language_dataset_name": "texts",
        "other_test_dataset_name": "labels",
        "language_steps": 2,
        "seeds": [0],
    },
    "finetuning/prompt_transfer": {
        "peft": {"method": "prompt_tuning", "num_virtual_tokens": 3},
        "template": "{text} . it was [MASK] .",
        "sources": {"other": "labels"},
        "target_steps": 2,
        "shots": 2,
        "seeds": [0],
    },
}


@pytest.fixture
def stages(run, task_data):
    """`stages(recipe)`: the recipe's two-step run, with datasets by the names of their files."""

    def located(value):
        if isinstance(value, dict):
            return {key: located(inner) for key, inner in value.items()}
        return str(task_data / f"{value}.jsonl") if value in ("texts", "labels") else value

    return lambda recipe, **more: run(recipe, **located(STAGES[recipe]), **more)


@pytest.mark.parametrize("saved", [False, True], ids=["before its first checkpoint", "after its model was saved"])
@pytest.mark.parametrize("recipe", STAGES)
def test_a_stopped_run_makes_only_what_is_missing_and_ends_alike(recipe, saved, stages, capfd):
    from transformers import Trainer

    undisturbed, folder = stages(recipe)
    made = sorted(folder.glob("**/result.json"))
    assert len(made) > 2
    times = {path: path.stat().st_mtime_ns for path in made if path.parent != folder}
    (folder / "result.json").unlink()
    last = max(times, key=times.get)
    for path in list(last.parent.iterdir()):  # of the last stage, when it was stopped
        if path == last or (not saved and path.name != "run.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    trained, train = [], Trainer.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Trainer, "train", lambda self, *args, **kwargs: trained.append(1) or train(self, *args, **kwargs)
        )
        again, _ = stages(recipe)
    assert len(trained) == 1
    assert again["metrics"] == undisturbed["metrics"]
    assert {path: path.stat().st_mtime_ns for path in times if path != last} == {
        path: time for path, time in times.items() if path != last
    }


def test_labels_that_the_other_language_alone_has_are_refused(stages, tmp_path, monkeypatch, capfd):
    (tmp_path / "other.jsonl").write_text('{"text": "a", "label": "good"}\n{"text": "b", "label": "god"}\n' * 10)
    monkeypatch.setitem(STAGES["finetuning/cross_lingual"], "other_test_dataset_name", str(tmp_path / "other.jsonl"))
    with pytest.raises(SystemExit):
        stages("finetuning/cross_lingual")
    assert "its label 'god' is none of the task's; did you mean 'good'?" in capfd.readouterr().err


def test_three_stages_are_measured_after_one_two_and_three(stages):
    result, folder = stages("finetuning/three_stage")
    assert {f"accuracy_{name}" for name in ("1_stage", "2_stages", "3_stages")} <= result["metrics"].keys()
    made = {path.parent.name for path in folder.glob("*/result.json")}
    assert made == {
        "further",
        "in-domain",
        "further and in-domain",
        *(f"fine-tuned after {stages}" for stages in ("1_stage", "2_stages", "3_stages")),
    }


def test_fusion_trains_nothing_of_the_adapters(stages):
    result, folder = stages("finetuning/adapter_fusion")
    fused = load_file(folder / "seed-0" / "fusion" / "adapter_model.safetensors")
    for name in ("other", "target"):
        adapter = load_file(folder / "seed-0" / f"adapter-{name}" / "adapter_model.safetensors")
        blocks = {key: tensor for key, tensor in adapter.items() if ".down." in key or ".up." in key}
        assert blocks
        for key, tensor in blocks.items():
            block, _, end = key.rpartition("_blocks.")
            place, ending = block.rpartition(".")[0], f"adapters.{name}.{end}"
            [held] = [each for each in fused if each.endswith(ending) and each.startswith(place)]
            assert (fused[held] == tensor).all(), key
    shares = result["metrics"]["attention_seed_0"]
    assert shares.keys() == {"other", "target"}
    assert sum(shares.values()) == pytest.approx(1)


def test_language_adapters_stay_as_they_are_under_the_task(stages):
    result, folder = stages("finetuning/cross_lingual")
    assert {"accuracy", "accuracy_other_swapped", "accuracy_other_unswapped"} <= result["metrics"].keys()
    for language in ("language", "other-language"):
        before = load_file(folder / language / "adapter_model.safetensors")
        after = load_file(folder / "task-0" / language / "adapter_model.safetensors")
        common = before.keys() & after.keys()
        assert any("invertible" in key for key in common)
        assert all((before[key] == after[key]).all() for key in common)
    task = load_file(folder / "task-0" / "task" / "adapter_model.safetensors")
    assert any("classifier" in key for key in task)
    assert not any("invertible" in key for key in task)


def test_a_prompt_begins_as_its_source_s(stages, monkeypatch):
    from recipes.finetuning import prompt_transfer

    started = []
    start = prompt_transfer.start_from

    def keep(model, prompt):
        start(model, prompt)
        started.append((model.prompt_encoder["default"].embedding.weight.detach().clone(), prompt))

    monkeypatch.setattr(prompt_transfer, "start_from", keep)
    result, folder = stages("finetuning/prompt_transfer")
    [(begun, source)] = started
    assert (begun == source).all()
    assert (load_file(folder / "source-other" / "adapter_model.safetensors")["prompt_embeddings"] == source).all()
    metrics = result["metrics"]
    assert metrics["retrieved"] == ["other"]
    assert metrics["accuracy_from_retrieved"] == metrics["accuracy_from_other"]
    assert -1 <= metrics["similarity_to_target"][0]["other"] <= 1
    assert metrics["similarity_of_sources"]["other"]["other"] <= 1


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("finetuning/adapter_fusion", {"sources": {"a": "x"}}, "combines adapters of peft: {method: bottleneck"),
        ("finetuning/adapter_fusion", {}, "sources: name at least one task beside the target"),
        (
            "finetuning/cross_lingual",
            {"peft": PFEIFFER},
            "stacks adapters of peft: {method: bottleneck, invertible: true}",
        ),
        ("finetuning/prompt_transfer", {"sources": {"a": "x"}}, "has no head to transfer: set template"),
        ("finetuning/prompt_transfer", {"template": "{text} [MASK]"}, "sources: name at least one source task"),
        (
            "finetuning/prompt_transfer",
            {"template": "{text} [MASK]", "sources": {"a": "x"}, "peft": PFEIFFER},
            "carries over prompts of peft: {method: prompt_tuning}",
        ),
        ("finetuning/adapter_fusion", {"sources": {"a": "x"}, "template": "{text} [MASK]"}, "head; drop template"),
        ("finetuning/cross_lingual", {"lm_coef": 0.5}, "drop template, lm_coef and freeze_base"),
        (
            "finetuning/prompt_transfer",
            {"template": "{text} [MASK]", "sources": {"news": "x"}, "source_verbalizers": {"nws": {"a": "b"}}},
            "source_verbalizers: no source 'nws'; did you mean 'news'?",
        ),
        *(
            (recipe, {"test_split_size": None, "dataset_test_split": None}, "compared on held-out rows; name a split")
            for recipe in STAGES
        ),
        ("finetuning/three_stage", {"layer_decay": 0.0}, "layer_decay must lie above 0"),
        ("finetuning/three_stage", {"template": "{text} [MASK]"}, "fine-tunes a head; drop template"),
        ("finetuning/three_stage", {"lm_coef": 0.5}, "a model of those has no next token"),
        ("finetuning/three_stage", {"peft": PFEIFFER}, "trains all weights in all of its stages"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(recipe, settings, message, run, stages, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        (stages if "dataset_test_split" in settings else run)(recipe, **settings)
    assert stop.value.code == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
