"""BLEU of a corpus; sacrebleu's, with its own tokenization, so that figures can be compared."""

import datasets
import evaluate
import sacrebleu as library


class Sacrebleu(evaluate.Metric):
    """Takes texts, one reference each; returns `score`, from 0 to 100, and the `signature` that says how it was counted."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=type(self).__doc__,
            features=datasets.Features({key: datasets.Value("string") for key in ("predictions", "references")}),
        )

    def _compute(self, predictions, references) -> dict[str, float | str]:
        metric = library.BLEU()
        score = metric.corpus_score(predictions, [references]).score
        return {"score": float(score), "signature": str(metric.get_signature())}
