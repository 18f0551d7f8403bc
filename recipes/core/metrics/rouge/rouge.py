"""ROUGE: overlap of a summary with its reference; rouge_score's."""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class Rouge(evaluate.Metric):
    """Takes texts; returns the mean F-measure of `rouge1`, `rouge2` (unigrams, bigrams), `rougeL` and `rougeLsum` (longest
    common subsequence of all, and line by line), from 0 to 1. Words are stemmed.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=type(self).__doc__,
            features=datasets.Features({key: datasets.Value("string") for key in ("predictions", "references")}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        scorer = RougeScorer(KINDS, use_stemmer=True)
        scores = [scorer.score(wanted, given) for given, wanted in zip(predictions, references, strict=True)]
        return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in KINDS}
