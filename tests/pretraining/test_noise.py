"""BART's five noises: what each may change and what not, how much of it, and every outcome as likely as it should be."""

import itertools
from collections import Counter

import numpy as np
import pytest

from recipes.pretraining.noise import (
    HIDDEN,
    Noise,
    document_rotation,
    sentence_permutation,
    span_lengths,
    text_infilling,
    token_deletion,
    token_masking,
)

MASK = HIDDEN


@pytest.fixture
def numbers():
    return np.random.default_rng(0)


def is_subsequence(part: list, whole: list) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


def equally_likely(outcomes: Counter, among: int) -> None:
    """Every outcome occurs, and Pearson's statistic is within four standard deviations of its mean."""
    assert len(outcomes) == among
    total = sum(outcomes.values())
    expected = total / among
    statistic = sum((count - expected) ** 2 / expected for count in outcomes.values())
    freedom = among - 1
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


# -------------------------------------------------------------------------------------------------------------- masking
@pytest.mark.parametrize("size", [1, 2, 7, 40, 100])
def test_masking_changes_a_share_of_the_tokens_and_nothing_else(size, numbers):
    for _ in range(50):
        tokens = numbers.integers(0, 9, size)
        noised = token_masking(tokens, 0.3, MASK, numbers)
        assert len(noised) == size
        hidden = noised == MASK
        assert hidden.sum() == round(0.3 * size)
        assert (noised[~hidden] == tokens[~hidden]).all()
        assert (tokens != MASK).all(), "the document itself is left as it was"


def test_every_set_of_tokens_is_as_likely_to_be_masked(numbers):
    found = Counter(tuple(token_masking(np.arange(6), 1 / 3, MASK, numbers)) for _ in range(6000))
    equally_likely(found, 15)


# ------------------------------------------------------------------------------------------------------------- deletion
@pytest.mark.parametrize("size", [1, 2, 7, 40, 100])
def test_deletion_leaves_the_others_in_order(size, numbers):
    for _ in range(50):
        tokens = numbers.integers(0, 9, size)
        noised = token_deletion(tokens, 0.3, numbers)
        assert len(noised) == size - round(0.3 * size)
        assert is_subsequence(noised.tolist(), tokens.tolist())
        assert MASK not in noised


def test_every_set_of_tokens_is_as_likely_to_be_deleted(numbers):
    equally_likely(Counter(tuple(token_deletion(np.arange(6), 0.5, numbers)) for _ in range(8000)), 20)


# ------------------------------------------------------------------------------------------------------------ infilling
@pytest.mark.parametrize("share", [0.15, 0.3, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 40, 200])
def test_infilling_hides_a_share_of_the_tokens_and_keeps_the_others_in_order(size, share, numbers):
    for _ in range(50):
        tokens = np.arange(size)
        noised = text_infilling(tokens, share, 3.0, MASK, numbers)
        kept = noised[noised != MASK]
        assert len(kept) == size - round(share * size)
        assert is_subsequence(kept.tolist(), tokens.tolist())
        # Where tokens are missing there is a mask: at most one run of missing tokens stands between two that are kept.
        marked = [-1, *noised.tolist(), size]
        gaps = [place for place, token in enumerate(marked) if token != MASK or place in (0, len(marked) - 1)]
        for left, right in itertools.pairwise(gaps):
            if marked[right] - marked[left] > 1:
                assert right - left > 1


def test_lengths_are_poisson_with_mean_three(numbers):
    """Of all lengths but the last of a document, which was cut; they stop when full, so many spans are drawn at once."""
    lengths = np.concatenate([span_lengths(3000, 3.0, numbers)[:-1] for _ in range(200)])
    assert len(lengths) > 190_000
    assert lengths.mean() == pytest.approx(3.0, abs=4 * (3 / len(lengths)) ** 0.5 + 0.01)
    for length in range(9):
        probability = np.exp(-3.0) * 3.0**length / np.prod(np.arange(1, length + 1))
        deviation = (probability * (1 - probability) / len(lengths)) ** 0.5
        assert (lengths == length).mean() == pytest.approx(probability, abs=4.5 * deviation)


@pytest.mark.parametrize("total", [0, 1, 2, 5, 30])
def test_lengths_add_up(total, numbers):
    for _ in range(200):
        assert span_lengths(total, 3.0, numbers).sum() == total


def test_a_span_of_no_tokens_is_a_mask_put_in(numbers, monkeypatch):
    monkeypatch.setattr("recipes.pretraining.noise.span_lengths", lambda *_: np.asarray([0, 0, 0]))
    noised = text_infilling(np.arange(20), 0.3, 3.0, MASK, numbers)
    assert noised[noised != MASK].tolist() == list(range(20))
    assert (noised == MASK).sum() == 3


def test_every_arrangement_of_given_spans_is_as_likely(numbers, monkeypatch):
    """Spans of 2 and 0 tokens in a document of 5: three kept tokens and two masks, which a brute force lists."""
    monkeypatch.setattr("recipes.pretraining.noise.span_lengths", lambda *_: np.asarray([2, 0]))
    found = Counter(tuple(text_infilling(np.arange(5), 0.4, 3.0, MASK, numbers).tolist()) for _ in range(20_000))
    expected = Counter()
    for places, lengths in itertools.product(itertools.combinations(range(5), 2), [(2, 0), (0, 2)]):
        document, noised = list(range(5)), []
        spans = iter(lengths)
        for place in range(5):
            if place in places:
                document = document[next(spans) :]
                noised.append(MASK)
            else:
                noised.append(document.pop(0))
        expected[tuple(noised)] += 1
    assert set(found) == set(expected)
    for noised, ways in expected.items():
        share = ways / 20
        assert found[noised] / 20_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)


# ---------------------------------------------------------------------------------------------------------- permutation
def can_be_joined(text: list, parts: list[list]) -> bool:
    """Whether the text is these parts in some order."""
    if not parts:
        return not text
    return any(
        text[: len(part)] == part and can_be_joined(text[len(part) :], parts[:place] + parts[place + 1 :])
        for place, part in enumerate(parts)
    )


def test_sentences_are_permuted_whole(numbers):
    for _ in range(200):
        lengths = numbers.integers(1, 6, numbers.integers(1, 7))
        sentences = np.concatenate([[0], np.cumsum(lengths)])
        tokens = numbers.integers(0, 50, sentences[-1])
        noised = sentence_permutation(tokens, sentences, numbers)
        waiting = [tokens[begin:end].tolist() for begin, end in itertools.pairwise(sentences)]
        assert can_be_joined(noised.tolist(), waiting)


def test_every_order_of_sentences_is_as_likely(numbers):
    sentences = np.asarray([0, 2, 3, 6, 7])
    found = Counter(tuple(sentence_permutation(np.arange(7), sentences, numbers)) for _ in range(6000))
    equally_likely(found, 24)


# ------------------------------------------------------------------------------------------------------------- rotation
def test_a_document_is_rotated_to_begin_at_any_token(numbers):
    found = Counter(tuple(document_rotation(np.arange(7), numbers).tolist()) for _ in range(3000))
    assert set(found) == {tuple((np.arange(7) + shift) % 7) for shift in range(7)}
    equally_likely(found, 7)


# ------------------------------------------------------------------------------------------------------------- together
def figure_2():
    """The document of the paper's figure 2, `A B C . D E .`, and its sentences."""
    return np.asarray([ord(letter) for letter in "ABC.DE."]), np.asarray([0, 4, 7])


def noised_texts(kinds: list[str], share: float, numbers) -> set[str]:
    tokens, sentences = figure_2()
    noise = Noise(kinds, share, 3.0)
    places = [noise(len(tokens), sentences, numbers) for _ in range(20_000)]
    return {"".join("_" if place == HIDDEN else chr(tokens[place]) for place in noised) for noised in places}


def test_the_documents_of_figure_2_come_about(numbers):
    assert "A_C._E." in noised_texts(["token_masking"], 2 / 7, numbers)
    assert "AC.E." in noised_texts(["token_deletion"], 2 / 7, numbers)
    assert "DE.ABC." in noised_texts(["sentence_permutation"], 0.3, numbers)
    assert "C.DE.AB" in noised_texts(["document_rotation"], 0.3, numbers)
    assert "A_.D_E." in noised_texts(["text_infilling"], 2 / 7, numbers)


def test_the_papers_mix_permutes_sentences_and_hides_spans(numbers):
    texts = noised_texts(["sentence_permutation", "text_infilling"], 2 / 7, numbers)
    assert "A_.D_E." in texts
    assert "D_E.A_." in texts
    for text in texts:
        kept = text.replace("_", "")
        assert len(kept) == 5
        assert is_subsequence(list(kept), list("ABC.DE.")) or is_subsequence(list(kept), list("DE.ABC."))


def test_rotation_after_masking_rotates_what_was_masked(numbers):
    for text in noised_texts(["token_masking", "document_rotation"], 2 / 7, numbers):
        assert text.count("_") == 2
        rotations = {"ABC.DE."[shift:] + "ABC.DE."[:shift] for shift in range(7)}
        assert any(all(a in (b, "_") for a, b in zip(text, rotation)) for rotation in rotations)
