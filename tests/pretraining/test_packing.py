"""Packed documents give the loss of documents fed one by one, through the batches that the recipe's Trainer makes."""

import json

import numpy as np
import pytest

LENGTH = 16
# Single bytes that the tiny tokenizer merges with nothing: a document of n characters has n tokens and EOS.
ROWS = [[15], [4, 10], [1, 6, 6], [7, 7], [3, 3, 3, 3], [15]]


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
    from datasets import Dataset

    from recipes.pretraining.packing import PackedDataset

    return PackedDataset(Dataset.from_dict({"text": texts}), tokenizer, LENGTH)


@pytest.fixture
def trainer(texts, tiny, trainer_of, tmp_path, request):
    """The recipe's trainer for these documents, with the weights of the tiny model."""
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "data" / f"{split}.jsonl").write_text(rows)
    config = {
        "model_name_or_path": str(tiny / "model"),
        "attn_implementation": getattr(request, "param", "sdpa"),
        "dataset_name": str(tmp_path / "data"),
        "max_length": LENGTH,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
    }
    trainer = trainer_of("pretraining/causal", config)
    trainer.model.eval()
    return trainer


@pytest.mark.parametrize("trainer", ["sdpa", "eager"], indirect=True)
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
    assert packed.bytes == sum(map(len, texts))


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
    from datasets import Dataset

    from recipes.pretraining.packing import PackedDataset

    rows = PackedDataset(Dataset.from_dict({"text": ["#" * 20, "@" * 9, "!" * 5]}), tokenizer, 8)
    assert [rows[row]["position_ids"].tolist() for row in range(len(rows))] == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 1, 2, 3, 4, 0, 1, 2],
        [0, 1, 2, 3, 4, 5, 6, 0],
    ], "what does not fill a row is left out"
    assert rows[1]["labels"][0] == -100, "nothing before it is in its row"
    assert rows[3]["labels"].tolist().count(-100) == 2
