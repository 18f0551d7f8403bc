"""WordPiece in the open: scores by hand and by brute force, and BERT's encoder against the library's."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from tokenizers import Tokenizer, models

from recipes.tokenization.wordpiece import alphabet, encode, learn_pieces, score_pairs, split_word

WORDS = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
# By hand. Frequencies: l 7, ##o 7, ##w 13 (low, lower, newest), w 3, ##i 3, ##d 3, n 6, ##e 17, ##s 9, ##t 9, ##r 2.
SCORES = {
    ("l", "##o"): Fraction(7, 7 * 7),
    ("##o", "##w"): Fraction(7, 7 * 13),
    ("##w", "##e"): Fraction(8, 13 * 17),
    ("##e", "##r"): Fraction(2, 17 * 2),
    ("n", "##e"): Fraction(6, 6 * 17),
    ("##e", "##w"): Fraction(6, 17 * 13),
    ("##e", "##s"): Fraction(9, 17 * 9),
    ("##s", "##t"): Fraction(9, 9 * 9),
    ("w", "##i"): Fraction(3, 3 * 3),
    ("##i", "##d"): Fraction(3, 3 * 3),
    ("##d", "##e"): Fraction(3, 3 * 17),
}
# w and ##i never stand apart, nor wi and ##d: rare, and yet first. Then l ##o; then ##s ##t, which at 1/9 are ahead of
# lo ##w at 7/(7·13) = 1/13.
BY_HAND = [("wi", Fraction(1, 3)), ("wid", Fraction(1, 3)), ("lo", Fraction(1, 7)), ("##st", Fraction(1, 9))]
BY_HAND += [("low", Fraction(1, 13))]


def random_words(rng: random.Random, letters: str = "abcd") -> Counter[str]:
    return Counter("".join(rng.choices(letters, k=rng.randrange(1, 9))) for _ in range(rng.randrange(5, 40)))


def test_all_scores_of_an_example():
    scored = score_pairs({word: split_word(word) for word in WORDS}, WORDS)
    assert {each.pair: each.score for each in scored} == SCORES


def test_the_pieces_of_an_example():
    assert [(step[0].piece, step[0].score) for step in learn_pieces(WORDS, 5)] == BY_HAND


def test_a_step_lists_every_pair_the_best_first():
    first = learn_pieces(WORDS, 1)[0]
    assert {each.pair for each in first} == set(SCORES)
    assert [each.score for each in first] == sorted(SCORES.values(), reverse=True)


def test_what_is_rare_is_left_alone_where_a_frequency_is_asked_for():
    for step in learn_pieces(WORDS, 20, min_frequency=6):
        assert step[0].frequency >= 6
    assert learn_pieces(WORDS, 20, min_frequency=6)[0][0].piece == "lo"


@pytest.mark.parametrize("seed", range(20))
def test_the_first_step_against_counting_in_the_text(seed):
    """Frequencies counted letter by letter in the words as they stand, without any of our functions."""
    words = random_words(random.Random(seed), "abc")
    if max(map(len, words)) < 2:
        pytest.skip("no pair")
    alone, together = Counter(), Counter()
    for word in words.elements():
        for index in range(len(word)):
            alone[word[index], index > 0] += 1
            if index:
                together[word[index - 1], index > 1, word[index]] += 1
    best = max(
        Fraction(count, alone[left, inside] * alone[right, True]) for (left, inside, right), count in together.items()
    )
    assert learn_pieces(words, 1)[0][0].score == best


@pytest.mark.parametrize("seed", range(20))
def test_words_are_cut_as_by_the_library(seed):
    rng = random.Random(seed)
    words = random_words(rng)
    known = [*alphabet(words), *(step[0].piece for step in learn_pieces(words, 12))]
    for piece in rng.sample(known, 2):  # some words become unknown
        known.remove(piece)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(["[UNK]", *known]))}
    library = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    new = list(random_words(rng))
    assert [encode(word, vocabulary) for word in new] == [library.encode(word).tokens for word in new]


def test_a_word_whose_rest_is_unknown_is_unknown_as_a_whole():
    assert encode("lowx", {"low", "##w"}) == ["[UNK]"]
    assert encode("low", {"l", "lo", "##o", "##w", "##ow"}) == ["lo", "##w"]
