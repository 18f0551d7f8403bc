"""Explain: how BPE, WordPiece and Unigram make a vocabulary of one short text, step by step, and how they cut a word.

Paper: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1; Schuster & Nakajima 2012, section 3; Kudo 2018, Subword
       Regularization, arXiv 1804.10959, sections 3.2 and 3.3.
Run:   python -m recipes.tokenization.explain --config configs/tokenization/explain/quickstart.yaml
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from recipes.core import Run, TaskConfig, UserError, recipe
from recipes.tokenization import bpe, explain_report, unigram, wordpiece

BRUTE_FORCE = 16  # characters; a word of more has too many segmentations to go through one by one


@dataclass
class ExplainConfig(TaskConfig):
    """The text that is learned from, the words that are cut, and how far to go."""

    text: str = field(default="", metadata={"help": "What the vocabularies are made of; white space separates words."})
    words: list[str] = field(default_factory=list, metadata={"help": "What is cut, seen or new; the first in detail."})
    merges: int = field(default=10, metadata={"help": "Steps of BPE and of WordPiece."})
    min_frequency: int = field(default=1, metadata={"help": "A pair seen less often is not joined."})
    seed_size: int = field(default=30, metadata={"help": "Unigram: pieces before the first pruning."})
    keep: float = field(default=0.8, metadata={"help": "Unigram: share of the pieces that a pruning leaves."})
    samples: int = field(default=1000, metadata={"help": "Segmentations drawn of the first word."})
    alpha: float = field(default=1.0, metadata={"help": "Smoothing of the sampling; below 1 evens out."})

    def __post_init__(self):
        if not self.text.strip():
            raise UserError("'text' is empty; write a few words to learn from")
        self.words = self.words or list(dict.fromkeys(self.text.split()))[:3]
        for word in self.words:
            if not word or word.split() != [word]:
                raise UserError(f"'words': {word!r} is not one word")
        unknown = sorted(set(self.words[0]) - set(self.text))
        if unknown:
            raise UserError(f"'words': the text has no '{unknown[0]}', so '{self.words[0]}' has no segmentation")
        if len(self.words[0]) > BRUTE_FORCE:
            raise UserError(f"'words': the first must have at most {BRUTE_FORCE} characters, not {len(self.words[0])}")
        for key in ("merges", "min_frequency", "samples"):
            if getattr(self, key) < 1:
                raise UserError(f"'{key}' must be at least 1, not {getattr(self, key)}")
        characters = len(set("".join(self.text.split())))
        if self.seed_size <= characters:
            raise UserError(
                f"'seed_size' must be above {characters}, the characters of the text, not {self.seed_size}"
            )
        if not 0 < self.keep < 1:
            raise UserError(f"'keep' must lie between 0 and 1, not {self.keep}")
        if not self.alpha > 0:
            raise UserError(f"'alpha' must be above 0, not {self.alpha}")


@recipe
def main(run: Run, method: ExplainConfig) -> None:
    words, first = bpe.count_words(method.text), method.words[0]

    merges = bpe.learn_merges(words, method.merges, method.min_frequency)
    joins = wordpiece.learn_pieces(words, method.merges, method.min_frequency)

    seed = unigram.seed_vocabulary(words, method.seed_size)
    model = unigram.em_step(words, seed)
    pruned, losses = unigram.prune(words, model, method.keep)
    again = unigram.em_step(words, pruned)
    best, log_best = unigram.best_path(first, model)

    rng = Random(method.seed)
    drawn = Counter(unigram.sample(first, model, rng, method.alpha) for _ in range(method.samples))
    every = dict(unigram.segmentations(first, model))
    weights = {pieces: math.exp(method.alpha * (value - max(every.values()))) for pieces, value in every.items()}
    exact = {pieces: weight / sum(weights.values()) for pieces, weight in weights.items()}

    report = "\n".join(
        [
            *explain_report.words(words),
            *explain_report.bpe(merges, method.words),
            *explain_report.wordpiece(words, joins, method.words),
            *explain_report.unigram_learning(words, seed, model, pruned, losses, again),
            *explain_report.unigram_lattice(first, model),
            *explain_report.unigram_sampling(first, exact, drawn, method.alpha),
        ]
    )
    print(report)
    run.write("explain.md", report)
    run.record(
        merges=[["".join(merge.pair), merge.frequency] for merge in merges],
        wordpiece=[[step[0].piece, float(step[0].score)] for step in joins],
        best_segmentation=list(best),
        best_probability=math.exp(log_best),
        marginal_probability=math.exp(unigram.marginal(first, model)),
        segmentations=len(every),
        # Half the sum of absolute differences: 0 where the samples are spread exactly as they should be.
        sampling_deviation=sum(abs(exact[pieces] - drawn[pieces] / method.samples) for pieces in exact) / 2,
        log_likelihood=unigram.log_likelihood(words, model),
        log_likelihood_pruned=unigram.log_likelihood(words, again),
        pieces=len(model),
        pieces_pruned=len(pruned),
        baselines={
            "best_probability": math.exp(max(every.values())),
            "marginal_probability": sum(map(math.exp, every.values())),
            "sampling_deviation": 0.0,
            "log_likelihood": unigram.log_likelihood(words, seed),
        },
    )


if __name__ == "__main__":
    main()
