"""Language adapters under a task adapter: stacking them, training the task, and swapping the language.

Paper: Pfeiffer et al. 2020, MAD-X, arXiv 2005.00052, section 3.2 and figure 1.
"""

from collections.abc import Sequence

from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer

from recipes.adapters import BottleneckConfig, open_adapter, stack
from recipes.core import ModelConfig
from recipes.core.peft_block import train_new_modules
from recipes.finetuning.classification import ClassificationConfig
from recipes.finetuning.classification_data import encode, measures
from recipes.finetuning.classification_head import ClassificationTrainer

TASK = "task"


def stacked_trainer(
    model: ModelConfig,
    training: ClassificationConfig,
    task: DatasetDict,
    labels: Sequence[str],
    languages: dict[str, str],
) -> Trainer:
    """A trainer of a task adapter and a head on top of the first of the language adapters, which stay as they are.

    Args:
        languages: the name and the folder of each language adapter.
    """
    tokenizer, classifier = model.load(
        AutoModelForSequenceClassification,
        needs=("pad_token",),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    config = BottleneckConfig(placement="pfeiffer", reduction_factor=training.task_reduction_factor)
    train_new_modules(config, model.new_weights)
    for name, folder in languages.items():
        classifier = open_adapter(classifier, folder, name)
    classifier.add_adapter(TASK, config)
    stack(classifier, next(iter(languages)), TASK)
    return ClassificationTrainer(
        model=classifier,
        args=training,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encode(task["train"], tokenizer, labels, training.max_length),
        eval_dataset=encode(task["test"], tokenizer, labels, training.max_length),
        compute_metrics=measures,
    )


def accuracy(trainer: Trainer, dataset: Dataset, labels: Sequence[str], language: str) -> float:
    """The task's accuracy on a dataset with this language adapter below the task's."""
    stack(trainer.model, language, TASK)
    rows = encode(dataset, trainer.processing_class, labels, trainer.args.max_length)
    return trainer.evaluate(rows)["eval_accuracy"]
