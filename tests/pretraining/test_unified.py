"""UniLM: the masks of the paper's figure 1, its cloze against a loop, its proportions, and what its model sees."""

import itertools

import numpy as np
import pytest
import torch

from recipes.pretraining.unified_masks import (
    BIDIRECTIONAL,
    LEFT_TO_RIGHT,
    OBJECTIVES,
    RIGHT_TO_LEFT,
    SEQUENCE_TO_SEQUENCE,
    allowed_attention,
    as_attention_mask,
    choose_ngrams,
)


# ------------------------------------------------------------------------------------------------------------- masks
def may_look(objective: int, query: int, key: int, first: int, total: int) -> bool:
    """Figure 1, one pair of tokens at a time."""
    if query == key:
        return True
    if query >= total or key >= total:
        return False
    if objective == BIDIRECTIONAL:
        return True
    if objective == LEFT_TO_RIGHT:
        return key < query
    if objective == RIGHT_TO_LEFT:
        return key > query
    in_source = key < first
    return in_source if query < first else in_source or key < query


def test_the_masks_are_those_of_the_definition():
    cases = [
        (objective, first, total)
        for objective, first, total in itertools.product(range(4), range(2, 8), range(2, 10))
        if first <= total
    ]
    objective, first, total = (torch.tensor(column) for column in zip(*cases))
    allowed = allowed_attention(objective, first, total, 9)
    assert allowed.shape == (len(cases), 1, 9, 9)
    for row, case in enumerate(cases):
        expected = [[may_look(case[0], query, key, *case[1:]) for key in range(9)] for query in range(9)]
        assert allowed[row, 0].tolist() == expected


def test_the_masks_of_figure_1():
    """Two segments, S1 of three tokens with its specials and S2 of two: the four pictures of the paper."""
    pictures = {
        BIDIRECTIONAL: ["11111"] * 5,
        LEFT_TO_RIGHT: ["10000", "11000", "11100", "11110", "11111"],
        RIGHT_TO_LEFT: ["11111", "01111", "00111", "00011", "00001"],
        SEQUENCE_TO_SEQUENCE: ["11100", "11100", "11100", "11110", "11111"],
    }
    for objective, picture in pictures.items():
        allowed = allowed_attention(torch.tensor([objective]), torch.tensor([3]), torch.tensor([5]), 5)[0, 0]
        assert ["".join("01"[look] for look in row) for row in allowed.tolist()] == picture, OBJECTIVES[objective]


def test_the_two_forms_of_a_mask_give_the_same_attention():
    allowed = allowed_attention(torch.arange(4), torch.tensor([3] * 4), torch.tensor([6, 6, 5, 6]), 6)
    boolean, additive = as_attention_mask(allowed, "sdpa"), as_attention_mask(allowed, "eager")
    assert boolean.dtype == torch.bool
    scores = torch.randn(4, 2, 6, 6)
    expected = scores.masked_fill(~boolean, -torch.inf).softmax(-1)
    assert torch.equal((scores + additive).softmax(-1), expected)


# ------------------------------------------------------------------------------------------------------------- cloze
def greedy(may: list[bool], numbers: np.ndarray, share: float, ngrams: float) -> list[bool]:
    """Take places in the order of their numbers, each with its n-gram, token by token, until there are enough."""
    wanted = max(1, int(np.rint(sum(may) * share)))
    chosen: list[int] = []
    for place in np.argsort(numbers[0]):
        if not may[place]:
            continue
        size = 1 if numbers[1, place] >= ngrams else 2 if numbers[1, place] < ngrams / 2 else 3
        for token in range(place, place + size):
            if token >= len(may) or not may[token]:
                break
            if token not in chosen and len(chosen) < wanted:
                chosen.append(token)
    return [place in chosen for place in range(len(may))]


@pytest.mark.parametrize(
    ("length", "share", "ngrams"), [(1, 0.15, 0.2), (2, 0.5, 1.0), (9, 0.3, 0.6), (60, 0.15, 0.2), (60, 0.5, 1.0)]
)
def test_the_cloze_is_that_of_a_loop_over_places(length, share, ngrams):
    rng = np.random.default_rng(length)
    may = rng.random((200, length)) < 0.8
    may[:, 0] |= ~may.any(1)
    numbers = rng.random((200, 2, length))
    chosen = choose_ngrams(may, numbers, share, ngrams)
    for row in range(200):
        assert chosen[row].tolist() == greedy(may[row].tolist(), numbers[row], share, ngrams)
    assert not (chosen & ~may).any()


def test_fifteen_percent_of_the_tokens_and_a_fifth_of_the_times_two_or_three():
    rng = np.random.default_rng(0)
    whole = choose_ngrams(np.ones((2000, 400), bool), rng.random((2000, 2, 400)))
    assert (whole.sum(1) == 60).all()
    # Few enough that two n-grams seldom touch: how long are the runs of hidden tokens?
    few = choose_ngrams(np.ones((2000, 2000), bool), rng.random((2000, 2, 2000)), share=0.01)
    edges = np.flatnonzero(np.diff(np.pad(few, ((0, 0), (1, 1))).astype(int).ravel()))
    lengths = edges[1::2] - edges[::2]
    for length, share in ((1, 0.8), (2, 0.1), (3, 0.1)):
        assert (lengths == length).mean() == pytest.approx(share, abs=0.02)
    assert (lengths > 3).mean() < 0.02


# -------------------------------------------------------------------------------------------------------------- rows
SEP, CLS, MASK = "[SEP]", "[CLS]", "[MASK]"


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", CLS, SEP, MASK, *(f"w{number}" for number in range(60)), "."]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
    )


@pytest.fixture(scope="module")
def corpus(tokenizer):
    from datasets import Dataset

    from recipes.pretraining.sentences import read_corpus

    rng = np.random.default_rng(0)
    texts = [
        " ".join(" ".join(f"w{rng.integers(60)}" for _ in range(rng.integers(2, 9))) + " ." for _ in range(sentences))
        for sentences in rng.integers(1, 12, 80)
    ]
    return read_corpus(Dataset.from_dict({"text": texts}), tokenizer)


def rows_of(corpus, **settings):
    from recipes.pretraining.unified_rows import UnifiedRows

    return UnifiedRows(corpus, 32, **settings)


def collator_of(tokenizer, attention: str = "sdpa", seed: int = 0):
    from recipes.pretraining.unified_rows import UnifiedCollator

    return UnifiedCollator(tokenizer, attention, seed)


def test_runs_are_whole_sentences_of_one_document(corpus):
    ranges = rows_of(corpus).ranges
    starts = set(corpus.sentences.tolist())
    documents = corpus.sentences[corpus.documents]
    for begin, end in ranges.tolist():
        assert 4 <= end - begin <= 29
        assert np.searchsorted(documents, begin, "right") == np.searchsorted(documents, end - 1, "right")
        assert {begin, end} <= starts, "no sentence here is longer than a row"
        following = corpus.sentences[np.searchsorted(corpus.sentences, end) + 1 :][:1]
        if end not in documents.tolist():
            assert following[0] - begin > 29, "one more sentence would not fit"
    kept = (ranges[:, 1] - ranges[:, 0]).sum()
    assert len(corpus.tokens) - kept < 4 * len(ranges)


def test_objectives_come_in_the_papers_proportions(corpus):
    rows = rows_of(corpus)
    counts, total, random = np.zeros(4), 0, []
    for epoch in range(60):
        rows.epoch.fill_(epoch)
        for row in range(0, len(rows), 4):
            item = rows[row]
            counts[item["objective"]] += 1
            total += 1
            if item["objective"] == BIDIRECTIONAL:
                random.append(item["next_sentence_label"])
            else:
                assert item["next_sentence_label"] == -100
            assert ("second" in item) == (item["objective"] in (BIDIRECTIONAL, SEQUENCE_TO_SEQUENCE))
    for objective, share in zip(range(4), (1 / 3, 1 / 6, 1 / 6, 1 / 3)):
        assert abs(counts[objective] / total - share) < 4 * (share * (1 - share) / total) ** 0.5
    assert abs(np.mean(random) - 0.5) < 4 * (0.25 / len(random)) ** 0.5


def test_a_pair_is_a_text_cut_between_sentences(corpus):
    rows = rows_of(corpus, objective=SEQUENCE_TO_SEQUENCE)
    stop, cuts = int(corpus.tokens[-1]), 0
    for row in range(len(rows)):
        item, (begin, end) = rows[row], rows.ranges[row]
        assert np.concatenate([item["first"], item["second"]]).tolist() == corpus.tokens[begin:end].tolist()
        assert len(item["first"]) and len(item["second"])
        sentences = np.sum((corpus.sentences > begin) & (corpus.sentences < end))
        if sentences:
            cuts += 1
            assert item["first"][-1] == stop
    assert cuts > 20


def test_a_batch_is_put_together_as_the_paper_says(corpus, tokenizer):
    collator = collator_of(tokenizer)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (CLS, SEP, "[PAD]")}
    for objective, types in zip(range(4), ((0, 1), (2, 2), (3, 3), (4, 5))):
        rows = rows_of(corpus, objective=objective)
        items = [rows[row] for row in range(12)]
        tokens, first, total, _ = collator.assemble(items)
        batch = collator(items)
        for row, item in enumerate(items):
            expected = [ids[CLS], *item["first"], ids[SEP]]
            kinds = [types[0]] * len(expected)
            if "second" in item:
                expected += [*item["second"], ids[SEP]]
                kinds += [types[1]] * (len(item["second"]) + 1)
            padding = tokens.shape[1] - len(expected)
            assert tokens[row].tolist() == expected + [ids["[PAD]"]] * padding
            assert batch["token_type_ids"][row].tolist() == kinds + [0] * padding
            assert (first[row], total[row]) == (len(item["first"]) + 2, len(expected))
        hidden = batch["labels"] != -100
        assert batch["labels"][hidden].tolist() == tokens[hidden.numpy()].tolist()
        unchanged = batch["input_ids"] == torch.from_numpy(tokens)
        assert unchanged[~hidden].all()
        specials = np.isin(tokens, list(ids.values()))
        last = np.arange(tokens.shape[1]) == total[:, None] - 1
        reads_on = objective in (LEFT_TO_RIGHT, SEQUENCE_TO_SEQUENCE)
        assert not (hidden.numpy() & specials & ~(last & reads_on)).any()


def test_hidden_tokens_are_masked_random_or_themselves_in_eighty_ten_ten(corpus, tokenizer):
    collator, rows, kinds, total = collator_of(tokenizer), rows_of(corpus), np.zeros(3), 0
    mask = tokenizer.mask_token_id
    for epoch in range(60):
        rows.epoch.fill_(epoch)
        batch = collator([rows[row] for row in range(0, len(rows), 3)])
        hidden = batch["labels"] != -100
        shown, true = batch["input_ids"][hidden], batch["labels"][hidden]
        kinds += [
            int((shown == mask).sum()),
            int(((shown != mask) & (shown != true)).sum()),
            int((shown == true).sum()),
        ]
        total += len(true)
    by_chance = 0.1 / 61  # a random token is the true one
    for found, share in zip(kinds / total, (0.8, 0.1 - by_chance, 0.1 + by_chance)):
        assert abs(found - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_a_row_depends_on_the_seed_the_epoch_and_its_number_alone(corpus, tokenizer):
    collator, rows = collator_of(tokenizer), rows_of(corpus)
    batch, alone = collator([rows[7], rows[2]]), collator([rows[2]])
    width = alone["input_ids"].shape[1]
    for name in ("input_ids", "labels", "token_type_ids"):
        assert torch.equal(batch[name][1, :width], alone[name][0])

    def made(epoch: int, seed: int = 0, split: int = 0) -> list:
        rows = rows_of(corpus, seed=seed, split=split)
        rows.epoch.fill_(epoch)
        return collator_of(tokenizer, seed=seed)([rows[row] for row in range(8)])["input_ids"].tolist()

    assert made(0) == made(0)
    others = [made(0), made(1), made(0, seed=1), made(0, split=1)]
    assert all(one != other for one, other in itertools.combinations(others, 2))


# ------------------------------------------------------------------------------------------------------------- model
@pytest.fixture(scope="module")
def models(tokenizer):
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        type_vocab_size=6,
    )
    made = {}
    for attention in ("eager", "sdpa"):
        made[attention] = BertForPreTraining._from_config(config, attn_implementation=attention).eval()
    made["sdpa"].load_state_dict(made["eager"].state_dict())
    return made


@pytest.mark.parametrize("objective", range(4))
def test_the_model_sees_what_the_mask_lets_it_see(objective, models, corpus, tokenizer):
    """Another token at one place changes the states of those that may look at it, and of no other."""
    rows = rows_of(corpus, objective=objective)
    row = max(range(len(rows)), key=lambda number: len(rows[number]["first"]) + len(rows[number].get("second", [])))
    batches = {attention: collator_of(tokenizer, attention)([rows[row], rows[0]]) for attention in models}
    _, first, total, _ = collator_of(tokenizer).assemble([rows[row]])
    names = ("input_ids", "token_type_ids", "attention_mask")
    with torch.no_grad():
        before = {
            attention: model(**{name: batches[attention][name] for name in names}).prediction_logits
            for attention, model in models.items()
        }
        assert torch.allclose(before["eager"], before["sdpa"], atol=1e-5)
        for place in (1, int(first[0]) - 2, int(total[0]) - 2):
            changed = {name: batches["sdpa"][name].clone() for name in names}
            changed["input_ids"][0, place] = (changed["input_ids"][0, place] + 7) % len(tokenizer)
            after = models["sdpa"](**changed).prediction_logits
            moved = (after[0] - before["sdpa"][0]).abs().amax(-1)[: total[0]] > 1e-6
            # Two layers: who looks at the place, and who looks at them.
            look = np.asarray(
                [[may_look(objective, q, k, first[0], total[0]) for k in range(total[0])] for q in range(total[0])]
            )
            assert moved.tolist() == (look @ look)[:, place].tolist()


def test_a_bert_of_two_types_starts_with_six(models):
    from transformers import BertConfig, BertModel

    from recipes.pretraining.unified_masks import give_six_types

    model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9))
    two = model.embeddings.token_type_embeddings.weight.clone()
    give_six_types(model)
    six = model.embeddings.token_type_embeddings.weight
    assert torch.equal(six, two[[0, 1, 0, 0, 0, 1]])
    assert model.config.type_vocab_size == 6
    before = models["eager"].bert.embeddings.token_type_embeddings
    give_six_types(models["eager"])
    assert models["eager"].bert.embeddings.token_type_embeddings is before
