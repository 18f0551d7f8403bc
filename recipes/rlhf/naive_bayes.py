"""Multinomial naive Bayes over words and bigrams: a judge of text that shares nothing with a neural policy.

Each text counts a feature once, however often it occurs. Source: Wang & Manning 2012, Baselines and Bigrams: Simple,
Good Sentiment and Topic Classification, section 2.1 (binarised MNB, α = 1); for film reviews, Pang, Lee and
Vaithyanathan 2002, Thumbs up?, arXiv cs/0205070.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from recipes.core.errors import UserError
from recipes.core.files import read_json

FILE = "naive_bayes.json"
# Letters only: a grade such as "8/10" would give the label away.
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|[!?]")


def features(text: str, ngrams: int) -> set[str]:
    """The distinct word sequences of 1 to `ngrams` words in a text, in lower case, words joined by a blank."""
    words = WORD.findall(text.lower())
    return {" ".join(words[i : i + n]) for n in range(1, ngrams + 1) for i in range(len(words) - n + 1)}


@dataclass(frozen=True)
class NaiveBayes:
    """A two-class model: the log odds of a text are `prior` plus the `weights` of its known features.

    Attributes:
        positive, negative: the labels.
        ngrams: the longest feature, in words.
        prior: ln p(positive) / p(negative).
        weights: ln p(feature | positive) / p(feature | negative).
    """

    positive: str
    negative: str
    ngrams: int
    prior: float
    weights: dict[str, float]

    def log_odds(self, text: str) -> float:
        """ln p(positive | text) / p(negative | text); features that training did not keep say nothing."""
        known = sorted(features(text, self.ngrams) & self.weights.keys())  # the order of a sum decides its last digit
        return self.prior + sum(self.weights[feature] for feature in known)

    def probability(self, text: str) -> float:
        """p(positive | text), between 0 and 1."""
        return 0.5 + 0.5 * math.tanh(self.log_odds(text) / 2)  # the logistic function, without its overflow

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=0) + "\n"


def fit(texts: Sequence[str], labels: Sequence[str], positive: str, ngrams: int = 2, min_count: int = 1) -> NaiveBayes:
    """Estimate the model with add-one smoothing.

    Args:
        labels: one a text, of two kinds.
        positive: which of the two is positive.
        min_count: features that fewer texts have are left out.

    Raises:
        UserError: the labels are not of two kinds, `positive` is not among them, or no feature is left.
    """
    others = set(labels) - {positive}
    if positive not in labels or len(others) != 1:
        found = ", ".join(sorted(set(labels))[:6])
        raise UserError(f"positive_label: the training split must have '{positive}' and one other; it has {found}")
    (negative,) = others
    counts = {positive: Counter(), negative: Counter()}
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(features(text, ngrams))
    kept = sorted(f for f, count in (counts[positive] + counts[negative]).items() if count >= min_count)
    if not kept:
        raise UserError(f"no feature occurs in {min_count} texts of the training split; lower 'min_count'")
    totals = {label: len(kept) + sum(counts[label][feature] for feature in kept) for label in counts}

    def log_probability(feature: str, label: str) -> float:
        return math.log((counts[label][feature] + 1) / totals[label])

    return NaiveBayes(
        positive=positive,
        negative=negative,
        ngrams=ngrams,
        prior=math.log(list(labels).count(positive) / list(labels).count(negative)),
        weights={feature: log_probability(feature, positive) - log_probability(feature, negative) for feature in kept},
    )


def load(path: str | Path) -> NaiveBayes:
    """The model in a JSON file that holds `NaiveBayes.to_json()`.

    Raises:
        UserError: the file is missing, was cut short, or holds something else.
    """
    found = read_json(Path(path))
    if not isinstance(found, dict) or set(found) != {field.name for field in fields(NaiveBayes)}:
        raise UserError(f"{path}: holds no naive Bayes model; make it with: python -m recipes run rlhf/judge/reviews")
    return NaiveBayes(**found)


def as_reward(folder: str | Path) -> Callable[..., list[float]]:
    """The judge in a finished run's folder as a reward function: p(positive) of each text, between 0 and 1.

    Words are not independent, so single values lie too near 0 and 1; their mean is about the share judged positive. It
    reads prompt and completion together: a completion is a fragment, and "is never" decides what "dull" says. All
    policies get the same prompts, so what a prompt adds by itself favours none. Of a conversation, whose prompt is
    somebody else's, it reads the answer alone.
    """
    model = load(Path(folder) / FILE)

    def judge(prompts: list, completions: list, **columns: Any) -> list[float]:
        pairs = zip(prompts, completions, strict=True)
        return [model.probability(_text(prompt, completion)) for prompt, completion in pairs]

    return judge


def _text(prompt: str | list[dict[str, str]], completion: str | list[dict[str, str]]) -> str:
    if isinstance(completion, list):
        return " ".join(message["content"] for message in completion)
    # Tokenizers of SentencePiece's kind lose the blank before a completion's first word when they decode it.
    lost = prompt[-1:].isalnum() and completion[:1].isalnum()
    return f"{prompt} {completion}" if lost else prompt + completion
