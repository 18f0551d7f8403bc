"""The unigram language model in the open: the lattice of a word's segmentations, EM, pruning and sampling.

Kudo 2018, Subword Regularization: Improving Neural Network Translation Models with Multiple Subword Candidates, arXiv
1804.10959. A segmentation's probability is the product of its pieces' (section 3.2). All segmentations of a text are the
paths of a lattice, so sums and maxima over them cost no more than its edges. Made to be read; the tests hold it against
brute force, `tokenizers` and `sentencepiece`.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

Model = Mapping[str, float]  # piece: log probability
Pieces = tuple[str, ...]
NOTHING = -math.inf


@dataclass(frozen=True)
class Edge:
    """A piece of the vocabulary that stands in the text from `begin` to `end`, and its log probability."""

    begin: int
    end: int
    piece: str
    log_probability: float


def lattice(text: str, model: Model) -> list[Edge]:
    """Every known piece that stands in the text, by where it begins; a segmentation is a path from 0 to the end."""
    longest = max(map(len, model))
    return [
        Edge(begin, end, text[begin:end], model[text[begin:end]])
        for begin in range(len(text))
        for end in range(begin + 1, min(begin + longest, len(text)) + 1)
        if text[begin:end] in model
    ]


def log_add(values: Sequence[float]) -> float:
    """log Σ exp(v), without overflow."""
    largest = max(values, default=NOTHING)
    return NOTHING if largest == NOTHING else largest + math.log(sum(math.exp(value - largest) for value in values))


# ------------------------------------------------------------------------------------------- one text, all segmentations
def best_path(text: str, model: Model) -> tuple[Pieces, float]:
    """The most probable segmentation and its log probability (section 3.2), by the Viterbi algorithm.

    Returns:
        An empty segmentation and -inf where the vocabulary cannot spell the text.
    """
    return next(iter(n_best(text, model, 1)), ((), NOTHING))


def n_best(text: str, model: Model, number: int) -> list[tuple[Pieces, float]]:
    """The most probable segmentations and their log probabilities, the best first."""
    best: list[list[tuple[float, Pieces]]] = [[(0.0, ())], *([] for _ in text)]
    for edge in lattice(text, model):  # in the order of `begin`, so that all that ends there has been seen
        longer = [(score + edge.log_probability, (*pieces, edge.piece)) for score, pieces in best[edge.begin]]
        best[edge.end] = heapq.nlargest(number, [*best[edge.end], *longer])
    return [(pieces, score) for score, pieces in best[-1]]


def forward(text: str, model: Model) -> list[float]:
    """For each position the log of the summed probability of all ways to get there from the beginning; [len + 1]."""
    arriving: list[list[float]] = [[0.0], *([] for _ in text)]
    for edge in lattice(text, model):
        before = log_add(arriving[edge.begin])
        if before != NOTHING:
            arriving[edge.end].append(before + edge.log_probability)
    return [log_add(values) for values in arriving]


def backward(text: str, model: Model) -> list[float]:
    """For each position the log of the summed probability of all ways from there to the end; [len + 1]."""
    leaving: list[list[float]] = [*([] for _ in text), [0.0]]
    for edge in reversed(lattice(text, model)):
        after = log_add(leaving[edge.end])
        if after != NOTHING:
            leaving[edge.begin].append(after + edge.log_probability)
    return [log_add(values) for values in leaving]


def marginal(text: str, model: Model) -> float:
    """log P(X): the log of the summed probability of all segmentations of the text."""
    return forward(text, model)[-1]


def sample(text: str, model: Model, rng: Random, alpha: float = 1.0) -> Pieces:
    """A segmentation drawn with probability proportional to P(x)^alpha (subword regularisation, section 3.3).

    Forward filtering, backward sampling over all segmentations, which is the paper's l → ∞. A small alpha makes them
    more alike, a large one prefers the best.
    """
    smoothed = {piece: alpha * log_probability for piece, log_probability in model.items()}
    reached = forward(text, smoothed)
    edges = lattice(text, smoothed)
    pieces: list[str] = []
    position = len(text)
    while position:
        arriving = [edge for edge in edges if edge.end == position and reached[edge.begin] != NOTHING]
        weights = [math.exp(reached[edge.begin] + edge.log_probability - reached[position]) for edge in arriving]
        (edge,) = rng.choices(arriving, weights)
        pieces.append(edge.piece)
        position = edge.begin
    return tuple(reversed(pieces))


# -------------------------------------------------------------------------------------------------------------- learning
def seed_vocabulary(words: Mapping[str, int], size: int, longest: int = 16) -> Model:
    """All characters and the substrings with the highest frequency · length, `size` pieces in all (section 3.2, step 1).

    Probabilities are in proportion to the frequencies. Only substrings that stand twice or more are taken.
    """
    frequencies: Counter[str] = Counter()
    for word, count in words.items():
        for begin in range(len(word)):
            for end in range(begin + 1, min(begin + longest, len(word)) + 1):
                frequencies[word[begin:end]] += count
    characters = [piece for piece in frequencies if len(piece) == 1]
    longer = [piece for piece, count in frequencies.items() if len(piece) > 1 and count > 1]
    longer.sort(key=lambda piece: (-frequencies[piece] * len(piece), piece))
    kept = characters + longer[: max(0, size - len(characters))]
    total = sum(frequencies[piece] for piece in kept)
    return {piece: math.log(frequencies[piece] / total) for piece in kept}


def log_likelihood(words: Mapping[str, int], model: Model) -> float:
    """Σ log P(X) over the words of the text (section 3.2), in nats: what EM raises and pruning lowers least."""
    return sum(count * marginal(word, model) for word, count in words.items())


def expected_counts(words: Mapping[str, int], model: Model) -> dict[str, float]:
    """How often each piece is used in expectation over all segmentations (the E step), by forward and backward sums."""
    counts = dict.fromkeys(model, 0.0)
    for word, frequency in words.items():
        before, after = forward(word, model), backward(word, model)
        for edge in lattice(word, model):
            share = math.exp(before[edge.begin] + edge.log_probability + after[edge.end] - before[-1])
            counts[edge.piece] += frequency * share
    return counts


def em_step(words: Mapping[str, int], model: Model) -> Model:
    """The model after one E step and one M step; its likelihood is never lower (section 3.2, step 2a).

    A piece that no segmentation needs gets probability 0 and stays, since no piece is taken away by EM.
    """
    counts = expected_counts(words, model)
    total = sum(counts.values())
    return {piece: math.log(count / total) if count else NOTHING for piece, count in counts.items()}


def losses(words: Mapping[str, int], model: Model) -> dict[str, float]:
    """By how much the likelihood of the text falls when a piece is taken away (section 3.2, step 2b), in nats.

    Single characters are left out: they stay, so that every word can be spelt. Each piece is really taken away, where the
    libraries estimate the loss from the piece's second-best segmentation.
    """
    before = log_likelihood(words, model)
    removable = [piece for piece in model if len(piece) > 1]
    return {
        piece: before - log_likelihood(words, {other: value for other, value in model.items() if other != piece})
        for piece in removable
    }


def prune(words: Mapping[str, int], model: Model, keep: float) -> tuple[Model, dict[str, float]]:
    """The model without the pieces of the smallest loss, and all losses (section 3.2, step 2c).

    Args:
        keep: share of the pieces that stay; the paper's example is 0.8. Single characters always stay.

    Returns:
        The pieces that stay, with the probabilities they had, to be set by the next EM step.
    """
    lost = losses(words, model)
    room = max(0, round(keep * len(model)) - (len(model) - len(lost)))
    kept = set(sorted(lost, key=lambda piece: (-lost[piece], piece))[:room])
    return {piece: value for piece, value in model.items() if len(piece) == 1 or piece in kept}, lost


# ------------------------------------------------------------------------------------------------------------ brute force
def segmentations(text: str, model: Model) -> Iterator[tuple[Pieces, float]]:
    """Every segmentation and its log probability, one by one: 2^(n-1) of them at most, so for short texts only."""
    if not text:
        yield (), 0.0
    for end in range(1, len(text) + 1):
        if text[:end] in model:
            for rest, score in segmentations(text[end:], model):
                yield (text[:end], *rest), model[text[:end]] + score
