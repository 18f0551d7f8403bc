"""WordPiece in the open: the score of every pair, the pieces that follow from it, and the longest match first.

Schuster & Nakajima 2012, Japanese and Korean Voice Search, section 3: of all pairs the one is joined that raises the
likelihood of the text most. In the form in which the method is known, a pair's frequency is held against those of its
parts, freq(ab) / (freq(a) · freq(b)), so that two pieces are joined which rarely stand apart, however rare they are.
BERT's encoder is Devlin et al. 2019's, arXiv 1810.04805. The code that learned BERT's vocabulary was never published, and
the `tokenizers` library learns WordPiece by frequency, as BPE; the tests hold the encoder against the library and the
learner against a brute-force one.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from recipes.tokenization.bpe import Pair, Symbols, merge_pair, pair_frequencies

CONTINUES = "##"


@dataclass(frozen=True)
class Join:
    """One step of learning: the pair with the highest score, its frequency and those of its two parts."""

    pair: Pair
    frequency: int
    left: int
    right: int

    @property
    def piece(self) -> str:
        return join(self.pair)

    @property
    def score(self) -> Fraction:
        """freq(ab) / (freq(a) · freq(b)), exact, since scores are often equal."""
        return Fraction(self.frequency, self.left * self.right)


def split_word(word: str) -> Symbols:
    """The characters of a word, each but the first marked as one that continues it."""
    return (word[0], *(CONTINUES + character for character in word[1:]))


def join(pair: Pair) -> str:
    return pair[0] + pair[1].removeprefix(CONTINUES)


def score_pairs(segmented: Mapping[str, Sequence[str]], words: Mapping[str, int]) -> list[Join]:
    """Every pair of neighbours in the text with its frequency and its score, in the order of the text.

    Args:
        segmented: the pieces that each word consists of at present.
        words: how often each word stands in the text.
    """
    alone: Counter[str] = Counter()
    for word, pieces in segmented.items():
        for piece in pieces:
            alone[piece] += words[word]
    pairs = pair_frequencies(segmented, words)
    return [Join(pair, frequency, alone[pair[0]], alone[pair[1]]) for pair, frequency in pairs.items()]


def learn_pieces(words: Mapping[str, int], number: int, min_frequency: int = 1) -> list[list[Join]]:
    """The first `number` steps of learning, each with all scores of the moment, the pair that was joined first.

    Args:
        words: how often each word stands in the text, in the order of the text.
        min_frequency: a pair that stands less often is not joined. The score favours what is rare: two signs that occur
            once each, side by side, have the highest score there is.
    """
    segmented = {word: split_word(word) for word in words}
    steps: list[list[Join]] = []
    while len(steps) < number:
        scored = sorted(score_pairs(segmented, words), key=lambda each: -each.score)  # stable: the first in the text
        frequent = [each for each in scored if each.frequency >= min_frequency]
        if not frequent:
            break
        best = frequent[0]
        segmented = {word: merge_pair(pieces, best.pair, best.piece) for word, pieces in segmented.items()}
        steps.append([best, *(each for each in scored if each is not best)])
    return steps


def alphabet(words: Mapping[str, int]) -> list[str]:
    """The pieces of one character that the words consist of, in the order of the text."""
    return list(dict.fromkeys(piece for word in words for piece in split_word(word)))


def encode(word: str, vocabulary: Collection[str], unknown: str = "[UNK]") -> list[str]:
    """The longest known piece first, then the longest that continues it; a word with any other rest is unknown."""
    pieces: list[str] = []
    begin = 0
    while begin < len(word):
        mark = CONTINUES if begin else ""
        end = next((end for end in range(len(word), begin, -1) if mark + word[begin:end] in vocabulary), None)
        if end is None:
            return [unknown]
        pieces.append(mark + word[begin:end])
        begin = end
    return pieces
