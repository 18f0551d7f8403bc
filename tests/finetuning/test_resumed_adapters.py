"""An adapter's run that is killed goes on as if undisturbed, also where PEFT's files do not hold all that is trained."""

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


@pytest.mark.parametrize("method", METHODS)
def test_it_ends_with_the_weights_of_an_undisturbed_run(method, main, models, task_data, tmp_path, monkeypatch):
    from transformers import Trainer

    monkeypatch.setattr("recipes.core.results.draw_curves", lambda *_: None)
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
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def run(folder: str) -> None:
        main("finetuning/classification")(
            ["--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / folder)]
        )

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

    ends = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("undisturbed", "killed")]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert (tensor == ends[1][name]).all(), name
