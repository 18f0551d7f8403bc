"""AdapterFusion: one adapter for each of several tasks, then attention over all of them, frozen, for one of the tasks.

Paper: Pfeiffer et al. 2020, AdapterFusion: Non-Destructive Task Composition for Transfer Learning, arXiv 2005.00247,
       sections 3.1 and 3.2.
Run:   accelerate launch -m recipes.finetuning.adapter_fusion --config configs/finetuning/adapter_fusion/quickstart.yaml
"""

from dataclasses import dataclass, field, replace
from statistics import mean

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.finetuning import classification_head
from recipes.finetuning.classification import ClassificationConfig
from recipes.finetuning.classification_data import baselines, labels_of, task_of
from recipes.finetuning.fusion_weights import mean_weights


@dataclass
class AdapterFusionTaskConfig(ClassificationConfig):
    """The arguments of stage 1, and those in which stage 2 differs from it; data and test are those of the target task."""

    sources: dict[str, str] | None = field(
        default=None, metadata={"help": "Tasks beside the target that get an adapter: a name, and the dataset."}
    )
    fusion_learning_rate: float = field(default=5e-5, metadata={"help": "Of stage 2; 5e-5 in the paper."})
    fusion_steps: int = field(default=1000, metadata={"help": "Optimiser steps of stage 2."})
    regularization: float = field(default=0.01, metadata={"help": "Factor of |V - I|² in stage 2's loss."})
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Both stages are made once for each."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.template is not None:
            raise UserError("adapter_fusion trains adapters with a head; drop template")
        if not self.sources or "target" in self.sources:
            raise UserError(
                "sources: name at least one task beside the target: {name: dataset}, none of them 'target'"
            )


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: AdapterFusionTaskConfig) -> None:
    if model.peft is None or model.peft.get("method") != "bottleneck" or model.peft.get("placement") != "pfeiffer":
        raise UserError("adapter_fusion combines adapters of peft: {method: bottleneck, placement: pfeiffer}")
    tasks = {
        name: task_of(replace(data, dataset_name=source, max_train_samples=None))
        for name, source in training.sources.items()
    }
    tasks["target"] = task_of(data)
    labels = {name: labels_of(task) for name, task in tasks.items()}

    scores: dict[str, list[float]] = {}
    for seed in training.seeds:
        folders = {}
        for name, task in tasks.items():  # stage 1: an adapter and a head for each task
            part = run.stage(f"seed-{seed}/adapter-{name}", seed=seed)
            learn(part, replace(model), task, labels[name])
            scores.setdefault(f"accuracy_adapter_{name}", []).append(part.metrics["accuracy"])
            folders[name] = str(part.output_dir)

        part = run.stage(  # stage 2: queries, keys, values and a new head, on the target
            f"seed-{seed}/fusion",
            seed=seed,
            learning_rate=training.fusion_learning_rate,
            max_steps=training.fusion_steps,
        )
        fusion = {"method": "adapter_fusion", "adapters": folders, "regularization": training.regularization}
        learn(part, replace(model, peft=fusion), tasks["target"], labels["target"])
        scores.setdefault("accuracy_fusion", []).append(part.metrics["accuracy"])
        run.record(**{f"attention_seed_{seed}": part.metrics["attention"]})

    run.record(**{name: mean(values) for name, values in scores.items()}, seeds=scores)
    single = mean(scores["accuracy_adapter_target"])
    run.record(
        baselines={"accuracy_fusion": single, "accuracy_adapter_target": baselines(tasks["target"])["accuracy"]}
    )


def learn(part: Run, model: ModelConfig, task, labels: list[str]) -> None:
    """Train an adapter or a fusion with its head and record its accuracy, unless that was done before."""
    if part.finished():
        return
    trainer = classification_head.make_trainer(model, part.arguments, task, labels)
    part.fit(trainer)
    part.record(accuracy=trainer.evaluate()["eval_accuracy"])
    if model.peft["method"] == "adapter_fusion":
        part.record(attention=mean_weights(trainer))
    part.finish()


if __name__ == "__main__":
    main()
