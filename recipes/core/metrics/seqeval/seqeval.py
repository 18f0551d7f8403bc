"""Entity-level precision, recall and F1 of tags in the B-/I-/O scheme; seqeval's, as CoNLL-2003 counts entities."""

import datasets
import evaluate
from seqeval.metrics import accuracy_score, classification_report


class Seqeval(evaluate.Metric):
    """Takes a list of tags a sentence; returns `precision`, `recall`, `f1` and the tags' `accuracy`, from 0 to 1.

    An entity counts as found when its type and both its ends are right.
    """

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=type(self).__doc__,
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        report = classification_report(references, predictions, output_dict=True, zero_division=0)
        overall = report["micro avg"]
        return {
            "precision": float(overall["precision"]),
            "recall": float(overall["recall"]),
            "f1": float(overall["f1-score"]),
            "accuracy": float(accuracy_score(references, predictions)),
        }
