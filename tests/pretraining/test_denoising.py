"""The denoising recipe: its batches against the documents, its loss against BART's own, its figures token by token."""

import json

import numpy as np
import pytest

from recipes.pretraining.masking import IGNORED
from recipes.pretraining.noise import HIDDEN, NOISES, Noise
from recipes.pretraining.reconstruction import DocumentDataset, NoiseCollator
from recipes.pretraining.sentences import read_corpus, split_sentences

BART = {
    "model_type": "bart",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 160,
    "init_std": 0.3,  # so that guesses differ
}
LENGTH = 120


@pytest.fixture
def rows(documents, bart_tokenizer):
    return DocumentDataset(read_corpus(documents, bart_tokenizer), LENGTH - 2)


def collator_of(tokenizer, *kinds: str, share: float = 0.3) -> NoiseCollator:
    return NoiseCollator(tokenizer, Noise(kinds, share, 3.0), LENGTH, seed=0, start_id=tokenizer.eos_token_id)


def test_rows_are_documents_or_whole_sentences_of_one(rows, texts, bart_tokenizer):
    whole = 0
    for place in range(len(rows)):
        item = rows[place]
        assert len(item["tokens"]) == rows.lengths[place] <= LENGTH - 2
        assert item["sentences"][0] == 0
        assert item["sentences"][-1] == len(item["tokens"])
        assert (np.diff(item["sentences"]) > 0).all()
        parts = [bart_tokenizer.decode(part) for part in np.split(item["tokens"], item["sentences"][1:-1])]
        document = next(text for text in texts if "".join(parts) in text)
        whole += "".join(parts) == document
        assert set(parts) <= set(split_sentences(document))
    assert 0 < whole < len(rows)
    assert sum(rows.lengths) == len(rows.corpus.tokens)


def test_the_decoder_gets_the_document_and_the_encoder_its_corruption(rows, bart_tokenizer):
    begin, end, mask = (bart_tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<mask>"))
    items = [rows[place] for place in range(8)]
    batch = {name: values.numpy() for name, values in collator_of(bart_tokenizer, "text_infilling")(items).items()}
    for place, item in enumerate(items):
        length = len(item["tokens"]) + 2
        labels = batch["labels"][place]
        assert labels[:length].tolist() == [begin, *item["tokens"], end]
        assert (labels[length:] == IGNORED).all()
        assert batch["decoder_input_ids"][place, :length].tolist() == [end, begin, *item["tokens"]]
        corrupted = batch["input_ids"][place][batch["attention_mask"][place] == 1]
        assert (corrupted[0], corrupted[-1]) == (begin, end)
        assert (batch["input_ids"][place][len(corrupted) :] == bart_tokenizer.pad_token_id).all()
        seen = corrupted[1:-1][corrupted[1:-1] != mask]
        hidden = batch["hidden"][place] == 1
        assert seen.tolist() == labels[:length][~hidden[:length]][1:-1].tolist(), "what is not hidden, in order"
        assert hidden.sum() == round(0.3 * (length - 2))


@pytest.mark.parametrize("kind", NOISES)
def test_each_noise_hides_what_it_says(kind, rows, bart_tokenizer):
    items = [rows[place] for place in range(8)]
    batch = collator_of(bart_tokenizer, kind)(items)
    moves = kind in ("sentence_permutation", "document_rotation")
    for place, item in enumerate(items):
        size = len(item["tokens"])
        assert batch["hidden"][place].sum() == (0 if moves else round(0.3 * size))
        real = int(batch["attention_mask"][place].sum()) - 2
        if kind in ("token_masking", *NOISES[3:]):
            assert real == size
        if moves:
            assert sorted(batch["input_ids"][place, 1 : real + 1].tolist()) == sorted(item["tokens"])
        masks = int((batch["input_ids"][place] == bart_tokenizer.mask_token_id).sum())
        assert (masks > 0) == (kind in ("token_masking", "text_infilling"))


def test_noise_depends_on_seed_epoch_and_row_alone(rows, bart_tokenizer):
    collator = collator_of(bart_tokenizer, "sentence_permutation", "text_infilling")
    alone = collator([rows[5]])["input_ids"][0]
    beside = collator([rows[0], rows[5], rows[1]])["input_ids"][1, : len(alone)]
    assert alone.equal(beside)
    rows.epoch.fill_(1)
    other = collator([rows[5]])["input_ids"][0]
    assert other.tolist() != alone.tolist()
    rows.dynamic = False
    assert collator([rows[5]])["input_ids"][0].equal(alone)


# --------------------------------------------------------------------------------------------------------------- recipe
@pytest.fixture
def trainer(trainer_of, texts, tiny, tmp_path):
    (tmp_path / "data").mkdir()
    for split, part in (("train", texts[:40]), ("test", texts[40:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
    config = {
        "model_config": BART,
        "tokenizer_name_or_path": str(tiny / "bart"),
        "dataset_name": str(tmp_path / "data"),
        "max_length": LENGTH,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "report_to": "none",
    }
    trainer = trainer_of("pretraining/denoising", config)
    trainer.model.eval()
    return trainer


def test_the_loss_is_barts_own(trainer):
    import torch

    for batch in trainer.get_eval_dataloader():
        plain = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        with torch.inference_mode():
            own = trainer.model(**plain)
            ours, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        assert ours.item() == pytest.approx(own.loss.item(), rel=1e-6)
        assert outputs["right"].bool().equal(own.logits.argmax(-1) == batch["labels"])


def test_held_out_figures_are_means_over_all_tokens_whatever_the_batches(trainer):
    import torch

    nats, hidden = [], []
    for row in range(len(trainer.eval_dataset)):
        batch = trainer.data_collator([trainer.eval_dataset[row]])
        with torch.inference_mode():
            logits = trainer.model(**{k: v for k, v in batch.items() if k not in ("labels", "hidden")}).logits[0]
        of_row = -logits.log_softmax(-1).gather(1, batch["labels"][0][:, None])[:, 0]
        nats += of_row.tolist()
        hidden += of_row[batch["hidden"][0] == 1].tolist()
    assert 0.2 < len(hidden) / len(nats) < 0.3
    for size in (1, 8):
        trainer.args.per_device_eval_batch_size = size
        measured = trainer.evaluate()
        assert measured["eval_loss"] == pytest.approx(np.mean(nats), rel=1e-5)
        assert measured["eval_hidden_loss"] == pytest.approx(np.mean(hidden), rel=1e-5)


def test_a_model_from_scratch_writes_with_the_tokenizers_special_tokens(trainer, bart_tokenizer):
    assert trainer.model.config.decoder_start_token_id == bart_tokenizer.eos_token_id
    assert trainer.model.generation_config.decoder_start_token_id == bart_tokenizer.eos_token_id
    assert trainer.model.generation_config.eos_token_id == bart_tokenizer.eos_token_id
    assert trainer.model.generation_config.pad_token_id == bart_tokenizer.pad_token_id


def test_the_page_shows_the_document_and_what_the_model_makes_of_it(trainer, bart_tokenizer):
    from recipes.pretraining.denoised import rebuilt_documents, token_stream

    page = rebuilt_documents(trainer.model, bart_tokenizer, trainer.eval_dataset, trainer.data_collator, rows=2)
    assert page.count("Rebuilt") == 2
    assert bart_tokenizer.decode(trainer.eval_dataset[0]["tokens"]) in page
    assert "<mask>" in page
    stream = token_stream(trainer.eval_dataset, bart_tokenizer)
    assert len(stream) == trainer.eval_dataset.lengths.sum() + 2 * len(trainer.eval_dataset)
    assert (stream == bart_tokenizer.eos_token_id).sum() == len(trainer.eval_dataset)


def test_a_blank_document_says_nothing_of_the_document(rows, bart_tokenizer):
    blank = NoiseCollator(bart_tokenizer, lambda *_: np.asarray([HIDDEN]), LENGTH, 0, bart_tokenizer.eos_token_id)
    batch = blank([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[0, bart_tokenizer.mask_token_id, 2]] * 2
    assert batch["hidden"].sum() == rows.lengths[:2].sum()
