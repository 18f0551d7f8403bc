"""Judge: naive Bayes that says how positive a text is, for texts of a policy that neither it nor its data trained.

Paper: Wang & Manning 2012, Baselines and Bigrams: Simple, Good Sentiment and Topic Classification, section 2.1;
       Gao et al. 2022, Scaling Laws for Reward Model Overoptimization, arXiv 2210.10760, for why a second judge.
Run:   python -m recipes.rlhf.judge --config configs/rlhf/judge/reviews.yaml
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset

from recipes.core import DataConfig, Run, TaskConfig, UserError, recipe
from recipes.rlhf import naive_bayes


@dataclass
class JudgeConfig(TaskConfig):
    """What the judge looks at in a text."""

    positive_label: str = field(default="positive", metadata={"help": "The label whose probability is the score."})
    ngrams: int = field(default=2, metadata={"help": "Longest run of words that is a feature; 1 takes single words."})
    min_count: int = field(default=2, metadata={"help": "A feature that fewer training texts have is left out."})

    def __post_init__(self):
        for key in ("ngrams", "min_count"):
            if getattr(self, key) < 1:
                raise UserError(f"'{key}' must be at least 1, not {getattr(self, key)}")


@recipe
def main(run: Run, data: DataConfig, method: JudgeConfig) -> None:
    texts = data.load(("text", "label"))
    labels = {split: labels_of(rows, split) for split, rows in texts.items()}

    judge = naive_bayes.fit(
        texts["train"]["text"][:], labels["train"], method.positive_label, method.ngrams, method.min_count
    )
    measured, baselines = accuracy(judge, texts["test"]["text"][:], labels["test"]) if "test" in texts else ({}, {})

    run.write(naive_bayes.FILE, judge.to_json())
    run.record(features=len(judge.weights), training_texts=len(texts["train"]), **measured, baselines=baselines)


def labels_of(rows: Dataset, split: str) -> list[str]:
    """The labels as text.

    Raises:
        UserError: a row has none.
    """
    labels = rows["label"][:]
    if None in labels:
        raise UserError(f"{split} row {labels.index(None) + 1}, column 'label': is empty")
    return [str(label) for label in labels]


def accuracy(
    judge: naive_bayes.NaiveBayes, texts: Sequence[str], labels: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Share of texts judged as they are labelled and the mean score of either kind, with what ignorance would reach.

    Raises:
        UserError: a label that the judge was not trained on, or no text of one kind.
    """
    scores: dict[str, list[float]] = {judge.positive: [], judge.negative: []}
    for row, (text, label) in enumerate(zip(texts, labels), 1):
        if label not in scores:
            raise UserError(f"test row {row}, column 'label': '{label}' is not a label of the training split")
        scores[label].append(judge.probability(text))
    if not all(scores.values()):
        raise UserError("the test split must have texts of both labels")
    right = sum(score > 0.5 for score in scores[judge.positive]) + sum(s <= 0.5 for s in scores[judge.negative])
    measured = {
        "accuracy": right / len(texts),
        "score_of_positive_texts": sum(scores[judge.positive]) / len(scores[judge.positive]),
        "score_of_negative_texts": sum(scores[judge.negative]) / len(scores[judge.negative]),
    }
    return measured, {"accuracy": max(map(len, scores.values())) / len(texts)}


if __name__ == "__main__":
    main()
