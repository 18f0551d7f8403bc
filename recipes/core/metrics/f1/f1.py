"""F1: the harmonic mean of precision and recall; scikit-learn's."""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    """Takes label numbers and how to average over the labels (macro, micro, weighted, binary); returns `f1`, from 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=type(self).__doc__,
            features=datasets.Features({key: datasets.Value("int64") for key in ("predictions", "references")}),
        )

    def _compute(self, predictions, references, average: str = "macro") -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, average=average, zero_division=0.0))}
