"""The lesson as it is printed and recorded, for the quickstart's text and for another."""

import json

import pytest

from recipes.core import UserError
from recipes.tokenization.explain import ExplainConfig


@pytest.fixture(scope="module")
def lesson(main, tmp_path_factory, request):
    """The quickstart's folder."""
    folder = tmp_path_factory.mktemp("explain") / "run"
    config = request.config.rootpath / "configs" / "tokenization" / "explain" / "quickstart.yaml"
    main("tokenization/explain")(["--config", str(config), "--output_dir", str(folder)])
    return folder


@pytest.fixture(scope="module")
def result(lesson):
    return json.loads((lesson / "result.json").read_text())


def test_the_merges_are_those_of_the_paper(result):
    merges = ["es", "est", "est</w>", "lo", "low", "ne", "new", "newest</w>", "low</w>", "wi"]
    assert [merge for merge, _ in result["metrics"]["merges"]] == merges
    assert [piece for piece, _ in result["metrics"]["wordpiece"]][:5] == ["wi", "wid", "lo", "##st", "low"]


def test_dynamic_programming_gives_what_going_through_all_segmentations_gives(result):
    metrics, baselines = result["metrics"], result["baselines"]
    for name in ("best_probability", "marginal_probability"):
        assert metrics[name] == pytest.approx(baselines[name], rel=1e-12)
    assert 0 < metrics["best_probability"] < metrics["marginal_probability"] < 1
    assert metrics["segmentations"] > 2
    assert "".join(metrics["best_segmentation"]) == "lowest"


def test_em_raises_the_likelihood_and_a_pruning_lowers_it_little(result):
    metrics, before = result["metrics"], result["baselines"]["log_likelihood"]
    assert before < metrics["log_likelihood"]
    assert before < metrics["log_likelihood_pruned"]
    assert metrics["pieces_pruned"] == round(0.8 * metrics["pieces"])
    assert metrics["sampling_deviation"] < 0.03


def test_the_lesson_shows_every_step(lesson):
    text = (lesson / "explain.md").read_text()
    for row in (
        "| 1 | `e` `s` | 9 | `es` |",
        "| 10 | `w` `i` | 3 | `wi` |",
        "| `l ##o` | 7 | 7/(7·7) = 0.1429 |",
        "`l o w e s t </w>` → `l o w es t </w>`",
        "## The lattice of lowest",
        "| never removed | yes |",
    ):
        assert row in text, row
    assert text.count("●") >= 2


REFUSED = {
    "no text": ({"text": " "}, "'text' is empty"),
    "two words for one": ({"words": ["a b"]}, "'a b' is not one word"),
    "a letter that the text has not": ({"words": ["xab"]}, "the text has no 'x'"),
    "a long first word": ({"words": ["a" * 17]}, "at most 16 characters, not 17"),
    "a seed of characters": ({"seed_size": 2}, "'seed_size' must be above 2"),
    "no step": ({"merges": 0}, "'merges' must be at least 1"),
    "nothing pruned": ({"keep": 1.0}, "'keep' must lie between 0 and 1"),
    "no smoothing": ({"alpha": 0.0}, "'alpha' must be above 0"),
}


@pytest.mark.parametrize(("settings", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_explained_is_refused(settings, expected):
    with pytest.raises(UserError) as error:
        ExplainConfig(**{"text": "ab ab abb", "seed_size": 5, **settings})
    assert expected in str(error.value)
