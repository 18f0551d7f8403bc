"""Exact match and token F1 of answers, as SQuAD counts them.

Source: Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv 1606.05250, section 6.1.
"""

import re
import string
from collections import Counter

import datasets
import evaluate

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> list[str]:
    """The words of an answer without case, punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION)).split()


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of the shares of words that the two have in common; of empty answers, whether both are."""
    given, wanted = normalize(prediction), normalize(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


class Squad(evaluate.Metric):
    """Takes an answer and a list of accepted answers a question; returns `exact_match` and `f1`, from 0 to 100."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=type(self).__doc__,
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        exact = [
            max(normalize(prediction) == normalize(one) for one in accepted)
            for prediction, accepted in zip(predictions, references, strict=True)
        ]
        overlap = [
            max(token_f1(prediction, one) for one in accepted)
            for prediction, accepted in zip(predictions, references, strict=True)
        ]
        return {"exact_match": 100 * sum(exact) / len(exact), "f1": 100 * sum(overlap) / len(overlap)}
