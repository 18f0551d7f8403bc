"""Metrics as modules of `evaluate` that need no network; `evaluate.load("recipes/core/metrics/rouge")` opens one."""

from pathlib import Path

import evaluate

FOLDER = Path(__file__).parent


def load(name: str) -> evaluate.EvaluationModule:
    """One of accuracy, chrf, f1, rouge, sacrebleu, seqeval, squad."""
    return evaluate.load(str(FOLDER / name / f"{name}.py"))
