"""T5's mixture: the paper's rates, what is drawn at them, the text-to-text form, and the optimizer."""

import numpy as np
import pytest
import torch

from recipes.pretraining.mixture import Mixture, PairCollator, encode_tasks, mixing_rates, with_prefix


def test_rates_are_those_of_the_paper():
    """r_m = min(e_m, K) / Σ min(e_n, K), then r_m^(1/T) over its sum."""
    assert mixing_rates([600, 300, 100], limit=10**9, temperature=1) == pytest.approx([0.6, 0.3, 0.1])
    assert mixing_rates([600, 300, 100], limit=200, temperature=1) == pytest.approx([0.4, 0.4, 0.2])
    assert mixing_rates([900, 100], limit=10**9, temperature=2) == pytest.approx([0.75, 0.25])
    assert mixing_rates([900, 1], limit=10**9, temperature=1e9) == pytest.approx([0.5, 0.5])
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes, limit, temperature = rng.integers(1, 10**6, 5), rng.integers(1, 10**6), rng.uniform(0.5, 8)
        held = [min(size, limit) for size in sizes.tolist()]
        powers = [(each / sum(held)) ** (1 / temperature) for each in held]
        expected = [power / sum(powers) for power in powers]
        assert mixing_rates(sizes, limit, temperature) == pytest.approx(expected)


@pytest.fixture
def tasks() -> dict:
    return {
        name: [([number], [task]) for number in range(size)]
        for task, (name, size) in enumerate([("a", 90), ("b", 10)])
    }


def test_examples_are_drawn_at_the_rates(tasks):
    mixture = Mixture(tasks, limit=10**6, temperature=2.0, seed=0)
    assert len(mixture) == 100
    drawn = []
    for epoch in range(60):
        mixture.epoch.fill_(epoch)
        drawn += [mixture[number] for number in range(100)]
    shares = np.bincount([target[0] for _, target in drawn]) / len(drawn)
    assert abs(shares[0] - 0.75) < 4 * (0.75 * 0.25 / 6000) ** 0.5
    for task, size in ((0, 90), (1, 10)):
        counts = np.bincount([given[0] for given, target in drawn if target[0] == task], minlength=size)
        expected = 6000 * mixture.rates[task] / size
        assert np.abs(counts - expected).max() < 4.5 * expected**0.5


def test_an_example_depends_on_the_seed_the_epoch_and_its_number_alone(tasks):
    def drawn(seed: int, epoch: int) -> list:
        mixture = Mixture(tasks, 10**6, 1.0, seed)
        mixture.epoch.fill_(epoch)
        return [mixture[number] for number in (5, 3, 4)]

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1)
    assert drawn(0, 0) != drawn(1, 0)


def test_an_epoch_is_as_long_as_the_examples_within_the_limit(tasks):
    assert len(Mixture(tasks, limit=20, temperature=1.0, seed=0)) == 30


@pytest.fixture
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny / "tokenizer")


def test_every_task_has_one_form(tokenizer):
    from datasets import Dataset

    rows = Dataset.from_list(
        [
            {"task": "copy", "prompt": "one two", "completion": "one two"},
            {"task": "last", "prompt": "one two", "completion": "two"},
            {"task": "copy", "prompt": "please " * 30, "completion": "thank " * 30},
        ]
    )
    encoded = encode_tasks(rows, tokenizer, 20, 8)
    eos = tokenizer.eos_token_id
    assert list(encoded) == ["copy", "last"]
    given, target = encoded["last"][0]
    assert tokenizer.decode(given[:-1]) == with_prefix("last", "one two") == "last: one two"
    assert (given[-1], target[-1]) == (eos, eos)
    assert tokenizer.decode(target[:-1]) == "two"
    long_given, long_target = encoded["copy"][1]
    assert (len(long_given), len(long_target)) == (20, 8)
    assert (long_given[-1], long_target[-1]) == (eos, eos)


def test_a_batch_is_padded_and_the_decoder_starts_from_padding(tokenizer):
    pad = tokenizer.pad_token_id
    batch = PairCollator(tokenizer)([([5, 6, 1], [9, 1]), ([7, 1], [8, 9, 9, 1])])
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 1, pad]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[9, 1, -100, -100], [8, 9, 9, 1]]
    assert batch["decoder_input_ids"].tolist() == [[pad, 9, 1, pad], [pad, 8, 9, 9]]


def test_adafactors_steps_are_relative_to_a_weights_size():
    """Shazeer & Stern 2018, algorithm 5: the first step moves a weight by the rate times its root mean square."""
    from transformers import TrainingArguments

    from recipes.pretraining.encoder_decoder import optimizer_of

    assert optimizer_of(TrainingArguments(optim="adamw_torch", use_cpu=True)) is None
    cls, settings = optimizer_of(TrainingArguments(optim="adafactor", learning_rate=0.01, use_cpu=True))
    for size in (0.1, 4.0):
        weight = torch.nn.Parameter(size * torch.randn(30, 30, generator=torch.Generator().manual_seed(0)))
        before = weight.detach().clone()
        optimizer = cls([weight], **settings)
        weight.grad = torch.randn(30, 30, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        moved = (weight.detach() - before).square().mean().sqrt()
        assert moved.item() == pytest.approx(0.01 * before.square().mean().sqrt().item(), rel=0.1)


def test_a_space_before_an_answer_takes_nothing_from_the_baseline(main, job, tmp_path):
    import json

    rows = [{"task": "mood", "prompt": f"so {n}", "completion": " good" if n % 4 else " bad"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--dataset_name", str(tmp_path / "rows.jsonl"), "--dataset_columns", "null"]
    main("pretraining/text_to_text")(job("pretraining/text_to_text", tmp_path / "run", *flags))
    baselines = json.loads((tmp_path / "run" / "result.json").read_text())["baselines"]
    assert baselines["mood_exact_match"] >= 0.5


def test_two_tasks_are_told_apart_by_their_prefix(main, job, tmp_path):
    """The same words, `first` or `second` asked of them: a small model that answers both has read the prefix."""
    import json

    folder = tmp_path / "run"
    flags = ["--max_steps", "400", "--per_device_train_batch_size", "16", "--lr_scheduler_type", "linear"]
    flags += ["--learning_rate", "5e-3", "--save_strategy", "no", "--logging_steps", "100"]
    main("pretraining/text_to_text")(job("pretraining/text_to_text", folder, *flags))
    result = json.loads((folder / "result.json").read_text())
    found, baselines = result["metrics"], result["baselines"]
    for task in ("first", "second"):
        assert found[f"{task}_exact_match"] > baselines[f"{task}_exact_match"]
    assert found["first_exact_match"] + found["second_exact_match"] >= 1.25
    samples = (folder / "samples.md").read_text()
    assert "first: " in samples
    assert "second: " in samples
