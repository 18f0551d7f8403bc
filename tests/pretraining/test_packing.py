"""Packed documents give the loss of documents fed one by one, through the batches that the recipe's Trainer makes."""

import json

import numpy as np
import pytest

LENGTH = 16
# Single bytes that the tiny tokenizer merges with nothing: a document of n characters has n tokens and EOS.
ROWS = [[15], [4, 10], [1, 6, 6], [7, 7], [3, 3, 3, 3], [15]]


# Each architecture that the configs build, small.
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
GPT_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
NEO_SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
MODELS = {
    "gpt1": {"model_type": "openai-gpt", **GPT_SIZES},
    "gpt2": {"model_type": "gpt2", **GPT_SIZES},
    "gpt3": {"model_type": "gpt_neo", **NEO_SIZES, "attention_types": [[["global", "local"], 1]], "window_size": 5},
    "llama1": {"model_type": "llama", **SIZES, "intermediate_size": 64},
    "llama2": {"model_type": "llama", **SIZES, "intermediate_size": 64, "num_key_value_heads": 2},
}


def pack(texts: list[str], tokenizer, length: int):
    from recipes.pretraining.corpus import encode, in_memory
    from recipes.pretraining.packing import PackedDataset

    tokens = in_memory(encode(texts, tokenizer, tokenizer.eos_token_id))
    assert tokens.bytes == sum(len(text.encode()) for text in texts)
    return PackedDataset(tokens, length, tokenizer.eos_token_id)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("#@!%&*+=<>"), size)) for row in ROWS for size in row]


@pytest.fixture(scope="module")
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny / "tokenizer")


@pytest.fixture(scope="module")
def packed(texts, tokenizer):
    return pack(texts, tokenizer, LENGTH)


@pytest.fixture
def trainer(texts, tiny, trainer_of, tmp_path, request):
    """The recipe's trainer for these documents, with the weights of the tiny model or of one of MODELS."""
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "data" / f"{split}.jsonl").write_text(rows)
    model, attention = getattr(request, "param", (None, "sdpa"))
    source = {"model_name_or_path": str(tiny / "model")}
    if model:
        source = {"model_config": MODELS[model], "tokenizer_name_or_path": str(tiny / "tokenizer")}
    config = {
        **source,
        "attn_implementation": attention,
        "dataset_name": str(tmp_path / "data"),
        "max_length": LENGTH,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
    }
    trainer = trainer_of("pretraining/causal", config)
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize(
    "trainer",
    [(None, "sdpa"), (None, "eager"), ("gpt2", "sdpa"), *((name, "eager") for name in MODELS)],
    indirect=True,
    ids=str,
)
def test_packing_gives_the_loss_of_documents_one_by_one(trainer, texts, tokenizer):
    import torch

    model, eos = trainer.model, tokenizer.eos_token_id
    total, count = 0.0, 0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([[*tokenizer(text, add_special_tokens=False)["input_ids"], eos]])
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.numel() - 1)
            count += ids.numel() - 1

        for dataloader in (trainer.get_eval_dataloader(), trainer.get_train_dataloader()):
            packed_total = packed_count = 0
            for batch in dataloader:
                labelled = int((batch["labels"][:, 1:] != -100).sum())
                packed_total += model(**batch).loss.item() * labelled
                packed_count += labelled
            assert packed_count == count
            assert packed_total / packed_count == pytest.approx(total / count, rel=1e-6)
    for size in (1, 4, 5):  # however the rows fall into batches
        trainer.args.per_device_eval_batch_size = size
        assert trainer.evaluate()["eval_loss"] == pytest.approx(total / count, rel=1e-6)


def test_an_architecture_that_lets_documents_see_each_other_is_refused(tiny, main, tmp_path, capfd):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "#" * 60}) + "\n")
    config = {
        "model_config": {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
        "tokenizer_name_or_path": str(tiny / "tokenizer"),
        "attn_implementation": "eager",
        "dataset_name": str(tmp_path / "rows.jsonl"),
        "dataset_test_split": None,
        "max_length": LENGTH,
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as stopped:
        main("pretraining/causal")(["--config", str(tmp_path / "config.yaml")])
    assert stopped.value.code == 2
    assert "a model of type 'mamba' lets packed documents see each other" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_positions_that_only_count_up_are_left_out(tokenizer):
    import torch

    from recipes.pretraining.packing import collate

    rows = pack(["#" * 31, "@" * 7, "!" * 7], tokenizer, 8)
    whole, cut = collate([rows[0], rows[1]]), collate([rows[0], rows[3]])
    assert len(rows) == 6
    assert "position_ids" not in whole
    assert "position_ids" not in cut, "a document that ends with its row"
    assert "position_ids" in collate([rows[0], pack(["#" * 3, "@" * 3], tokenizer, 8)[0]])
    assert torch.equal(whole["input_ids"], torch.stack([rows[0]["input_ids"], rows[1]["input_ids"]]))


def test_a_document_does_not_see_the_one_before_it(trainer, packed, tokenizer):
    import torch

    batch = trainer.data_collator([packed[1], packed[2]])
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    changed["input_ids"][0, :4] = tokenizer("####", add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    assert not torch.equal(changed["input_ids"], batch["input_ids"])
    with torch.inference_mode():
        one, other = (trainer.model(**each).logits for each in (batch, changed))
    assert torch.equal(one[0, 5:], other[0, 5:])
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0, :5], other[0, :5])


def test_rows_hold_every_token_in_order(packed, texts, tokenizer):
    joined = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert len(packed) == len(ROWS)
    assert [token for row in range(len(packed)) for token in packed[row]["input_ids"].tolist()] == joined


def test_positions_start_anew_and_the_first_token_of_a_document_has_no_label(packed):
    for row, sizes in enumerate(ROWS):
        item = packed[row]
        assert item["position_ids"].tolist() == [position for size in sizes for position in range(size + 1)]
        starts = [sum(size + 1 for size in sizes[:index]) for index in range(len(sizes))]
        unlabelled = [index for index, label in enumerate(item["labels"].tolist()) if label == -100]
        assert unlabelled == starts
        labelled = item["labels"] != -100
        assert item["labels"][labelled].equal(item["input_ids"][labelled])


def test_a_document_that_is_cut_goes_on_at_position_zero_of_the_next_row(tokenizer):
    rows = pack(["#" * 20, "@" * 9, "!" * 5], tokenizer, 8)
    assert [rows[row]["position_ids"].tolist() for row in range(len(rows))] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 0, 1, 2],
        [0, 1, 2, 3, 4, 5, 6, 0],
    ], "what does not fill a row is left out"
    assert rows[1]["labels"][0] == -100, "nothing before it is in its row"
    assert rows[3]["labels"].tolist().count(-100) == 2


def test_rows_of_training_are_cut_elsewhere_in_each_epoch_and_held_out_ones_never():
    from recipes.pretraining.corpus import Tokens
    from recipes.pretraining.packing import PackedDataset

    tokens = Tokens(np.arange(1, 100), 99)
    training, held_out = (PackedDataset(tokens, LENGTH, eos_token_id=0, dynamic=each) for each in (True, False))
    firsts = []
    for epoch in range(6):
        for rows in (training, held_out):
            rows.epoch.fill_(epoch)
        cut = [row["input_ids"].tolist() for row in training]
        assert len(cut) == 99 // LENGTH
        assert all(row == list(range(row[0], row[0] + LENGTH)) for row in cut)
        firsts.append(cut[0][0])
        assert [row["input_ids"][0].item() for row in held_out] == list(range(1, 97 - LENGTH + 1, LENGTH))
    assert firsts[0] == 1
    assert len(set(firsts)) == 6
