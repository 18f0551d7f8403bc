"""The recipe for masked language models: its loss against the model's own, its measures against counting by hand."""

import json
from collections import Counter

import numpy as np
import pytest
from transformers import EvalPrediction

from recipes.pretraining.masked_trainer import masked_metrics
from recipes.pretraining.masking import IGNORED

BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that guesses differ
}
ROBERTA = {**BERT, "model_type": "roberta", "max_position_embeddings": 66}


@pytest.fixture
def trainer(trainer_of, texts, wordpiece, tmp_path, request):
    """The recipe's trainer on the documents of sentences, for pairs or (`full`) for full sentences."""
    form = getattr(request, "param", "pairs")
    wordpiece.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "data").mkdir()
    for split, part in (("train", texts[:40]), ("test", texts[40:])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (tmp_path / "data" / f"{split}.jsonl").write_text(rows)
    config = {
        "model_config": BERT if form == "pairs" else ROBERTA,
        "tokenizer_name_or_path": str(tmp_path / "tokenizer"),
        "dataset_name": str(tmp_path / "data"),
        "max_length": 64,
        "next_sentence_prediction": form == "pairs",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "report_to": "none",
    }
    trainer = trainer_of("pretraining/masked", config)
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize("trainer", ["pairs", "full"], indirect=True)
def test_the_loss_is_the_models_own(trainer):
    """BertForPreTraining and RobertaForMaskedLM make logits for every position and average the labelled ones."""
    import torch

    for batch in trainer.get_eval_dataloader():
        with torch.inference_mode():
            own = trainer.model(**batch).loss
            ours, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        assert ours.item() == pytest.approx(own.item(), rel=1e-6)
        assert outputs["nats"].shape == batch["labels"].shape
        assert (outputs["nats"] != 0).equal(batch["labels"] != IGNORED)


@pytest.mark.parametrize("trainer", ["pairs", "full"], indirect=True)
def test_held_out_figures_are_means_over_all_tokens_whatever_the_batches(trainer):
    import torch

    nats, right, next_right, next_nats = [], [], [], []
    for row in range(len(trainer.eval_dataset)):
        batch = trainer.data_collator([trainer.eval_dataset[row]])
        labels = batch.pop("labels")[0]
        next_label = batch.pop("next_sentence_label", None)
        with torch.inference_mode():
            outputs = trainer.model(**batch)
        logits = outputs["logits" if next_label is None else "prediction_logits"][0].log_softmax(-1)
        for place in torch.nonzero(labels != IGNORED).ravel().tolist():
            nats.append(-logits[place, labels[place]].item())
            right.append(logits[place].argmax().item() == labels[place].item())
        if next_label is not None:
            both = outputs["seq_relationship_logits"][0].log_softmax(-1)
            next_right.append(both.argmax().item() == next_label.item())
            next_nats.append(-both[next_label.item()].item())
    expected = {"eval_masked_loss": np.mean(nats), "eval_masked_accuracy": np.mean(right)}
    expected["eval_loss"] = expected["eval_masked_loss"] + (np.mean(next_nats) if next_nats else 0)
    if next_right:
        expected["eval_next_sentence_accuracy"] = np.mean(next_right)
    for size in (1, 8):
        trainer.args.per_device_eval_batch_size = size
        measured = trainer.evaluate()
        assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert ("eval_next_sentence_accuracy" in measured) == bool(next_right)


def test_rows_that_are_no_pairs_count_in_no_figure_of_pairs():
    """UniLM's, of which a third are pairs."""
    tokens = np.array([[1, IGNORED], [2, 3], [IGNORED, 4]])
    ones = np.ones_like(tokens)
    predictions = (ones.astype(np.float32), ones, np.float32([0.0, 0.7, 0.0]), np.array([0, 1, 0]))
    measured = masked_metrics(EvalPrediction(predictions, (tokens, np.array([IGNORED, 1, IGNORED]))))
    assert measured["next_sentence_accuracy"] == 1.0
    assert measured["loss"] == pytest.approx(1.7)
    measured = masked_metrics(EvalPrediction(predictions, (tokens, np.full(3, IGNORED))))
    assert measured == {"masked_loss": 1.0, "masked_accuracy": 1.0, "loss": 1.0}


def test_the_unigram_baselines_are_those_of_counting(trainer):
    from recipes.pretraining.cloze import unigram_baselines

    held_out, collator = trainer.eval_dataset, trainer.data_collator
    train = trainer.train_dataset.corpus.tokens
    counts = Counter(train.tolist())
    found = unigram_baselines(train, held_out, collator)
    labels = [
        int(label)
        for row in range(len(held_out))
        for label in collator([held_out[row]])["labels"][0]
        if label != IGNORED
    ]
    tokens, ordinary = sum(counts[token] for token in collator.ordinary), len(collator.ordinary)
    nats = [-np.log((counts[label] + 1) / (tokens + ordinary)) for label in labels]
    most = max(collator.ordinary, key=lambda token: counts[token])
    assert found["masked_loss"] == pytest.approx(np.mean(nats))
    assert found["masked_accuracy"] == pytest.approx(np.mean([label == most for label in labels]))
    share = np.mean(held_out.labels)
    assert found["next_sentence_accuracy"] == pytest.approx(max(share, 1 - share))


@pytest.mark.parametrize("trainer", ["pairs", "full"], indirect=True)
def test_the_page_of_blanks_shows_what_the_model_says(trainer, wordpiece):
    import torch

    from recipes.pretraining.cloze import filled_blanks

    page = filled_blanks(trainer.model, wordpiece, trainer.eval_dataset, trainer.data_collator, rows=2)
    assert page.count("| truth | guesses |") == 2
    batch = trainer.data_collator([trainer.eval_dataset[0]])
    labels = batch.pop("labels")
    batch.pop("next_sentence_label", None)
    with torch.inference_mode():
        logits = trainer.model(**batch)
    logits = logits["prediction_logits" if "prediction_logits" in logits else "logits"]
    place = int(torch.nonzero(labels[0] != IGNORED)[0])
    truth = wordpiece.decode([labels[0, place]])
    best = logits[0, place].softmax(-1).max()
    guess = wordpiece.decode([int(logits[0, place].argmax())])
    assert f"| `{truth}` | `{guess}` {best:.0%}," in page


def test_padding_changes_no_figure_of_a_row(trainer):
    import torch

    rows = sorted((trainer.eval_dataset[row] for row in range(8)), key=lambda row: len(row["input_ids"]))
    with torch.inference_mode():
        _, alone = trainer.compute_loss(trainer.model, trainer.data_collator(rows[:1]), return_outputs=True)
        _, beside = trainer.compute_loss(trainer.model, trainer.data_collator(rows), return_outputs=True)
    width = alone["nats"].shape[1]
    assert width < beside["nats"].shape[1]
    assert alone["nats"][0].tolist() == pytest.approx(beside["nats"][0, :width].tolist(), rel=1e-4, abs=1e-6)
    assert alone["next_nats"][0].item() == pytest.approx(beside["next_nats"][0].item(), rel=1e-4)


# -------------------------------------------------------------------------------------------------------------- probing
def probe_of(train: dict[str, list[str]], test: dict[str, list[str]]):
    from datasets import Dataset, DatasetDict

    from recipes.pretraining.probing import make_probe

    def rows(texts: dict[str, list[str]]) -> Dataset:
        return Dataset.from_list([{"text": text, "source": name} for name in texts for text in texts[name]])

    return make_probe(DatasetDict(train=rows(train), test=rows(test)), "source")


def test_classes_of_a_probe_are_the_folders_that_are_frequent_enough():
    probe = probe_of(
        {"a/x.py": ["one"] * 60, "a/y.py": ["two"] * 60, "b": ["three"] * 105, "rare": ["four"] * 99},
        {"a/z.py": ["one"], "b": ["three"] * 3, "rare": ["four"]},
    )
    assert probe.classes == ["a", "b"]
    assert probe.train[1].tolist() == [0] * 120 + [1] * 105
    assert probe.test[0] == ["one", "three", "three", "three"]
    assert probe.majority == pytest.approx(0.25), "a is the most frequent in training, and one in four of the test"


def test_a_probe_reads_what_the_states_hold(trainer, wordpiece):
    """Classes of other words are told apart; classes of the same words are not."""
    import torch

    numbers = np.random.default_rng(0)

    def texts(words: str, count: int) -> list[str]:
        return [" ".join(numbers.choice(words.split(), 6)) for _ in range(count)]

    apart = probe_of(
        {"boats": texts("red boats rivers", 110), "foxes": texts("quick jumping fox", 110)},
        {"boats": texts("red boats rivers", 40), "foxes": texts("quick jumping fox", 40)},
    )
    state = torch.get_rng_state()
    assert apart.accuracy(trainer.model, wordpiece, 64) > 0.95
    assert torch.get_rng_state().equal(state), "a run's own random numbers are left alone"
    alike = probe_of(
        {"a": texts("red boats rivers", 110), "b": texts("red boats rivers", 110)},
        {"a": texts("red boats rivers", 100), "b": texts("red boats rivers", 100)},
    )
    assert alike.accuracy(trainer.model, wordpiece, 64) == pytest.approx(0.5, abs=4 * 0.5 / 200**0.5)


def test_mean_states_leave_padding_and_dropout_out(trainer, wordpiece):
    import torch

    from recipes.pretraining.probing import mean_states

    texts = ["the fox", "the quick fox jumps over many lazy dogs and red boats", "a"]
    trainer.model.train()
    states = mean_states(trainer.model, wordpiece, texts, 64, batch_size=2)
    assert trainer.model.training, "the mode is put back"
    trainer.model.eval()
    for text, state in zip(texts, states):
        with torch.inference_mode():
            alone = trainer.model.base_model(**wordpiece(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert state.tolist() == pytest.approx(alone.tolist(), rel=1e-4, abs=1e-5)
