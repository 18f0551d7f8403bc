"""A probing task: what a linear classifier can read from the frozen states of an encoder.

Paper: Alain & Bengio 2016, Understanding intermediate layers using linear classifier probes, arXiv 1610.01644;
       Conneau et al. 2018, What you can cram into a single vector, arXiv 1805.01070.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.core import UserError

MOST_ROWS, FEWEST_OF_A_CLASS, PENALTY = 2000, 30, 1e-2


@dataclass
class Probe:
    """Texts with classes; the parts of a path before its first slash are one class."""

    train: tuple[list[str], torch.Tensor]
    test: tuple[list[str], torch.Tensor]
    classes: list[str]

    @property
    def majority(self) -> float:
        """Accuracy of always naming the class that is most frequent in training."""
        most = torch.bincount(self.train[1]).argmax()
        return (self.test[1] == most).float().mean().item()

    def accuracy(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> float:
        """Held-out accuracy of a logistic regression on the frozen mean states, standardised by the training rows."""
        train = mean_states(model, tokenizer, self.train[0], max_length)
        test = mean_states(model, tokenizer, self.test[0], max_length)
        mean, deviation = train.mean(0), train.std(0).clamp_min(1e-6)
        train, test = (train - mean) / deviation, (test - mean) / deviation
        weights = torch.zeros(len(self.classes), train.shape[1], requires_grad=True)
        bias = torch.zeros(len(self.classes), requires_grad=True)
        solver = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

        def objective() -> torch.Tensor:
            solver.zero_grad()
            loss = cross_entropy(train @ weights.T + bias, self.train[1]) + PENALTY / 2 * weights.square().sum()
            loss.backward()
            return loss

        solver.step(objective)
        return ((test @ weights.T + bias).argmax(-1) == self.test[1]).float().mean().item()


def make_probe(documents: DatasetDict, column: str) -> Probe:
    """Texts and classes of at most 2,000 training rows, and of the test rows of those classes.

    Raises:
        UserError: no such column, or fewer than two classes with 30 training rows.
    """
    if column not in documents["train"].column_names:
        raise UserError(
            f"probe_column: the data has no column '{column}'; it has {', '.join(documents['train'].column_names)}"
        )

    def labelled(rows: Dataset) -> list[tuple[str, str]]:
        return [(text, str(value).partition("/")[0]) for text, value in zip(rows["text"], rows[column])]

    train, test = labelled(documents["train"]), labelled(documents["test"])
    frequent = Counter(name for _, name in train)
    classes = sorted(name for name, count in frequent.items() if count >= FEWEST_OF_A_CLASS)
    if len(classes) < 2 or not any(name in classes for _, name in test):
        raise UserError(f"probe_column: '{column}' needs two classes of {FEWEST_OF_A_CLASS} training rows or more")
    number = {name: place for place, name in enumerate(classes)}

    def numbered(rows: list[tuple[str, str]]) -> tuple[list[str], torch.Tensor]:
        kept = [(text, number[name]) for text, name in rows if name in number][:MOST_ROWS]
        return [text for text, _ in kept], torch.tensor([label for _, label in kept])

    return Probe(numbered(train), numbered(test), classes)


@torch.no_grad()
def mean_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int, batch_size: int = 64
) -> torch.Tensor:
    """The mean of the last hidden states over a text's tokens, [texts, width], float32."""
    was_training = model.training
    model.eval()
    order = np.argsort([len(text) for text in texts], kind="stable")  # alike ones together: less padding
    states = torch.zeros(len(texts), model.config.hidden_size)
    for begin in range(0, len(texts), batch_size):
        rows = order[begin : begin + batch_size]
        batch = tokenizer(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        ).to(model.device)
        weights = batch["attention_mask"][..., None]
        hidden = model.base_model(**batch).last_hidden_state.float()
        states[rows] = ((hidden * weights).sum(1) / weights.sum(1)).cpu()
    model.train(was_training)
    return states
