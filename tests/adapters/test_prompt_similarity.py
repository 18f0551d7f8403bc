"""SPoT's two similarities, against loops and cases that can be worked out by hand, and on the published prompts."""

import math

import numpy
import pytest
import torch
from safetensors.torch import save_file

from recipes.adapters.prompt_similarity import (
    cosine_of_average_tokens,
    per_token_average_cosine,
    similarity_table,
)
from recipes.adapters.published import read_tensors
from scripts.prompt_similarity import main as program


def cosine(first, second) -> float:
    return sum(a * b for a, b in zip(first, second)) / math.hypot(*first) / math.hypot(*second)


def test_both_as_defined():
    torch.manual_seed(0)
    first, second = torch.randn(4, 6), torch.randn(3, 6)
    means = [[sum(column) / len(column) for column in zip(*prompt.tolist())] for prompt in (first, second)]
    assert cosine_of_average_tokens(first, second) == pytest.approx(cosine(*means), rel=1e-6)
    pairs = [cosine(one, two) for one in first.tolist() for two in second.tolist()]
    assert per_token_average_cosine(first, second) == pytest.approx(sum(pairs) / 12, rel=1e-6)


def test_the_two_differ_where_tokens_do():
    """Tokens of one prompt that point apart: the average sees one direction, the pairs see all."""
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert cosine_of_average_tokens(first, first) == pytest.approx(1)
    assert per_token_average_cosine(first, first) == pytest.approx(0.5)
    longer = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    assert cosine_of_average_tokens(first, longer) == pytest.approx(11 / math.sqrt(202))
    assert per_token_average_cosine(first, longer) == pytest.approx(0.5)  # a token's length does not count


def test_the_table_has_each_pair_once_and_the_most_alike_first():
    torch.manual_seed(0)
    prompt = torch.randn(5, 8)
    prompts = {"a": prompt, "b": torch.randn(5, 8), "c": prompt + 0.01 * torch.randn(5, 8)}
    rows = similarity_table(prompts)
    assert (rows[0]["first"], rows[0]["second"]) == ("a", "c")
    assert {(row["first"], row["second"]) for row in rows} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert [row["cosine_of_average_tokens"] for row in rows] == sorted(
        (row["cosine_of_average_tokens"] for row in rows), reverse=True
    )


@pytest.mark.real_data
def test_the_published_prompts(root):
    """Three prompts for T5 1.1 base: by both measures the two tasks on pairs of sentences, MRPC and RTE, are the nearest."""
    folder = root.parent / "shared/data/soft_prompts_t5base/t5_1_1_lm100k_base"
    prompts = {name: next(iter(read_tensors(folder / f"{name}.npy").values())) for name in ("sst2", "rte", "mrpc")}
    assert {tuple(prompt.shape) for prompt in prompts.values()} == {(100, 768)}
    rows = similarity_table(prompts)
    assert [(row["first"], row["second"]) for row in rows] == [("rte", "mrpc"), ("sst2", "rte"), ("sst2", "mrpc")]
    assert rows[0] == max(rows, key=lambda row: row["per_token_average_cosine"])
    for row in rows:
        one, two = prompts[row["first"]].double(), prompts[row["second"]].double()
        pairs = [float(a @ b / a.norm() / b.norm()) for a in one for b in two]
        assert row["per_token_average_cosine"] == pytest.approx(sum(pairs) / 10_000, abs=1e-9)
        means = one.mean(dim=0), two.mean(dim=0)
        assert row["cosine_of_average_tokens"] == pytest.approx(
            float(means[0] @ means[1] / means[0].norm() / means[1].norm())
        )


def test_the_program_reads_both_forms_and_refuses_what_is_none(tmp_path, capsys):
    numpy.save(tmp_path / "one.npy", numpy.eye(2, 3, dtype="float32"))
    (tmp_path / "two").mkdir()
    save_file({"prompt_embeddings": torch.eye(2, 3)}, tmp_path / "two/adapter_model.safetensors")
    program([str(tmp_path / "one.npy"), str(tmp_path / "two")])
    assert capsys.readouterr().out.splitlines()[-1] == "| one | two | 1.0000 | 0.5000 |"
    numpy.save(tmp_path / "wide.npy", numpy.eye(2, 4, dtype="float32"))
    numpy.save(tmp_path / "flat.npy", numpy.ones(3, dtype="float32"))
    (tmp_path / "empty").mkdir()
    for second, line in {
        "one.npy": "one prompt alone is like nothing",
        "wide.npy": "models of different width (3, 4)",
        "flat.npy": "holds no soft prompt",
        "empty": "holds no adapter_model.safetensors",
        "gone.npy": "no such file",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            program([str(tmp_path / "one.npy"), str(tmp_path / second)])
        assert line in capsys.readouterr().err
