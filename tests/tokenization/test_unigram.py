"""Unigram in the open: brute force over all segmentations, the libraries' best paths, scores and entropies."""

import io
import math
import random
from collections import Counter
from itertools import pairwise

import pytest
import sentencepiece
from tokenizers import Tokenizer, models

from recipes.tokenization.unigram import (
    best_path,
    em_step,
    expected_counts,
    forward,
    log_likelihood,
    losses,
    marginal,
    n_best,
    prune,
    sample,
    seed_vocabulary,
    segmentations,
)

WORDS = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def random_model(rng: random.Random, letters: str = "abc") -> dict[str, float]:
    """The letters and some longer pieces, with probabilities that sum to 1."""
    longer = {"".join(rng.choices(letters, k=rng.randrange(2, 5))) for _ in range(12)}
    weights = {piece: rng.uniform(0.1, 1) for piece in sorted({*letters, *longer})}
    return {piece: math.log(weight / sum(weights.values())) for piece, weight in weights.items()}


def random_word(rng: random.Random, letters: str = "abc", longest: int = 10) -> str:
    return "".join(rng.choices(letters, k=rng.randrange(1, longest)))


def every_cut(text: str, model: dict[str, float]) -> dict[tuple[str, ...], float]:
    """All ways to cut a text, by the bits of a number; those into known pieces, with their log probabilities."""
    found = {}
    for bits in range(2 ** (len(text) - 1)):
        cuts = [0, *(index for index in range(1, len(text)) if bits >> (index - 1) & 1), len(text)]
        pieces = tuple(text[begin:end] for begin, end in pairwise(cuts))
        if all(piece in model for piece in pieces):
            found[pieces] = sum(model[piece] for piece in pieces)
    return found


@pytest.fixture(scope="module")
def trained():
    """sentencepiece's own model of a small text, and its pieces' scores."""
    rng = random.Random(0)
    syllables = ["ba", "ko", "mi", "ru", "tes", "lo"]
    texts = [" ".join("".join(rng.choices(syllables, k=rng.randrange(1, 5))) for _ in range(8)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ordinary = [index for index in range(processor.get_piece_size()) if not processor.is_control(index)]
    scores = {processor.id_to_piece(i): processor.get_score(i) for i in ordinary if not processor.is_unknown(i)}
    return processor, scores, texts[:40]


# ----------------------------------------------------------------------------------------------------------- brute force
@pytest.mark.parametrize("seed", range(30))
def test_the_best_the_sum_and_the_first_few_against_brute_force(seed):
    rng = random.Random(seed)
    model, word = random_model(rng), random_word(rng)
    every = every_cut(word, model)
    assert dict(segmentations(word, model)).keys() == every.keys()
    pieces, score = best_path(word, model)
    assert score == pytest.approx(max(every.values()), abs=1e-12)
    assert score == pytest.approx(every[pieces], abs=1e-12)
    assert math.exp(marginal(word, model)) == pytest.approx(sum(map(math.exp, every.values())), rel=1e-12)
    assert [value for _, value in n_best(word, model, 5)] == pytest.approx(sorted(every.values(), reverse=True)[:5])
    assert len({pieces for pieces, _ in n_best(word, model, 5)}) == min(5, len(every))


@pytest.mark.parametrize("seed", range(10))
def test_the_expected_counts_against_brute_force(seed):
    rng = random.Random(seed)
    model = random_model(rng)
    words = Counter(random_word(rng) for _ in range(6))
    expected: Counter[str] = Counter()
    for word, count in words.items():
        every = {pieces: math.exp(value) for pieces, value in every_cut(word, model).items()}
        for pieces, probability in every.items():
            for piece in pieces:
                expected[piece] += count * probability / sum(every.values())
    assert expected_counts(words, model) == pytest.approx({piece: expected[piece] for piece in model})


def test_what_cannot_be_spelt_has_no_segmentation():
    model = {"a": math.log(0.5), "ab": math.log(0.5)}
    assert best_path("ba", model) == ((), -math.inf)
    assert marginal("ba", model) == -math.inf
    assert forward("ab", model) == pytest.approx([0, math.log(0.5), math.log(0.5)])


# -------------------------------------------------------------------------------------------------------------- learning
def test_the_seed_holds_all_characters_and_what_is_frequent_and_long():
    seed = seed_vocabulary(WORDS, 14)
    assert set("lowernstid") <= set(seed)
    # est stands 9 times (27), low 7 (21), newest 6 (36), widest 3 (18), ewest 6 (30), west 6 (24), newes 6 (30)…
    assert set(seed) - set("lowernstid") == {"newest", "newes", "ewest", "est"}
    assert sum(map(math.exp, seed.values())) == pytest.approx(1)
    assert math.exp(seed["est"] - seed["newest"]) == pytest.approx(9 / 6)


@pytest.mark.parametrize("seed", range(5))
def test_em_never_lowers_the_likelihood_and_keeps_a_distribution(seed):
    rng = random.Random(seed)
    words = Counter(random_word(rng) for _ in range(30))
    model = seed_vocabulary(words, 30)
    likelihoods = [log_likelihood(words, model)]
    for _ in range(8):
        model = em_step(words, model)
        assert sum(map(math.exp, model.values())) == pytest.approx(1)
        likelihoods.append(log_likelihood(words, model))
    assert likelihoods == sorted(likelihoods)
    assert likelihoods[-1] > likelihoods[0] + 1
    counts = expected_counts(words, model)
    lengths = sum(len(piece) * count for piece, count in counts.items())
    assert lengths == pytest.approx(sum(len(word) * count for word, count in words.items()))


def test_em_on_two_segmentations_by_hand():
    """ "ab" twice, a, b and ab each 1/3: a b has 1/9, ab 1/3, so 1/4 and 3/4 of two words; then 0.5, 0.5, 1.5 of 2.5."""
    third = math.log(1 / 3)
    after = em_step({"ab": 2}, {"a": third, "b": third, "ab": third})
    assert {piece: math.exp(value) for piece, value in after.items()} == pytest.approx({"a": 0.2, "b": 0.2, "ab": 0.6})


def test_a_pruning_takes_away_what_is_missed_least():
    model = em_step(WORDS, seed_vocabulary(WORDS, 24))
    pruned, lost = prune(WORDS, model, 0.8)
    assert len(pruned) == round(0.8 * len(model))
    assert set("lowernstid") <= set(pruned)
    gone, stayed = set(model) - set(pruned), set(pruned) & set(lost)
    assert max(lost[piece] for piece in gone) <= min(lost[piece] for piece in stayed)
    assert all(value >= -1e-9 for value in lost.values()), "less choice is never more likely"
    without = {piece: value for piece, value in model.items() if piece != "newest"}
    assert lost["newest"] == pytest.approx(log_likelihood(WORDS, model) - log_likelihood(WORDS, without))
    assert lost == losses(WORDS, model)


def test_characters_stay_however_small_the_share():
    pruned, _ = prune(WORDS, seed_vocabulary(WORDS, 24), 0.01)
    assert set(pruned) == set("lowernstid")


# -------------------------------------------------------------------------------------------------------------- sampling
@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_segmentations_are_drawn_in_proportion(alpha):
    """Pearson's chi-square over all segmentations that are expected five times or more, at p = 0.001 by Wilson-Hilferty."""
    rng = random.Random(1)
    model, number = random_model(rng), 20_000
    word = "abcabca"
    weights = {pieces: math.exp(alpha * value) for pieces, value in every_cut(word, model).items()}
    expected = {pieces: number * weight / sum(weights.values()) for pieces, weight in weights.items()}
    drawn = Counter(sample(word, model, rng, alpha) for _ in range(number))
    assert set(drawn) <= set(expected)
    cells = [pieces for pieces in expected if expected[pieces] >= 5]
    statistic = sum((drawn[pieces] - expected[pieces]) ** 2 / expected[pieces] for pieces in cells)
    freedom = len(cells) - 1
    assert freedom > 5
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


# --------------------------------------------------------------------------------------------------------- the libraries
def test_the_best_path_is_that_of_tokenizers(trained):
    _, scores, texts = trained
    vocabulary = [("<unk>", 0.0), *scores.items()]
    library = Tokenizer(models.Unigram(vocabulary, 0, False))
    for text in texts:
        text = "▁" + text.replace(" ", "▁")
        ours, score = best_path(text, scores)
        theirs = library.encode(text).tokens
        assert "".join(theirs) == text
        assert score == pytest.approx(sum(scores[piece] for piece in theirs), abs=1e-4)
        assert score >= sum(scores[piece] for piece in theirs) - 1e-9
        assert list(ours) == theirs


def test_the_best_path_and_its_score_are_those_of_sentencepiece(trained):
    processor, scores, texts = trained
    for text in texts:
        ours, score = best_path("▁" + text.replace(" ", "▁"), scores)
        theirs = processor.encode(text, out_type=str)
        assert list(ours) == theirs
        assert score == pytest.approx(sum(scores[piece] for piece in theirs), abs=1e-4)


def test_the_n_best_are_those_of_sentencepiece(trained):
    processor, scores, texts = trained
    for text in texts:
        word = text.split()[0]
        theirs = processor.nbest_encode_as_pieces(word, 5)
        ours = n_best("▁" + word, scores, 5)
        assert [sum(scores[piece] for piece in pieces) for pieces in theirs] == pytest.approx(
            [value for _, value in ours], abs=1e-4
        )


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_entropy_of_all_segmentations_is_that_of_sentencepiece(trained, alpha):
    """Entropy holds the sum over all segmentations and every share: H = log Z − Σ p · log-weight."""
    processor, scores, texts = trained
    for word in {text.split()[0] for text in texts}:
        weights = {pieces: alpha * value for pieces, value in segmentations("▁" + word, scores)}
        smoothed = {piece: alpha * value for piece, value in scores.items()}
        log_sum = marginal("▁" + word, smoothed)
        entropy = log_sum - sum(math.exp(value - log_sum) * value for value in weights.values())
        assert processor.calculate_entropy(word, alpha) == pytest.approx(entropy, abs=1e-3)
