"""The life of a run: what it leaves, and what a second call of the same command does."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import yaml

from recipes.core.lock import locked

RECIPE = "finetuning/sft"


@pytest.fixture(scope="module")
def finished(main, job, tiny, tmp_path_factory) -> Path:
    """The folder of a finished SFT run, to be read and copied only."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    main(RECIPE)(job(RECIPE, folder))
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of the finished run, with its times."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def again(main, job, folder, capsys):
    """`again("--overwrite", "always")`: the same command once more; returns what it printed."""

    def call(*more: str) -> tuple[str, str]:
        capsys.readouterr()
        main(RECIPE)(job(RECIPE, folder, *more))
        return capsys.readouterr()

    return call


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def unfinish(folder: Path) -> None:
    """The run as if it had been killed while it saved its model."""
    for name in ("result.json", "model.safetensors", "config.json"):
        (folder / name).unlink()


# ------------------------------------------------------------------------------------------------------ what it leaves
def test_it_leaves_these_files_and_no_others(finished):
    assert {path.name for path in finished.iterdir()} == {
        "README.md",  # TRL's model card
        "result.json",
        "run.json",
        "config.yaml",
        "log.jsonl",
        "curves.png",
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "training_args.bin",
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    }
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_opens_with_all_that_belongs_to_it(finished, tiny):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(finished), AutoModelForCausalLM.from_pretrained(finished)
    before = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    assert tokenizer.chat_template == before.chat_template
    assert tokenizer.get_vocab() == before.get_vocab()
    ids = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (before.eos_token_id, before.pad_token_id)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == ids
    assert (model.config.eos_token_id, model.config.pad_token_id) == ids

    last = AutoModelForCausalLM.from_pretrained(finished / "checkpoint-6")
    first = AutoModelForCausalLM.from_pretrained(tiny / "model")
    pairs = zip(model.parameters(), last.parameters(), first.parameters(), strict=True)
    assert all(torch.equal(saved, trained) and not torch.equal(saved, old) for saved, trained, old in pairs)


def test_the_generation_config_of_the_model_is_kept(main, job, tiny, tmp_path):
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(tiny / "model")
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.2)
    shutil.copytree(tiny / "tokenizer", tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    argv = job(RECIPE, tmp_path / "run", "--max_steps", "1", "--model_name_or_path", str(tmp_path / "model"))
    main(RECIPE)(argv)
    kept = GenerationConfig.from_pretrained(tmp_path / "run")
    assert (kept.do_sample, kept.temperature, kept.top_p, kept.repetition_penalty) == (True, 0.6, 0.9, 1.2)
    assert kept.eos_token_id is not None


def test_the_result_says_what_was_done(finished, tiny):
    found = result(finished)
    assert found["recipe"] == RECIPE
    assert found["config"] == f"{RECIPE}/job"
    assert found["seed"] == 3
    assert found["settings"]["max_steps"] == 6
    assert found["steps"] == 6
    assert set(found["metrics"]) == {
        "train_loss",
        "eval_loss",
        "perplexity",
        "supervised_share",
        "supervised_eos_share",
    }
    assert found["metrics"]["eval_loss"] < found["baselines"]["eval_loss"]
    from transformers import AutoModelForCausalLM

    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(finished).parameters())
    assert found["parameters"] == found["trained_parameters"] == parameters
    for key in ("seconds", "peak_memory_mib", "samples_per_second", "tokens", "tokens_per_second"):
        assert found[key] > 0, key
    assert {"python", "torch", "transformers", "trl", "peft", "accelerate", "datasets"} <= set(found["versions"])
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["processes"] == 1
    assert "commit" in found


def test_the_log_has_a_line_for_every_logged_step(finished, log_of):
    lines = log_of(finished)
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [2, 3, 4, 6], "every third step, and at each checkpoint"
    assert all(line["grad_norm"] > 0 for line in trained)
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert result(finished)["metrics"]["train_loss"] == trained[-1]["loss"]


def test_its_config_can_be_run_again(finished, main, job):
    parsed = main(RECIPE).parse(["--config", str(finished / "config.yaml")])
    assert parsed.plain() == yaml.safe_load((finished / "config.yaml").read_text())
    asked = main(RECIPE).parse(job(RECIPE, finished))
    assert parsed.groups == asked.groups


def test_a_number_that_is_not_finite_leaves_valid_json(main, job, tmp_path, monkeypatch):
    sft = __import__("recipes.finetuning.sft", fromlist=["sft"])
    monkeypatch.setattr(sft.math, "exp", lambda _: float("inf"))
    main(RECIPE)(job(RECIPE, tmp_path / "run", "--max_steps", "1"))
    assert (
        json.loads((tmp_path / "run" / "result.json").read_text(), parse_constant=pytest.fail)["metrics"]["perplexity"]
        is None
    )


def test_a_run_says_that_its_cpu_has_no_bf16(main, job, tmp_path, monkeypatch, capsys):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    main(RECIPE)(job(RECIPE, tmp_path / "run", "--bf16", "true"))
    assert "bf16: this CPU has no instructions for it; the run is in fp32" in capsys.readouterr().err.splitlines()


# ------------------------------------------------------------------------------------------------------- a second call
def test_a_finished_run_is_left_alone(folder, again):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    times = {path: path.stat().st_mtime_ns for path in before}
    printed = again().out
    assert f"{RECIPE}/job: finished before, in {folder}; --overwrite always makes it again" in printed
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    touched = {path.name for path in before if path.stat().st_mtime_ns != times[path]}
    assert touched == {"result.json"}, "make compares its time with that of the config"


def test_overwrite_always_makes_it_again_and_to_the_same_end(folder, again, log_of):
    before, lines, time = weights(folder), log_of(folder), (folder / "model.safetensors").stat().st_mtime_ns
    (folder / "samples.md").write_text("from before")
    again("--overwrite", "always")
    assert (folder / "model.safetensors").stat().st_mtime_ns > time
    assert weights(folder) == before
    assert log_of(folder) == lines
    assert not (folder / "samples.md").exists()


def test_overwrite_changed_leaves_the_same_settings_alone(folder, again):
    time = (folder / "model.safetensors").stat().st_mtime_ns
    assert "finished before" in again("--overwrite", "changed").out
    assert (folder / "model.safetensors").stat().st_mtime_ns == time


def test_overwrite_changed_makes_other_settings_anew(folder, again):
    before = weights(folder)
    again("--overwrite", "changed", "--learning_rate", "1e-3")
    assert weights(folder) != before
    assert result(folder)["settings"]["learning_rate"] == 1e-3
    assert json.loads((folder / "run.json").read_text())["settings"]["learning_rate"] == 1e-3


@pytest.mark.parametrize("more", [["--learning_rate", "1e-3"], ["--max_test_samples", "3"], ["--seed", "4"]])
def test_another_config_in_the_same_folder_is_refused(folder, again, more, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stop:
        again(*more)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "holds a run of another config" in error
    assert more[0][2:] in error
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_changed_script_is_said_and_made_anew_only_where_asked(folder, again):
    held = json.loads((folder / "run.json").read_text())
    assert set(held["inputs"]) >= {"sft.py"}
    held["inputs"]["sft.py"] = "another"
    (folder / "run.json").write_text(json.dumps(held))
    time = (folder / "model.safetensors").stat().st_mtime_ns
    told = again()
    assert "finished before" in told.out
    assert "its script or a run it starts from changed" in told.err
    assert (folder / "model.safetensors").stat().st_mtime_ns == time
    again("--overwrite", "changed")
    assert (folder / "model.safetensors").stat().st_mtime_ns > time


def test_a_parent_that_was_made_anew_counts_as_a_change(main, job, finished, tmp_path, capsys):
    parent = Path(shutil.copytree(finished, tmp_path / "parent"))
    argv = job(RECIPE, tmp_path / "child", "--max_steps", "1", "--model_name_or_path", str(parent))
    main(RECIPE)(argv)
    time = (tmp_path / "child" / "model.safetensors").stat().st_mtime_ns
    os.utime(parent / "result.json")  # the same result at another time is no change
    main(RECIPE)([*argv, "--overwrite", "changed"])
    assert (tmp_path / "child" / "model.safetensors").stat().st_mtime_ns == time

    changed = result(parent)
    changed["metrics"]["eval_loss"] += 1
    (parent / "result.json").write_text(json.dumps(changed))
    main(RECIPE)([*argv, "--overwrite", "changed"])
    assert (tmp_path / "child" / "model.safetensors").stat().st_mtime_ns > time


# --------------------------------------------------------------------------------------------------------- interrupted
def cut_short(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def unsealed(checkpoint: Path) -> None:
    (checkpoint / "complete.json").unlink()


def half_sealed(checkpoint: Path) -> None:
    (checkpoint / "complete.json").write_text('{"model.safe')


def without_optimizer(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()


@pytest.mark.parametrize("damage", [cut_short, unsealed, half_sealed, without_optimizer], ids=lambda f: f.__name__)
def test_a_half_written_checkpoint_is_passed_over(folder, again, log_of, damage):
    before, lines = weights(folder), log_of(folder)
    unfinish(folder)
    damage(folder / "checkpoint-6")
    told = again()
    assert f"note: {folder}/checkpoint-6 is half-written; using the one before" in told.err
    assert f"resuming from {folder}/checkpoint-4" in told.out
    assert weights(folder) == before
    assert log_of(folder) == lines


def test_without_a_whole_checkpoint_it_starts_anew(folder, again, log_of):
    before, lines = weights(folder), log_of(folder)
    unfinish(folder)
    for step in (2, 4, 6):
        unsealed(folder / f"checkpoint-{step}")
    assert "resuming" not in again().out
    assert weights(folder) == before
    assert log_of(folder) == lines


def test_killed_after_the_last_step_it_only_saves(folder, again, log_of):
    before, lines, metrics = weights(folder), log_of(folder), result(folder)["metrics"]
    unfinish(folder)
    again()
    assert weights(folder) == before
    assert log_of(folder) == lines
    assert result(folder)["metrics"] == metrics


def test_a_folder_in_which_another_command_is_at_work_is_refused(folder, again, capsys):
    unfinish(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with locked(folder):
        for more in ([], ["--overwrite", "always"]):
            with pytest.raises(SystemExit) as stop:
                again(*more)
            assert stop.value.code == 2
            assert f"another command is still at work in {folder}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    again()
    assert result(folder)


def test_a_worker_that_outlives_its_run_keeps_nobody_out(tmp_path):
    forked = multiprocessing.get_context("fork")
    ours, its = forked.Pipe()
    with locked(tmp_path):
        worker = forked.Process(target=lambda: (its.send("up"), its.recv()), daemon=True)
        worker.start()
        assert ours.recv() == "up"
    with locked(tmp_path):
        assert worker.is_alive()
    worker.kill()
    worker.join()


def test_an_interrupt_says_that_the_run_goes_on(main, job, tmp_path, monkeypatch, capsys):
    from transformers import Trainer

    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "training_step", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(RECIPE)(job(RECIPE, tmp_path / "run"))
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; the same command resumes from the last checkpoint"


# --------------------------------------------------------------------------------------------------------------- seeds
def test_the_seed_is_set_before_the_first_weight_is_made(main, job, tmp_path):
    from safetensors.torch import load_file

    def head(name: str, seed: int):
        more = ["--seed", str(seed), "--learning_rate", "0", "--max_steps", "1", "--max_test_samples", "2"]
        main("rlhf/reward")(job("rlhf/reward", tmp_path / name, *more))
        assert result(tmp_path / name)["seed"] == seed
        return load_file(tmp_path / name / "model.safetensors")["score.weight"]

    first, same, other = head("first", 0), head("same", 0), head("other", 1)
    assert first.equal(same)
    assert not first.equal(other)


# --------------------------------------------------------------------------------------------------------------- files
def test_a_file_is_whole_or_as_it_was(tmp_path):
    from recipes.core.files import write_atomically, write_json

    write_json(tmp_path / "a.json", {"old": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a.json", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
