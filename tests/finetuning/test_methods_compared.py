"""The comparison: what each method's runs are told, which rate is chosen, and what the table says."""

import json
from statistics import mean, stdev
from types import SimpleNamespace

import pytest

from recipes.core.config import read_command_line
from recipes.core.errors import UserError
from recipes.finetuning.comparison import ComparisonConfig
from recipes.finetuning.comparison_report import draw, family_of, markdown, merges, summary
from recipes.finetuning.comparison_runs import best_rate, rates_beyond, run_command

BASE = "finetuning/classification/quickstart"


@pytest.fixture
def compared(root, monkeypatch):
    monkeypatch.chdir(root)
    return ComparisonConfig(methods=["lora", "frozen"], base=BASE, settings={"max_steps": 3, "dataset_name": "a b"})


def test_a_method_s_settings_are_those_of_its_own_file(compared):
    assert compared.own["frozen"].keys() == {"freeze_base", "learning_rate"}
    assert compared.own["lora"].keys() == {"peft", "learning_rate"}
    assert compared.own["lora"]["peft"] == {"method": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["lorra"]}, "no method 'lorra' in configs/finetuning/classification; did you mean 'lora'"),
        ({"methods": []}, "methods: is empty"),
        ({"learning_rates": []}, "learning_rates: is empty"),
        ({"further": -1}, "further must be at least 0, not -1"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1"),
        ({"base": "rlhf/ppo/quickstart"}, "is no config of fine-tuning"),
        ({"methods": ["sst2"]}, "sst2.yaml sets no learning_rate of its own"),
    ],
)
def test_what_cannot_be_compared_is_refused(settings, message, compared):
    with pytest.raises(UserError, match=message):
        ComparisonConfig(**{"methods": ["lora"], "base": BASE, **settings})


def test_a_run_is_told_all_as_a_user_would_tell_it(compared, tmp_path):
    recipe, words, folder = run_command(compared, "runs", tmp_path / "x", "lora", 0.3, seed=4, search=True)
    assert recipe == "finetuning/classification"
    assert folder == tmp_path / "x"
    told = {key: setting.value for key, setting in read_command_line(words).items()}
    assert told["config"] == f"configs/{BASE}.yaml"
    assert told["learning_rate"] == pytest.approx(0.3 * compared.own["lora"]["learning_rate"], rel=1e-2)
    assert (told["seed"], told["max_steps"], told["dataset_name"], told["peft.r"]) == (4, 3, "a b", 8)
    assert (told["dataset_test_split"], told["test_split_size"]) == ("held-out", 0.1)
    _, words, _ = run_command(compared, "runs", tmp_path / "x", "lora", 1.0, seed=0, search=False)
    assert "--test_split_size" not in words, "the final runs train on all training rows and measure on the test split"


def result(score, **more):
    return {
        "metrics": {"accuracy": score},
        "trained_parameters": 10,
        "parameters": 1000,
        "seconds": 2.0,
        "peak_memory_mib": 100.0,
        "baselines": {},
        **more,
    }


def test_the_best_rate_is_that_of_the_best_score(compared):
    searched = {
        ("lora", 0.1): result(0.5),
        ("lora", 1.0): result(0.7),
        ("lora", 3.0): None,
        ("frozen", 1.0): result(0.9),
    }
    assert best_rate(searched, "lora", compared) == 1.0
    compared.higher_is_better = False
    assert best_rate(searched, "lora", compared) == 0.1
    assert best_rate({("lora", 1.0): None}, "lora", compared) is None
    assert best_rate({("lora", 1.0): result(0.5), ("lora", 0.3): result(0.5)}, "lora", compared) == 0.3


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({0.3: 0.5, 1.0: 0.7, 3.0: 0.6}, []),
        ({0.3: 0.5, 1.0: 0.6, 3.0: 0.7}, [9.0]),
        ({0.3: 0.7, 1.0: 0.6, 3.0: 0.5}, [0.09]),
        ({1.0: 0.5, 3.0: 0.6, 9.0: None}, []),
        ({0.3: None, 1.0: None}, [0.09]),
        ({1.0: 0.5}, []),
    ],
)
def test_the_search_goes_on_past_its_edge(scores, expected, compared):
    searched = {("lora", rate): score and result(score) for rate, score in scores.items()}
    assert rates_beyond({**searched, ("frozen", 100.0): result(1.0)}, "lora", compared) == expected


def test_a_row_of_the_table(compared, tmp_path):
    scores = [0.6, 0.8, 0.7]
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 2048)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    finished = {
        ("lora", seed): result(
            score, seconds=seed + 1.0, peak_memory_mib=100.0 + seed, settings={"output_dir": str(tmp_path)}
        )
        for seed, score in enumerate(scores)
    }
    searched = {("lora", 0.1): result(0.5), ("lora", 3.0): None}
    row = summary("lora", 0.1, searched, finished, compared)
    assert (row["score"], row["spread"]) == (mean(scores), stdev(scores))
    assert (row["seconds"], row["peak_memory_mib"], row["kib_on_disk"], row["merges"]) == (2.0, 102.0, 2.0, True)
    assert row["share"] == 0.01
    assert row["search"] == {"0.0005": 0.5, "0.015": None}
    diverged = summary("frozen", None, {("frozen", 1.0): None}, {}, compared)
    assert diverged["score"] is None
    lines = markdown({"lora": row, "frozen": diverged}, "accuracy").splitlines()
    assert lines[0].startswith("| method | accuracy | learning rate |")
    assert lines[2] == "| lora | 0.700 ± 0.100 | 0.0005 | 10 | 1.00 % | 2 | 102 | 2 | yes |"
    assert "did not stay finite" in lines[3]
    assert len({line.count("|") for line in lines}) == 1
    draw({"lora": row, "frozen": diverged}, "accuracy", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("method", "expected"),
    [("LORA", True), ("IA3", True), ("BITFIT", True), ("BOTTLENECK", False), ("PREFIX_TUNING", False), (None, None)],
)
def test_what_can_be_merged(method, expected, tmp_path):
    if method:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": method}))
    assert merges(tmp_path) is expected


def test_a_score_that_the_runs_do_not_measure_is_refused(compared):
    compared.score = "acuracy"
    with pytest.raises(
        UserError, match="score: the runs of finetuning/classification/quickstart measure no 'acuracy'; did"
    ):
        best_rate({("lora", 1.0): result(0.5)}, "lora", compared)


def test_families_of_methods(root):
    assert family_of("p-tuning") == family_of("prompt-tuning-random") == family_of("prefix-tuning") == "prompts"
    assert family_of("qlora") == family_of("rslora") == "low rank"


def test_a_run_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    from recipes.finetuning import comparison_runs

    class Failed:
        sentinel, exitcode = 0, 1

        def __init__(self, target, args):
            folder = args[2]
            folder.parent.mkdir(parents=True, exist_ok=True)
            comparison_runs.printed(folder).write_text("error: no such file\n")

        def start(self):
            pass

        join = start

    context = SimpleNamespace(Process=Failed, set_forkserver_preload=lambda _: None)
    monkeypatch.setattr(comparison_runs.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(comparison_runs, "wait", list)
    commands = {("lora", 1.0): ("finetuning/classification", [], tmp_path / "lora" / "search-1")}
    with pytest.raises(UserError, match="lora search-1 failed: error: no such file"):
        comparison_runs.make(commands, 1)
    comparison_runs.printed(tmp_path / "lora" / "search-1").write_text("error: the loss is nan at step 2; …\n")
    assert comparison_runs.make(commands, 1) == {("lora", 1.0): None}, "a rate too high is a result"
