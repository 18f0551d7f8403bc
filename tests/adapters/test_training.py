"""Our methods under transformers' Trainer: they learn, and a run that is cut and resumed ends as an undisturbed one."""

import pytest
import torch
from small_models import VOCABULARY, build, disturb, loss_of
from transformers import Trainer, TrainerCallback, TrainingArguments

from recipes.adapters import (
    AdapterFusionConfig,
    BitFitConfig,
    BottleneckConfig,
    PTuningTemplateConfig,
    attach,
    open_adapter,
    stack,
)

STEPS, CUT = 8, 5


def rows(pseudo: int = 0) -> list[dict]:
    """Whether the first token is below the middle of the vocabulary, in the classes 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (64, 8), generator=generator)
    labels = (ids[:, 0] < VOCABULARY // 2).long()
    ids = torch.cat([VOCABULARY + torch.arange(pseudo).expand(64, -1), ids], dim=1)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label} for row, label in zip(ids, labels)
    ]


def adapters_of(folder) -> dict[str, str]:
    made = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = attach(build("bert-classifier"), BottleneckConfig(task_type="SEQ_CLS", placement="pfeiffer"))
        disturb(model, seed)
        model.save_pretrained(folder / name)
        made[name] = str(folder / name)
    return made


def make(method: str, folder):
    """The model that a run of this method begins with, the same each time."""
    torch.manual_seed(0)
    base = build("bert-classifier")
    if method == "stack":
        language = {"placement": "pfeiffer", "reduction_factor": 2, "invertible": True}
        if not (folder / "english").exists():
            model = attach(build("bert-classifier"), BottleneckConfig(**language))
            disturb(model)
            model.save_pretrained(folder / "english")
        torch.manual_seed(0)
        model = open_adapter(base, folder / "english", "english")
        model.add_adapter("task", BottleneckConfig(placement="pfeiffer", modules_to_save=["classifier"]))
        stack(model, "english", "task")
        return model
    configs = {
        "bitfit": lambda: BitFitConfig(task_type="SEQ_CLS"),
        "houlsby": lambda: BottleneckConfig(task_type="SEQ_CLS"),
        "pfeiffer": lambda: BottleneckConfig(task_type="SEQ_CLS", placement="pfeiffer"),
        "p_tuning_template": lambda: PTuningTemplateConfig(task_type="SEQ_CLS", num_pseudo_tokens=3),
        "adapter_fusion": lambda: AdapterFusionConfig(task_type="SEQ_CLS", adapters=adapters_of(folder)),
    }
    config = configs[method]()
    torch.manual_seed(0)
    return attach(base, config)


class Cut(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == CUT


def train(method: str, folder, output, resume=None, callbacks=(), **changes) -> Trainer:
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    trainer = Trainer(
        model=make(method, folder),
        args=TrainingArguments(output_dir=str(output), **settings | changes),
        train_dataset=rows(3 if method == "p_tuning_template" else 0),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


METHODS = ["bitfit", "houlsby", "pfeiffer", "p_tuning_template", "adapter_fusion", "stack"]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_as_an_undisturbed_one(method, tmp_path):
    whole = train(method, tmp_path, tmp_path / "whole")
    train(method, tmp_path, tmp_path / "cut", callbacks=[Cut()], save_strategy="steps", save_steps=CUT)
    resumed = train(method, tmp_path, tmp_path / "cut", resume=str(tmp_path / "cut" / f"checkpoint-{CUT}"))
    assert resumed.state.global_step == STEPS
    ended = dict(resumed.model.named_parameters())
    start = dict(make(method, tmp_path).named_parameters())
    moved = 0
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(ended[name], parameter), name
        moved += not torch.equal(start[name], parameter)
        assert parameter.requires_grad or torch.equal(start[name], parameter), name
    assert moved


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(method, tmp_path):
    trainer = train(method, tmp_path, tmp_path / "run", max_steps=60, logging_steps=5, lr_scheduler_type="constant")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.75 * losses[0], losses


def test_the_regularizer_is_in_the_loss_that_is_trained(tmp_path):
    model = make("adapter_fusion", tmp_path)
    model.peft_config["default"].regularization = 1000.0
    model.train()
    disturb(model)
    assert loss_of(model, "bert-classifier") > 100
    model.eval()
    assert loss_of(model, "bert-classifier") < 100
