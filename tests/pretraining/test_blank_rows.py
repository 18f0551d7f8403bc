"""GLM's rows: how often each variant comes, what a batch holds, what the model sees of it, and how it writes."""

import itertools

import numpy as np
import pytest
import torch

from recipes.pretraining.blanks import BLANKS, DOCUMENT, END, IGNORED, MARKS, SENTENCES, START


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(60)), "."]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", extra_special_tokens=[START, END, *MARKS]
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


@pytest.fixture(scope="module", params=["roberta-prelayernorm", "bert"])
def model(tokenizer, request):
    from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[request.param](
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=34,
        type_vocab_size=34,
        initializer_range=0.3,
    )
    return AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa").eval()


def rows_of(corpus, shares=(0.5, 0.25, 0.25), **settings):
    from recipes.pretraining.blank_rows import InfillingRows

    return InfillingRows(corpus, 32, list(shares), **settings)


def collator_of(model, tokenizer, seed: int = 0):
    from recipes.pretraining.blank_rows import InfillingCollator

    return InfillingCollator(model, tokenizer, seed)


def test_variants_come_at_their_shares(corpus):
    rows, drawn = rows_of(corpus), []
    for epoch in range(60):
        rows.epoch.fill_(epoch)
        drawn += [rows[row]["variant"] for row in range(0, len(rows), 3)]
    for variant, share in ((BLANKS, 0.5), (SENTENCES, 0.25), (DOCUMENT, 0.25)):
        assert abs(np.mean(np.asarray(drawn) == variant) - share) < 4 * (share * (1 - share) / len(drawn)) ** 0.5
    for variant in (BLANKS, SENTENCES, DOCUMENT):
        alone = rows_of(corpus, [float(variant == other) for other in range(3)])
        assert {alone[row]["variant"] for row in range(len(alone))} == {variant}


def test_each_variant_has_its_mark_and_cuts_what_it_says(corpus, model, tokenizer):
    collator = collator_of(model, tokenizer)
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in (START, END))
    stop = tokenizer.convert_tokens_to_ids(".")
    for variant in (BLANKS, SENTENCES, DOCUMENT):
        rows = rows_of(corpus, [float(variant == other) for other in range(3)])
        for row in range(len(rows)):
            item, made = rows[row], collator.cut([rows[row]])
            part_a, part_b = np.split(made.tokens[0], made.first)
            spans = [
                list(group)
                for is_start, group in itertools.groupby(part_b, lambda token: token == start)
                if not is_start
            ]
            assert (part_a == marks[variant]).sum() == len(spans)
            assert not np.isin(part_a, [mark for mark in marks if mark != marks[variant]]).any()
            kept = part_a[part_a != marks[variant]].tolist()
            assert sorted(kept + [token for span in spans for token in span]) == sorted(item["input_ids"].tolist())
            labels = made.labels[0]
            assert (labels == end).sum() == len(spans)
            assert (labels[: made.first[0]] == IGNORED).all()
            if variant == SENTENCES:
                assert all(span[-1] == stop for span in spans)
            if variant == DOCUMENT:
                assert len(spans) == 1
                assert len(spans[0]) * 2 >= len(item["input_ids"])


def test_what_a_row_becomes_does_not_depend_on_its_batch(corpus, model, tokenizer):
    rows, collator = rows_of(corpus), collator_of(model, tokenizer)
    batch, alone = collator([rows[5], rows[9], rows[2]]), collator([rows[9]])
    width = alone["input_ids"].shape[1]
    for name in ("input_ids", "position_ids", "token_type_ids", "labels"):
        assert torch.equal(batch[name][1, :width], alone[name][0])
    assert torch.equal(batch["attention_mask"][1, 0, :width, :width], alone["attention_mask"][0, 0])

    def made(epoch: int, seed: int = 0, split: int = 0) -> list:
        rows = rows_of(corpus, seed=seed, split=split)
        rows.epoch.fill_(epoch)
        return collator_of(model, tokenizer, seed)([rows[row] for row in range(8)])["input_ids"].tolist()

    assert made(0) == made(0)
    assert all(one != other for one, other in itertools.combinations([made(0), made(1), made(0, 1), made(0, 0, 1)], 2))


def test_part_a_sees_itself_and_part_b_what_stands_before(corpus, model, tokenizer):
    """Another token at one place moves the states of those that may look at it, and of no other."""
    rows, collator = rows_of(corpus, (1.0, 0.0, 0.0)), collator_of(model, tokenizer)
    made = collator.cut([rows[0]])
    batch = collator.batch(made)
    del batch["labels"]
    first, total = int(made.first[0]), int(made.total[0])
    with torch.no_grad():
        before = model(**batch).logits[0]
        for place in (0, first - 1, first, first + 1, total - 2):
            changed = batch | {"input_ids": batch["input_ids"].clone()}
            changed["input_ids"][0, place] = (changed["input_ids"][0, place] + 7) % 60 + 2
            moved = (model(**changed).logits[0] - before).abs().amax(-1) > 1e-6
            expected = torch.arange(total) >= (0 if place < first else place)
            assert torch.equal(moved, expected), place


def test_both_positions_tell_places_apart(corpus, model, tokenizer):
    """The position of the mark and the place inside the span each change what is written."""
    rows, collator = rows_of(corpus, (1.0, 0.0, 0.0)), collator_of(model, tokenizer)
    batch = collator([rows[0]])
    del batch["labels"]
    assert batch["position_ids"].min() == 1 + collator.before
    with torch.no_grad():
        before = model(**batch).logits[0, -1]
        for name in ("position_ids", "token_type_ids"):
            changed = batch | {name: batch[name].clone()}
            changed[name][0, -1] += 1
            assert not torch.allclose(model(**changed).logits[0, -1], before, atol=1e-4)


def test_the_model_writes_each_span_from_what_it_would_be_trained_on(corpus, model, tokenizer):
    """Token by token: the logits of generation are those of the row in which the same spans stand in part B."""
    from recipes.pretraining.blank_samples import fill

    rows, collator = rows_of(corpus, (1.0, 0.0, 0.0)), collator_of(model, tokenizer)
    row = next(row for row in range(len(rows)) if (collator.cut([rows[row]]).tokens == collator.marks[0]).sum() == 2)
    made = collator.cut([rows[row]])
    part_a = made.tokens[0, : made.first[0]].tolist()
    spans = fill(model, collator, part_a, 5, torch.Generator(), top_p=0.0)
    assert len(spans) == 2
    hidden = [collator.pad, collator.start, *collator.marks]
    places = [place for place, token in enumerate(part_a) if token in collator.marks]
    ids, positions, inside = [*part_a], [*range(1, len(part_a) + 1)], [0] * len(part_a)
    for span, place in zip(spans, places):
        ids += [collator.start, *span]
        positions += [place + 1] * (len(span) + 1)
        inside += range(1, len(span) + 2)
    looks = torch.tensor(
        [[k < len(part_a) or (q >= len(part_a) and k <= q) for k in range(len(ids))] for q in range(len(ids))]
    )
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]) + collator.before,
            token_type_ids=torch.tensor([inside]),
            attention_mask=looks[None, None],
        ).logits[0]
    logits[:, hidden] = -torch.inf
    best = logits.argmax(-1)[len(part_a) :].tolist()
    written = []
    for span in spans:
        written += [*span, collator.end if len(span) < 5 else best[len(written) + len(span)]]
    assert best == written


def test_models_without_room_are_refused(model):
    from recipes.core import UserError
    from recipes.pretraining.blank_rows import check_model

    check_model(model, 32)
    with pytest.raises(UserError, match="rows of max_length 40 need"):
        check_model(model, 40)
