"""Texts with labels: which labels there are, the encoded rows, and what a classifier has to beat."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

from datasets import ClassLabel, Dataset, DatasetDict
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from transformers import EvalPrediction, PreTrainedTokenizerBase

from recipes.core import DataConfig, metrics
from recipes.core.errors import UserError, did_you_mean

FORMS = (("text", "text_pair", "label"), ("text", "label"))


def task_of(data: DataConfig) -> DatasetDict:
    """The rows of a task in the splits `train` and `test`, for recipes of several stages, which compare what they measure.

    Raises:
        UserError: there is no split to measure on.
    """
    task = data.load(*FORMS)
    if "test" not in task:
        raise UserError("dataset_test_split: the stages are compared on held-out rows; name a split for them")
    return task


def labels_of(splits: DatasetDict) -> list[str]:
    """The names of the labels of the training split, in order; after this the column `label` holds such names.

    Raises:
        UserError: fewer than two labels, one that is no word or whole number, or one that only the test split has.
    """
    feature = splits["train"].features["label"]
    for split, dataset in splits.items():
        bad = next((row for row, label in enumerate(dataset["label"], 1) if type(label) not in (str, int, bool)), None)
        if bad:
            raise UserError(
                f"{split} row {bad}, column 'label': must be a word or a whole number, not {dataset['label'][bad - 1]}"
            )
        name = feature.int2str if isinstance(feature, ClassLabel) else str
        names = [name(label) for label in dataset["label"]]
        splits[split] = dataset.remove_columns("label").add_column("label", names)
    in_training = splits["train"]["label"]
    labels = feature.names if isinstance(feature, ClassLabel) else sorted(set(in_training), key=_in_order)
    if len(set(in_training)) < 2:
        raise UserError("the training split has one label only; a classifier needs two")
    for split, dataset in splits.items():
        strangers = sorted(set(dataset["label"]) - set(in_training))
        if strangers:
            raise UserError(
                f"label '{strangers[0]}' of the {split} split is not in the training split"
                f"{did_you_mean(strangers[0], labels)}"
            )
    return list(labels)


def _in_order(label: str) -> tuple[bool, int, str]:
    """Numbers by their size, before words."""
    return (not label.isdigit(), int(label) if label.isdigit() else 0, label)


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], max_length: int) -> Dataset:
    """Rows of `labels` and what the tokenizer gives, of at most `max_length` tokens; of a pair the longer text is cut."""

    def rows(batch: Mapping[str, list]) -> dict[str, list]:
        encoded = tokenizer(batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length)
        return {**encoded, "labels": [labels.index(label) for label in batch["label"]]}

    return dataset.map(rows, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")


load_metric = functools.cache(metrics.load)


def measures(predicted: EvalPrediction) -> dict[str, float]:
    """Accuracy and macro F1 of the highest of the scores [rows, labels]."""
    numbers = {"predictions": predicted.predictions.argmax(-1), "references": predicted.label_ids}
    return load_metric("accuracy").compute(**numbers) | load_metric("f1").compute(**numbers)


def baselines(splits: DatasetDict) -> dict[str, float]:
    """Accuracy on the test split of the most frequent label, and of multinomial naive Bayes over words and bigrams.

    Source: Wang & Manning 2012, Baselines and Bigrams, section 2.1 (binarised, α = 1).
    """
    train, test = splits["train"], splits["test"]
    most_frequent = Counter(train["label"]).most_common(1)[0][0]
    counter = CountVectorizer(binary=True, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]")
    bayes = MultinomialNB().fit(counter.fit_transform(_texts(train)), train["label"])
    return {
        "accuracy": sum(label == most_frequent for label in test["label"]) / len(test),
        "accuracy_naive_bayes": float(bayes.score(counter.transform(_texts(test)), test["label"])),
    }


def _texts(dataset: Dataset) -> list[str]:
    if "text_pair" not in dataset.column_names:
        return list(dataset["text"])
    return [f"{first} {second}" for first, second in zip(dataset["text"], dataset["text_pair"])]
