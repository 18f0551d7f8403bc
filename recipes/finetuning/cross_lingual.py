"""MAD-X: a task learned in one language, on top of its language adapter, and used in another by swapping that adapter.

Paper: Pfeiffer et al. 2020, MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer, arXiv 2005.00052,
       section 3: invertible and language adapters by masked words, a task adapter stacked on them.
Run:   accelerate launch -m recipes.finetuning.cross_lingual --config configs/finetuning/cross_lingual/quickstart.yaml
"""

from dataclasses import dataclass, field, replace
from statistics import mean

from transformers import AutoModelForMaskedLM

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.errors import did_you_mean
from recipes.finetuning.classification import ClassificationConfig
from recipes.finetuning.classification_data import baselines, labels_of, task_of
from recipes.finetuning.language_adapters import accuracy, stacked_trainer
from recipes.finetuning.masked_text import masked_trainer, texts_of


@dataclass
class CrossLingualConfig(ClassificationConfig):
    """The arguments of the task adapter, those in which language adapters differ, and the other language's data."""

    language_dataset_name: str = field(default="embedded/text", metadata={"help": "Text of the task's language."})
    language_dataset_config: str | None = field(default=None, metadata={"help": "Configuration of that Hub dataset."})
    other_language_dataset_name: str = field(
        default="embedded/second-language", metadata={"help": "Text of the other language; no labels."}
    )
    other_language_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of that Hub dataset."}
    )
    other_test_dataset_name: str = field(
        default="embedded/second-language-topics", metadata={"help": "The task in the other language; its test split."}
    )
    other_test_dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of that Hub dataset."}
    )
    language_learning_rate: float = field(default=1e-4, metadata={"help": "Of language adapters; 1e-4 in the paper."})
    language_steps: int = field(default=250_000, metadata={"help": "Steps of each; 250,000 in the paper."})
    language_max_length: int = field(default=128, metadata={"help": "Tokens of a row of text."})
    task_reduction_factor: float = field(default=16, metadata={"help": "Of the task adapter; 16 in the paper."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "One task adapter for each."})

    def __post_init__(self):
        super().__post_init__()
        if self.template is not None or self.lm_coef or self.freeze_base:
            raise UserError("cross_lingual trains task adapters with a head; drop template, lm_coef and freeze_base")


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: CrossLingualConfig) -> None:
    if model.peft is None or model.peft.get("method") != "bottleneck" or not model.peft.get("invertible"):
        raise UserError("cross_lingual stacks adapters of peft: {method: bottleneck, invertible: true}")
    task = task_of(data)
    labels = labels_of(task)
    other = task_of(
        replace(data, dataset_name=training.other_test_dataset_name, dataset_config=training.other_test_dataset_config)
    )
    for label in labels_of(other):
        if label not in labels:
            raise UserError(
                f"other_test_dataset_name: its label '{label}' is none of the task's{did_you_mean(label, labels)}"
            )

    sources = {
        "language": (training.language_dataset_name, training.language_dataset_config),
        "other-language": (training.other_language_dataset_name, training.other_language_dataset_config),
    }
    rates = {"learning_rate": training.language_learning_rate, "max_steps": training.language_steps}
    languages = {}
    for name, (source, configuration) in sources.items():  # stage 1: one adapter for each language, from text alone
        part = run.stage(name, **rates)
        if not part.finished():
            text = texts_of(replace(data, dataset_name=source, dataset_config=configuration))
            tokenizer, encoder = model.load(AutoModelForMaskedLM, needs=("pad_token",))
            adapted = model.adapt(encoder, None, part.arguments)
            trainer = masked_trainer(adapted, part.arguments, tokenizer, text, training.language_max_length)
            part.fit(trainer)
            part.record(eval_loss=trainer.evaluate()["eval_loss"])
            part.finish()
        run.record(**{f"masked_loss_{name.replace('-', '_')}": part.metrics["eval_loss"]})
        languages[name] = str(part.output_dir)

    scores: dict[str, list[float]] = {"accuracy": [], "accuracy_other_swapped": [], "accuracy_other_unswapped": []}
    for seed in training.seeds:  # stage 2: a task adapter on the first language's, then zero-shot with either
        part = run.stage(f"task-{seed}", seed=seed)
        if not part.finished():
            trainer = stacked_trainer(replace(model), part.arguments, task, labels, languages)
            part.fit(trainer)
            part.record(
                accuracy=accuracy(trainer, task["test"], labels, "language"),
                accuracy_other_unswapped=accuracy(trainer, other["test"], labels, "language"),
                accuracy_other_swapped=accuracy(trainer, other["test"], labels, "other-language"),
            )
            part.finish()
        for name, values in scores.items():
            values.append(part.metrics[name])
    run.record(**{name: mean(values) for name, values in scores.items()}, seeds=scores)
    most_frequent = baselines(other)["accuracy"]
    run.record(
        baselines={"accuracy": most_frequent, "accuracy_other_swapped": mean(scores["accuracy_other_unswapped"])}
    )


if __name__ == "__main__":
    main()
