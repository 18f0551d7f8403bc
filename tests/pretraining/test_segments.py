"""Rows of BERT and RoBERTa: pairs of which half go on, full sentences, and rows that no worker changes."""

from collections import Counter

import numpy as np
import pytest

from recipes.core import UserError
from recipes.pretraining.drawn_rows import CountEpochs
from recipes.pretraining.masking import MaskingCollator
from recipes.pretraining.segments import SegmentDataset, _cut_to_fit, full_sentences, sentence_pairs
from recipes.pretraining.sentences import Corpus, read_corpus, split_sentences


def corpus_of(documents: list[list[int]]) -> Corpus:
    """Documents as the lengths of their sentences; each token is its own place."""
    lengths = [length for document in documents for length in document]
    return Corpus(
        tokens=np.arange(sum(lengths)),
        word_starts=None,
        sentences=np.concatenate([[0], np.cumsum(lengths)]),
        documents=np.concatenate([[0], np.cumsum([len(document) for document in documents])]),
        bytes=0,
    )


@pytest.fixture(scope="module")
def many() -> Corpus:
    numbers = np.random.default_rng(1)
    return corpus_of([numbers.integers(1, 15, numbers.integers(1, 12)).tolist() for _ in range(3000)])


def document_of(corpus: Corpus, token: int) -> int:
    sentence = np.searchsorted(corpus.sentences, token, side="right") - 1
    return int(np.searchsorted(corpus.documents, sentence, side="right") - 1)


# ----------------------------------------------------------------------------------------------------------- sentences
@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", " Two!", " Three?", " Four"]),
        ("Version 3.11 is out. It is fast.", ["Version 3.11 is out.", " It is fast."]),
        ("def f(x):\n    return x\n", ["def f(x):\n", "    return x"]),
        ("First line.\n\n  Second", ["First line.", "\n\n  Second"]),
        ("你好。再见！好", ["你好。", "再见！", "好"]),
        (".", ["."]),
        ("  a  ", ["  a"]),
    ],
)
def test_a_text_is_split_into_sentences(text, sentences):
    assert split_sentences(text) == sentences


def test_the_sentences_are_the_text():
    numbers = np.random.default_rng(0)
    for _ in range(500):
        text = "".join(numbers.choice(list("ab.!? \n\t。"), numbers.integers(0, 30)))
        assert "".join(split_sentences(text)) == text.rstrip()
        assert all(sentence.strip() for sentence in split_sentences(text))


def test_a_corpus_holds_the_tokens_of_every_sentence(documents, texts, wordpiece):
    corpus = read_corpus(documents, wordpiece, words=True, separator=wordpiece.sep_token_id)
    assert len(corpus) == len(texts)
    for number, text in enumerate(texts):
        first, last = corpus.documents[number], corpus.documents[number + 1]
        found = [corpus.tokens[corpus.sentences[at] : corpus.sentences[at + 1]].tolist() for at in range(first, last)]
        expected = wordpiece(split_sentences(text), add_special_tokens=False)["input_ids"]
        expected[-1] = [*expected[-1], wordpiece.sep_token_id]
        assert found == expected
    assert corpus.bytes == sum(map(len, texts))


def test_texts_without_a_token_are_left_out(bart_tokenizer, wordpiece):
    from datasets import Dataset

    corpus = read_corpus(Dataset.from_dict({"text": ["\u200b", "the fox.", "\u200b\n\u200b"]}), wordpiece)
    assert len(corpus) == 1
    with pytest.raises(UserError, match="no text of the data has a single token"):
        read_corpus(Dataset.from_dict({"text": ["\u200b"]}), wordpiece)


# --------------------------------------------------------------------------------------------------------------- pairs
def test_half_of_the_pairs_go_on_and_half_are_random(many):
    ranges, random = sentence_pairs(many, 30, 0.1, np.random.default_rng(0))
    assert len(random) > 5000
    assert random.mean() == pytest.approx(0.5, abs=4 * 0.5 / len(random) ** 0.5)
    for (a, b), is_random in zip(ranges.tolist(), random):
        same = document_of(many, a[0]) == document_of(many, b[0])
        assert same != is_random
        for begin, end in (a, b):
            assert begin < end
            assert document_of(many, begin) == document_of(many, end - 1), "a segment lies in one document"
        if not is_random:
            assert a[0] < b[0]


def test_a_pair_fits_and_what_fits_is_not_cut(many):
    ranges, random = sentence_pairs(many, 30, 0.0, np.random.default_rng(0))
    lengths = ranges[..., 1] - ranges[..., 0]
    assert lengths.sum(1).max() == 30
    ranges, random = sentence_pairs(many, 10**6, 0.0, np.random.default_rng(0))
    for (a, b), is_random in zip(ranges.tolist(), random):
        assert a[0] in many.sentences
        assert a[1] in many.sentences
        assert b[0] in many.sentences
        assert b[1] in many.sentences
        if not is_random:
            assert b[0] == a[1], "B begins where A ends"
            last = many.documents[document_of(many, a[0]) + 1]
            assert b[1] == many.sentences[last], "and goes on to the end of the document"


def test_what_a_random_segment_displaced_is_used_later(many):
    """Within a document nothing is used twice, and only its last sentence can be left over."""
    ranges, random = sentence_pairs(many, 10**6, 0.0, np.random.default_rng(3))
    used = Counter()
    for (a, b), is_random in zip(ranges.tolist(), random):
        for begin, end in [a] if is_random else [a, b]:
            used.update(range(begin, end))
    assert max(used.values()) == 1
    unused = [token for token in range(len(many.tokens)) if token not in used]
    assert unused
    for token in unused:
        last = many.documents[document_of(many, token) + 1] - 1
        assert token >= many.sentences[last]


def test_some_documents_have_shorter_pairs(many):
    whole, _ = sentence_pairs(many, 30, 0.0, np.random.default_rng(0))
    short, _ = sentence_pairs(many, 30, 1.0, np.random.default_rng(0))
    sizes = [(ranges[..., 1] - ranges[..., 0]).sum(1) for ranges in (whole, short)]
    assert np.mean(sizes[1]) < np.mean(sizes[0]) - 5


def longest_first(a: int, b: int, tokens: int) -> tuple[int, int]:
    """BERT's truncate_seq_pair, token by token."""
    while a + b > tokens:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


def test_the_longer_segment_is_cut_at_either_end():
    numbers = np.random.default_rng(0)
    fronts = []
    for _ in range(4000):
        a, b = numbers.integers(1, 40, 2).tolist()
        tokens = int(numbers.integers(2, 60))
        cut = _cut_to_fit((100, 100 + a), (500, 500 + b), tokens, numbers)
        assert (cut[1] - cut[0], cut[3] - cut[2]) == longest_first(a, b, tokens)
        for (begin, end), (start, length) in zip((cut[:2], cut[2:]), ((100, a), (500, b))):
            assert start <= begin < end <= start + length
            fronts += [1] * (begin - start) + [0] * (start + length - end)
    assert np.mean(fronts) == pytest.approx(0.5, abs=4 * 0.5 / len(fronts) ** 0.5)


def test_pairs_need_two_documents_and_two_sentences():
    with pytest.raises(UserError, match="at least two documents"):
        sentence_pairs(corpus_of([[3, 4, 5]]), 20, 0.1, np.random.default_rng(0))
    with pytest.raises(UserError, match="no document has two sentences"):
        sentence_pairs(corpus_of([[3], [4]]), 20, 0.1, np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------------ full sentences
def test_full_sentences_are_packed_until_the_next_one_does_not_fit(many):
    rows = full_sentences(many, 25)[:, 0]
    assert rows[0, 0] == 0
    assert rows[-1, 1] == len(many.tokens)
    assert (rows[1:, 0] == rows[:-1, 1]).all(), "every token, in order"
    lengths = rows[:, 1] - rows[:, 0]
    assert lengths.max() <= 25
    assert np.isin(rows, many.sentences).all(), "no sentence is cut"
    following = np.searchsorted(many.sentences, rows[:-1, 1])
    assert (lengths[:-1] + np.diff(many.sentences)[following] > 25).all()


def test_a_sentence_longer_than_a_row_is_cut():
    assert full_sentences(corpus_of([[3, 12, 2], [2]]), 5)[:, 0].tolist() == [
        [0, 3],
        [3, 8],
        [8, 13],
        [13, 15],
        [15, 19],
    ]


# ---------------------------------------------------------------------------------------------------------------- rows
def test_a_pair_is_what_the_tokenizer_makes_of_two_texts(documents, wordpiece):
    corpus = read_corpus(documents, wordpiece)
    rows = SegmentDataset(corpus, wordpiece, 512, pairs=True, short_share=0.0)
    for place in range(len(rows)):
        a, b = (wordpiece.decode(corpus.tokens[begin:end]) for begin, end in rows.ranges[place])
        expected = wordpiece(a, b)
        assert rows[place]["input_ids"].tolist() == expected["input_ids"]
        assert rows[place]["token_type_ids"].tolist() == expected["token_type_ids"]
        assert rows[place]["next_sentence_label"] in (0, 1)
        assert len(rows[place]["words"]) == len(expected["input_ids"])
        special = np.isin(rows[place]["input_ids"], wordpiece.all_special_ids)
        assert (rows[place]["words"] == -1).tolist() == special.tolist()


def test_full_sentences_have_separators_between_documents(documents, texts, bart_tokenizer):
    begin, end = bart_tokenizer.cls_token_id, bart_tokenizer.sep_token_id
    rows = SegmentDataset(read_corpus(documents, bart_tokenizer, separator=end), bart_tokenizer, 150, pairs=False)
    joined = []
    for place in range(len(rows)):
        ids = rows[place]["input_ids"].tolist()
        assert len(ids) <= 150
        assert (ids[0], ids[-1]) == (begin, end)
        assert ids[-2] != end, "not two ends"
        assert "token_type_ids" not in rows[place]
        joined += ids[1:-1]
    assert [token for token in joined if token != end] == [
        token for text in texts for token in bart_tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    assert joined.count(end) > 5


def test_duplicates_have_other_pairs_and_other_masks(documents, wordpiece):
    corpus = read_corpus(documents, wordpiece)
    once, thrice = (SegmentDataset(corpus, wordpiece, 64, pairs=True, duplicates=count) for count in (1, 3))
    size = len(once)
    assert (thrice.ranges[:size] == once.ranges).all()
    assert len(thrice) > 2.5 * size
    assert thrice.ranges[size : size + 20].tolist() != once.ranges[:20].tolist()
    packed = SegmentDataset(corpus, wordpiece, 64, pairs=False, duplicates=2)
    half = len(packed) // 2
    assert (packed.ranges[:half] == packed.ranges[half:]).all()
    batch = MaskingCollator(wordpiece, 0.15, 0)([packed[0], packed[half]])
    assert not batch["labels"][0].equal(batch["labels"][1])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True])
def test_workers_make_the_masks_of_one_process(documents, wordpiece, workers, dynamic):
    """Also those that outlive the epoch; static masks stay, dynamic ones change with the epoch."""
    from torch.utils.data import DataLoader
    from transformers import TrainerControl, TrainerState, TrainingArguments

    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])

    def epochs(count: int) -> list[list]:
        corpus = read_corpus(documents, wordpiece)
        rows = SegmentDataset(corpus, wordpiece, 64, pairs=True, dynamic=dynamic)
        loader = DataLoader(
            rows,
            batch_size=16,
            collate_fn=MaskingCollator(wordpiece, 0.15, 0),
            num_workers=count,
            persistent_workers=count > 0,
        )
        seen = []
        for epoch in range(2):
            CountEpochs(rows).on_epoch_begin(arguments, TrainerState(epoch=float(epoch)), TrainerControl())
            seen.append([batch["input_ids"].tolist() for batch in loader])
        return seen

    alone = epochs(0)
    assert epochs(workers) == alone
    assert (alone[0] == alone[1]) != dynamic
