"""BPE in the open: the paper's example merge by merge, and every merge of the library by our counts."""

import random
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from recipes.tokenization.bpe import (
    END,
    Merge,
    count_words,
    learn_merges,
    merge_pair,
    pair_frequencies,
    segment,
    split_word,
)

PAPER = {"low": 5, "lower": 2, "newest": 6, "widest": 3}  # Sennrich et al. 2016, algorithm 1
# By hand. Counts at the start: e s, s t and t </w> 9; w e 8; l o and o w 7; n e and e w 6; w </w> 5; w i, i d, d e 3.
BY_HAND = [
    ("e", "s", 9),
    ("es", "t", 9),
    ("est", END, 9),
    ("l", "o", 7),
    ("lo", "w", 7),
    ("n", "e", 6),
    ("ne", "w", 6),
    ("new", "est" + END, 6),
    ("low", END, 5),
    ("w", "i", 3),
]


def random_words(rng: random.Random, letters: str = "abcd") -> Counter[str]:
    return Counter("".join(rng.choices(letters, k=rng.randrange(1, 9))) for _ in range(rng.randrange(5, 40)))


def library(words: Counter[str], vocab_size: int) -> Tokenizer:
    """tokenizers' BPE on words that end in a sign of their own, as the paper's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=1, show_progress=False)
    tokenizer.train_from_iterator([f"{word}·" for word in words.elements()], trainer)
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_the_merges_of_the_papers_example():
    assert [(*merge.pair, merge.frequency) for merge in learn_merges(PAPER, 10)] == BY_HAND


def test_a_new_word_is_cut_by_the_same_merges():
    merges = learn_merges(PAPER, 10)
    assert segment("lowest", merges) == [
        ("l", "o", "w", "e", "s", "t", END),
        ("l", "o", "w", "es", "t", END),
        ("l", "o", "w", "est", END),
        ("l", "o", "w", "est" + END),
        ("lo", "w", "est" + END),
        ("low", "est" + END),
    ]
    assert segment("low", merges)[-1] == ("low" + END,)


def test_pairs_overlap_and_merge_from_the_left():
    assert pair_frequencies({"aaa": split_word("aaa")}, {"aaa": 2}) == {("a", "a"): 4, ("a", END): 2}
    assert merge_pair(("a", "a", "a", "b"), ("a", "a")) == ("aa", "a", "b")


def test_it_stops_where_no_pair_is_frequent_enough():
    words = count_words("ab ab abc")
    assert [merge.pair for merge in learn_merges(words, 100, min_frequency=3)] == [("a", "b")]
    assert learn_merges(words, 100)[-1].frequency == 1
    assert learn_merges({}, 5) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_merge_of_the_library_is_a_most_frequent_pair_by_our_counts(seed):
    """Of equally frequent pairs the library takes another one than the paper's program, so its merges are replayed."""
    words = random_words(random.Random(seed))
    marked = Counter({f"{word}·": count for word, count in words.items()})
    segmented = {word: tuple(word) for word in marked}
    merges = merges_of(library(words, 40))
    assert len(merges) > 5
    for pair in merges:
        frequencies = pair_frequencies(segmented, marked)
        assert frequencies[pair] == max(frequencies.values())
        segmented = {word: merge_pair(symbols, pair) for word, symbols in segmented.items()}


@pytest.mark.parametrize("seed", range(20))
def test_with_the_librarys_merges_words_are_cut_as_by_the_library(seed):
    rng = random.Random(seed)
    tokenizer = library(random_words(rng), 40)
    merges = [Merge((left.replace("·", END), right.replace("·", END)), 1) for left, right in merges_of(tokenizer)]
    known = set(tokenizer.get_vocab())
    for word in random_words(rng):
        if set(word) <= known:
            theirs = tokenizer.encode(f"{word}·").tokens
            assert [symbol.replace(END, "·") for symbol in segment(word, merges)[-1]] == theirs


def test_without_ties_the_merges_are_those_of_the_library():
    words = Counter({"aab": 50, "aabc": 23, "bca": 11, "cab": 5})
    ours = [tuple(part.replace(END, "·") for part in merge.pair) for merge in learn_merges(words, 4)]
    frequencies = [merge.frequency for merge in learn_merges(words, 4)]
    assert len(set(frequencies)) == 4
    assert merges_of(library(words, 8))[:4] == ours
