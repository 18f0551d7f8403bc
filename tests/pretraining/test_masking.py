"""The masks of BERT and RoBERTa: what may be chosen, how much of it, and what stands in its place."""

import numpy as np
import pytest

from recipes.pretraining.masking import IGNORED, MaskingCollator, choose, conceal


def words_of(lengths: list[int], before: int = 1, after: int = 1) -> list[int]:
    """Word numbers of a row: special tokens around words of these lengths."""
    return [-1] * before + [word for word, length in enumerate(lengths) for _ in range(length)] + [-1] * after


def padded(rows: list[list[int]], width: int) -> np.ndarray:
    return np.asarray([row + [-1] * (width - len(row)) for row in rows])


def chosen_one_by_one(words: list[int], numbers: np.ndarray, share: float) -> list[bool]:
    """BERT's loop over shuffled words: each is taken if it does not exceed what is left."""
    present = sorted({word for word in words if word >= 0}, key=lambda word: numbers[word])
    left = max(1, round(sum(word >= 0 for word in words) * share))
    taken = set()
    for word in present:
        if words.count(word) <= left:
            taken.add(word)
            left -= words.count(word)
    return [word in taken for word in words]


@pytest.mark.parametrize("share", [0.05, 0.15, 0.4, 0.9])
@pytest.mark.parametrize("longest", [1, 2, 5])
def test_it_chooses_what_a_loop_over_words_chooses(share, longest):
    numbers = np.random.default_rng(longest)
    rows = [words_of(numbers.integers(1, longest + 1, numbers.integers(1, 25)).tolist()) for _ in range(200)]
    width = max(map(len, rows))
    words, uniform = padded(rows, width), numbers.random((len(rows), width))
    chosen = choose(words, uniform, share)
    expected = [chosen_one_by_one(row, uniform[place], share) for place, row in enumerate(words.tolist())]
    assert chosen.tolist() == expected
    assert chosen.any()


def test_where_each_token_is_a_word_the_share_is_exact_and_each_is_as_likely():
    words = padded([words_of([1] * 38)] * 20_000, 44)
    chosen = choose(words, np.random.default_rng(0).random(words.shape), 0.15)
    assert set(chosen.sum(1)) == {6}, "15 % of 38, rounded"
    by_place = chosen.mean(0)
    assert by_place[0] == 0
    assert (by_place[39:] == 0).all()
    # 20,000 draws of probability 6/38: the standard deviation of a share is 0.0026.
    assert by_place[1:39] == pytest.approx(np.full(38, 6 / 38), abs=4.5 * 0.0026)


def test_a_row_that_is_short_has_at_least_one_to_guess():
    words = padded([words_of([1]), words_of([1, 1])], 6)
    assert choose(words, np.random.default_rng(0).random(words.shape), 0.15).sum(1).tolist() == [1, 1]


def test_a_row_of_special_tokens_has_nothing_to_guess():
    assert not choose(np.full((2, 5), -1), np.zeros((2, 5)), 0.15).any()


def test_of_the_chosen_eight_in_ten_are_masked_one_is_random_and_one_stays():
    numbers = np.random.default_rng(0)
    shape, mask, vocabulary = (1000, 400), 4, 1000
    tokens = numbers.integers(5, vocabulary, shape)
    chosen = numbers.random(shape) < 0.15
    substitutes = numbers.integers(vocabulary, 2 * vocabulary, shape)  # none is among the tokens
    found = conceal(tokens, chosen, numbers.random(shape), substitutes, mask)
    assert (found[~chosen] == tokens[~chosen]).all()
    count = chosen.sum()
    for share, kind in ((0.8, found == mask), (0.1, found == substitutes), (0.1, found == tokens)):
        deviation = (share * (1 - share) / count) ** 0.5
        assert (kind & chosen).sum() / count == pytest.approx(share, abs=4 * deviation)
    assert ((found == mask) | (found == substitutes) | (found == tokens)).all()


# ------------------------------------------------------------------------------------------------------------ collator
def row(length: int, number: int, epoch: int = 0) -> dict:
    tokens = np.random.default_rng(number).integers(5, 30, length)
    tokens[[0, -1]] = 2, 3
    return {"input_ids": tokens, "words": np.asarray(words_of([1] * (length - 2))), "draw": (0, epoch, number)}


@pytest.fixture
def collator(wordpiece):
    return MaskingCollator(wordpiece, 0.15, seed=7)


def test_a_batch_holds_the_rows_their_padding_and_the_truth_of_what_was_chosen(collator, wordpiece):
    rows = [row(30, 0), row(18, 1), row(24, 2)]
    batch = {name: values.numpy() for name, values in collator(rows).items()}
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for place, each in enumerate(rows):
        length = len(each["input_ids"])
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (30 - length)
        assert (batch["input_ids"][place, length:] == wordpiece.pad_token_id).all()
        assert (batch["labels"][place, length:] == IGNORED).all()
        chosen = batch["labels"][place, :length] != IGNORED
        assert chosen.sum() == round(0.15 * (length - 2))
        assert not chosen[[0, -1]].any(), "special tokens are not guessed"
        assert (batch["labels"][place, :length][chosen] == each["input_ids"][chosen]).all()
        assert (batch["input_ids"][place, :length][~chosen] == each["input_ids"][~chosen]).all()


def test_a_random_token_is_never_a_special_one(collator, wordpiece):
    batch = collator([row(200, number) for number in range(200)])
    chosen = batch["labels"] != IGNORED
    replaced = batch["input_ids"][chosen]
    shown = set(replaced.tolist())
    assert shown & set(wordpiece.all_special_ids) == {wordpiece.mask_token_id}
    assert len(shown) > 40, "every other token turns up"


def test_a_mask_depends_on_seed_epoch_and_row_alone(collator, wordpiece):
    alone = collator([row(20, 3)])["input_ids"][0]
    beside = collator([row(40, 1), row(20, 3), row(9, 2)])["input_ids"][1, :20]
    assert alone.equal(beside)
    for other in (collator([row(20, 3, epoch=1)]), MaskingCollator(wordpiece, 0.15, seed=8)([row(20, 3)])):
        assert not alone.equal(other["input_ids"][0])


def test_pieces_of_a_word_are_hidden_together(documents, wordpiece):
    from recipes.pretraining.segments import SegmentDataset
    from recipes.pretraining.sentences import read_corpus

    rows = SegmentDataset(read_corpus(documents, wordpiece, words=True), wordpiece, 64, pairs=True)
    batch = MaskingCollator(wordpiece, 0.15, seed=0)([rows[place] for place in range(len(rows))])
    whole = 0
    for place in range(len(rows)):
        ids, words = rows[place]["input_ids"], rows[place]["words"]
        chosen = (batch["labels"][place, : len(ids)] != IGNORED).numpy()
        pieces = wordpiece.convert_ids_to_tokens(ids)
        for position in range(1, len(ids)):
            # A word whose front was cut off begins with a piece.
            if pieces[position].startswith("##") and words[position - 1] >= 0:
                assert words[position] == words[position - 1]
                assert chosen[position] == chosen[position - 1]
                whole += chosen[position]
        assert 1 <= chosen.sum() <= max(1, round((words >= 0).sum() * 0.15))
    assert whole > 20


@pytest.mark.real_data
def test_words_are_those_of_berts_own_vocabulary(root):
    """A new word begins where a piece has no `##`, on BERT's published vocabulary and real text."""
    from datasets import Dataset
    from transformers import BertTokenizer

    from recipes.pretraining.sentences import read_corpus

    data = root.parent / "shared" / "data"
    text = (data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")[:50_000]
    tokenizer = BertTokenizer.from_pretrained(str(data / "tok_bert" / "bert-base-uncased-vocab.txt"))
    corpus = read_corpus(Dataset.from_dict({"text": text.split("\n \n")}), tokenizer, words=True)
    pieces = tokenizer.convert_ids_to_tokens(corpus.tokens.tolist())
    expected = [not piece.startswith("##") for piece in pieces]
    assert corpus.word_starts.tolist() == expected
    assert 0.02 < 1 - np.mean(expected) < 0.5
