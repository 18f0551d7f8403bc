"""AdaLoRA's ranks in a Trainer: they fall to the budget along the paper's curve, unevenly, and a run can be resumed."""

import copy

import pytest
import torch
from peft import AdaLoraConfig
from safetensors.torch import load_file
from small_models import VOCABULARY, build
from transformers import Trainer, TrainerCallback, TrainingArguments

from recipes.adapters import attach, open_adapter
from recipes.adapters.adalora import STATE, AllocateRanks, ranks, tuner
from recipes.core.errors import UserError

STEPS, INIT, TARGET, BEGIN, END, EVERY = 40, 6, 2, 5, 10, 5
MODULES = 2 * 4  # of two layers


def config(**changes) -> AdaLoraConfig:
    settings = {
        "task_type": "SEQ_CLS",
        "init_r": INIT,
        "target_r": TARGET,
        "tinit": BEGIN,
        "tfinal": END,
        "deltaT": EVERY,
        "total_step": STEPS,
        "target_modules": ["query", "key", "value", "intermediate.dense"],
        "orth_reg_weight": 0.1,
    }
    return AdaLoraConfig(**settings | changes)


def rows(count: int = 32) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (count, 8), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones(8, dtype=torch.long), "labels": row[0] % 3} for row in ids]


class CountRanks(TrainerCallback):
    def __init__(self):
        self.counts = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.counts[state.global_step] = sum(ranks(model).values())


def trainer_of(folder, callbacks=None, **changes) -> Trainer:
    torch.manual_seed(0)
    model = attach(build("bert-classifier", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), config())
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "lr_scheduler_type": "constant",
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**settings | changes),
        train_dataset=rows(),
        eval_dataset=rows(),
        callbacks=[AllocateRanks()] if callbacks is None else callbacks,
    )


def budget(step: int) -> int:
    """Equation 12 of the paper, times the number of matrices; the budget is taken every deltaT steps."""
    first, last = INIT * MODULES, TARGET * MODULES
    if step >= STEPS - END:
        return last
    taken = step - step % EVERY
    if taken <= BEGIN:
        return first
    return int(last + (first - last) * (1 - (taken - BEGIN) / (STEPS - BEGIN - END)) ** 3)


def test_ranks_fall_along_the_papers_curve_and_unevenly(tmp_path):
    count = CountRanks()
    trainer = trainer_of(tmp_path, [AllocateRanks(), count])
    trainer.train()
    # between two allocations a triplet that was masked can grow again, and is counted with the rest at the next
    decided = [step for step in range(1, STEPS + 1) if step % EVERY == 0 or step >= STEPS - END]
    assert {step: count.counts[step] for step in decided} == {step: budget(step) for step in decided}
    assert len({budget(step) for step in decided}) > 3
    left = ranks(trainer.model)
    assert len(left) == MODULES
    assert sum(left.values()) == TARGET * MODULES
    assert len(set(left.values())) > 1, left

    before = trainer.predict(rows()).predictions
    trainer.save_model(str(tmp_path / "saved"))
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert {key: tensor.shape[0] for key, tensor in tensors.items() if key.endswith("lora_E")} == {
        f"base_model.model.{name}.lora_E": rank for name, rank in left.items()
    }
    opened = open_adapter(build("bert-classifier"), tmp_path / "saved")
    batch = {key: torch.stack([row[key] for row in rows()]) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(opened(**batch).logits, torch.tensor(before), atol=1e-5, rtol=1e-5)


def test_a_trainer_alone_leaves_all_ranks(tmp_path):
    """Why there is a callback: neither PEFT nor transformers calls the allocator."""
    trainer = trainer_of(tmp_path, [])
    trainer.train()
    assert set(ranks(trainer.model).values()) == {INIT}


@pytest.mark.parametrize("stop", [12, 33])
def test_a_resumed_run_ends_as_an_undisturbed_one(stop, tmp_path):
    """In the middle of the schedule, and after the last allocation."""
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    cut = trainer_of(tmp_path / "cut", save_strategy="steps", save_steps=stop)
    cut.add_callback(StopAfter(stop))
    cut.train()
    checkpoint = tmp_path / "cut" / f"checkpoint-{stop}"
    assert (checkpoint / STATE).exists()
    held = load_file(checkpoint / "adapter_model.safetensors")
    assert {tensor.shape[0] for key, tensor in held.items() if key.endswith("lora_E")} == {INIT}
    resumed = trainer_of(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert ranks(resumed.model) == ranks(whole.model)
    ended = dict(resumed.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(ended[name], parameter), name


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_the_penalty_is_in_training_and_not_in_evaluation(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=STEPS)
    trainer.train()
    model = trainer.model
    batch = {key: torch.stack([row[key] for row in rows(4)]) for key in ("input_ids", "attention_mask", "labels")}
    model.eval()
    with torch.no_grad():
        evaluated = model(**batch)
    plain = torch.nn.functional.cross_entropy(evaluated.logits, batch["labels"])
    torch.testing.assert_close(evaluated.loss, plain)
    model.train()  # there is no dropout
    norms = []
    for name, p in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = p @ p.T if "lora_A" in name else p.T @ p
            norms.append((gram - torch.eye(len(gram))).norm())
    torch.testing.assert_close(model(**batch).loss, plain + 0.1 * torch.stack(norms).mean())


def test_importance_is_the_papers(tmp_path):
    """Sensitivity |w·∂L/∂w|, smoothed, times the smoothed distance from it (equations 8 to 10), for one matrix by hand."""
    torch.manual_seed(0)
    model = attach(build("bert-classifier"), config())
    allocator = tuner(model).rankallocator
    name = next(n for n, _ in tuner(model).model.named_parameters() if "lora_A" in n)
    parameter = tuner(model).model.get_parameter(name)
    averaged = uncertainty = torch.zeros_like(parameter)
    for seed in range(3):
        torch.manual_seed(seed)
        for p in model.parameters():
            p.grad = torch.randn_like(p) if p.requires_grad else None
        allocator.update_ipt(tuner(model).model)
        sensitivity = (parameter * parameter.grad).abs()
        averaged = 0.85 * averaged + 0.15 * sensitivity
        uncertainty = 0.85 * uncertainty + 0.15 * (sensitivity - averaged).abs()
    torch.testing.assert_close(allocator._element_score(name), (averaged * uncertainty).detach())


def test_a_model_without_the_penalty_or_without_adalora_is_refused():
    with pytest.raises(UserError, match="adds its orthogonality penalty to the loss of a model with a task type only"):
        tuner(attach(build("bert"), config(task_type=None)))
    from peft import LoraConfig

    with pytest.raises(UserError, match="no AdaLoRA adapter"):
        tuner(attach(build("bert-classifier"), LoraConfig(task_type="SEQ_CLS")))


def test_copies_keep_their_own_forward(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=STEPS)
    trainer.train()
    twin = copy.deepcopy(trainer.model)
    assert tuner(twin).forward.__self__ is tuner(twin)
