"""An adapter's run that is killed goes on as if undisturbed, also where PEFT's files do not hold all that is trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

METHODS = {
    "lora": {"method": "lora", "r": 2, "target_modules": "all-linear"},
    "adalora": {"method": "adalora", "init_r": 4, "target_r": 2, "target_modules": "all-linear", "tinit": 1},
    "p-tuning": {"method": "p_tuning", "num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM"},
    "prefix-tuning": {"method": "prefix_tuning", "num_virtual_tokens": 3, "prefix_projection": True},
    "prompt-tuning": {"method": "prompt_tuning", "num_virtual_tokens": 3},
    "houlsby": {"method": "bottleneck"},
    "bitfit": {"method": "bitfit"},
}


class Killed(Exception):
    pass


@pytest.fixture
def classify(main, models, task_data, tmp_path, monkeypatch):
    """`classify(method, folder, key=value, …)`: six steps of a classifier under an adapter, a checkpoint every two."""
    monkeypatch.setattr("recipes.core.results.draw_curves", lambda *_: None)

    def run(method: str, folder: str, **settings) -> Path:
        config = {
            "model_name_or_path": str(models / "encoder"),
            "peft": METHODS[method],
            "dataset_name": str(task_data / "labels.jsonl"),
            "test_split_size": 0.2,
            "max_length": 32,
            "max_steps": 6,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "bf16": False,
            "seed": 0,
            **settings,
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        words = ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / folder)]
        main("finetuning/classification")(words)
        return tmp_path / folder

    return run


@pytest.mark.parametrize("method", METHODS)
def test_it_ends_with_the_weights_of_an_undisturbed_run(method, classify, tmp_path, monkeypatch):
    resumed_after_a_kill(lambda folder: classify(method, folder), monkeypatch)
    assert_same_adapter(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.parametrize("method", ["lora", "p-tuning", "prefix-tuning", "prompt-tuning"])
def test_a_policy_of_ppo_does_too(method, main, job, tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.core.results.draw_curves", lambda *_: None)

    def run(folder: str) -> None:
        options = ("--peft", json.dumps(METHODS[method]), "--value_model", "shared")
        main("rlhf/ppo")(job("rlhf/ppo", tmp_path / folder, *options))

    resumed_after_a_kill(run, monkeypatch)
    assert_same_adapter(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.parametrize("method", ["p-tuning", "prefix-tuning"])
def test_the_best_model_is_loaded_whole(method, classify):
    """Trainer by itself takes a saved prompt for the input of the network that makes it."""
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    bests = []
    for name, best_of in {"lowest": min, "highest": max}.items():  # of one of them the best is not the last
        folder = classify(method, name, **settings, greater_is_better=best_of is max)
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        *training, last = [line for line in lines if "eval_loss" in line]
        losses = {line["step"]: line["eval_loss"] for line in training}
        bests.append(best_of(losses, key=losses.get))
        assert last["eval_loss"] == pytest.approx(losses[bests[-1]])
        assert_same_adapter(folder / f"checkpoint-{bests[-1]}", folder)
    assert bests != [6, 6]


def resumed_after_a_kill(run: Callable[[str], None], monkeypatch) -> None:
    """Run it into `undisturbed`, and into `killed` with a kill after the third step and the same command again."""
    from transformers import Trainer

    run("undisturbed")
    step = Trainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise Killed
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", killed)
    with pytest.raises(Killed):
        run("killed")
    monkeypatch.setattr(Trainer, "training_step", step)
    run("killed")


def assert_same_adapter(one: Path, other: Path) -> None:
    ends = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert (tensor == ends[1][name]).all(), name
