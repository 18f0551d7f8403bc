"""Words with tags: which tags there are, labels at the first piece of each word, and what a tagger has to beat."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase

from recipes.core import metrics
from recipes.core.errors import UserError, did_you_mean
from recipes.core.losses import IGNORED

FORM = ("words", "tags")


def tags_of(sentences: DatasetDict) -> list[str]:
    """The tags of the training split in order; after this the column `tags` holds names.

    Raises:
        UserError: a row has not as many tags as words, or a tag that is no name or number, or one that only test has; or all
            of them are numbers, of which nobody can tell where an entity begins.
    """
    item = getattr(sentences["train"].features["tags"], "feature", None)
    names = item.names if isinstance(item, ClassLabel) else None
    for split, dataset in sentences.items():
        for row, (words, tags) in enumerate(zip(dataset["words"], dataset["tags"]), 1):
            if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
                raise UserError(f"{split} row {row}: 'words' and 'tags' must be lists of one length above 0")
            if not all(isinstance(tag, (str, int)) for tag in tags):
                raise UserError(f"{split} row {row}, column 'tags': every tag must be a name or a whole number")
        named = [[names[tag] if names else str(tag) for tag in tags] for tags in dataset["tags"]]
        sentences[split] = dataset.remove_columns("tags").add_column("tags", named)
    in_training = {tag for tags in sentences["train"]["tags"] for tag in tags}
    known = names or sorted(in_training)
    if all(tag.isdigit() for tag in known):
        raise UserError(
            "column 'tags': holds numbers without names, and entities are counted by names such as B-PER and I-PER; name "
            "them, as text or as a ClassLabel"
        )
    for split, dataset in sentences.items():
        strangers = sorted({tag for tags in dataset["tags"] for tag in tags} - in_training)
        if strangers:
            raise UserError(
                f"tag '{strangers[0]}' of the {split} split is not in the training split{did_you_mean(strangers[0], known)}"
            )
    return list(known)


def encode(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, tags: Sequence[str], max_length: int) -> Dataset:
    """Rows of `input_ids`, what else the tokenizer gives, and `labels`: a word's tag at its first piece, else -100.

    Raises:
        UserError: the tokenizer does not tell which word a piece is of.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer cannot tell which word a piece is of; use a fast one"
        )
    number = {tag: index for index, tag in enumerate(tags)}
    blank = " " if drops_blanks(tokenizer) else ""

    def row(sentence: dict[str, list[str]]) -> dict[str, Any]:
        first, *others = sentence["words"]
        words = [first, *(blank + word for word in others)]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        labels, before = [], None
        for word in encoded.word_ids():
            begins = word is not None and word != before
            labels.append(number[sentence["tags"][word]] if begins else IGNORED)
            before = word
        return {**encoded, "labels": labels}

    return dataset.map(row, remove_columns=dataset.column_names, desc="Tokenizing")


def drops_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words that are given apart lose the blank before them, which byte-level BPE learned as a part of each word."""
    apart = tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return apart != tokenizer("a b", add_special_tokens=False)["input_ids"] and (
        apart != tokenizer(" a b", add_special_tokens=False)["input_ids"]
    )


def predicted_tags(logits: Tensor, labels: Tensor) -> Tensor:
    """The highest-scoring tag's number at each position of the text, [batch, length]."""
    return logits[:, -labels.shape[1] :].argmax(-1)


def entity_measures(tags: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """A function from predictions and labels [rows, length] to entity precision, recall and F1 and the tags' accuracy."""
    metric = metrics.load("seqeval")

    def measure(predicted: EvalPrediction) -> dict[str, float]:
        known = [labels != IGNORED for labels in predicted.label_ids]
        return metric.compute(
            predictions=_named(predicted.predictions, known, tags), references=_named(predicted.label_ids, known, tags)
        )

    return measure


def _named(numbers: np.ndarray, known: Sequence[np.ndarray], tags: Sequence[str]) -> list[list[str]]:
    return [[tags[number] for number in row[keep]] for row, keep in zip(numbers, known, strict=True)]


def baselines(sentences: DatasetDict) -> dict[str, float]:
    """F1 and accuracy on the test split of the tag that each word has most often in training, O for a new word."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for words, tags in zip(sentences["train"]["words"], sentences["train"]["tags"]):
        for word, tag in zip(words, tags):
            counts[word][tag] += 1
    usual = {word: tag.most_common(1)[0][0] for word, tag in counts.items()}
    predictions = [[usual.get(word, "O") for word in words] for words in sentences["test"]["words"]]
    measured = metrics.load("seqeval").compute(predictions=predictions, references=list(sentences["test"]["tags"]))
    return {"f1": measured["f1"], "accuracy": measured["accuracy"]}
