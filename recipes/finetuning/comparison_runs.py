"""The runs of a comparison: each a process of its own, so that its memory is its own, and a folder that is kept.

Stopped at any moment, the same command makes what is missing: a finished run is not made again.
"""

import importlib
import json
import multiprocessing
import os
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.core.catalog import CONFIGS, Recipe, find_config
from recipes.core.config import nest, read_yaml
from recipes.core.errors import UserError, did_you_mean
from recipes.core.files import read_json

if TYPE_CHECKING:
    from recipes.finetuning.comparison import ComparisonConfig

METHODS = CONFIGS / "finetuning" / "classification"
DIVERGED = "error: the loss is "  # how a run ends whose learning rate was too high

Key = tuple[str, float | int]  # a method, and the rate's multiple or the seed


def own_settings(name: str, base: str) -> dict[str, Any]:
    """The keys that the config of a method sets itself, in no parent: `peft`, `learning_rate` and the like.

    Raises:
        UserError: there is no such method, it sets no learning rate, or `base` is no config of fine-tuning.
    """
    path = METHODS / f"{name}.yaml"
    if not path.is_file():
        known = [each.stem for each in METHODS.glob("*.yaml")]
        raise UserError(f"methods: no method '{name}' in configs/finetuning/classification{did_you_mean(name, known)}")
    if not find_config(base).resolve().is_relative_to(CONFIGS / "finetuning"):
        raise UserError(f"base: {base} is no config of fine-tuning")
    settings, files = read_yaml(path)
    inherited = read_yaml(files[1])[0] if len(files) > 1 else {}
    own = nest({key: setting for key, setting in settings.items() if inherited.get(key) != setting})
    if "learning_rate" not in own:
        raise UserError(f"methods: {path.name} sets no learning_rate of its own to search around")
    return own


def run_command(
    compared: "ComparisonConfig", runs_dir: str, folder: Path, name: str, rate: float, seed: int, search: bool
) -> tuple[str, list[str], Path]:
    """The recipe of a run, its words after `python -m recipes.…`, and its folder."""
    settings = {
        **(compared.settings or {}),
        **compared.own[name],
        "seed": seed,
        "output_dir": str(folder),
        "runs_dir": runs_dir,
    }
    settings["learning_rate"] = float(f"{rate * settings['learning_rate']:.3g}")
    if search:
        settings |= {"dataset_test_split": "held-out", "test_split_size": compared.held_out}
    words = [word for key, value in settings.items() for word in (f"--{key}", json.dumps(value))]
    path = find_config(compared.base)
    recipe = str(path.resolve().relative_to(CONFIGS).parent)
    return recipe, ["--config", os.path.relpath(path), *words], folder


def make(commands: dict[Key, tuple[str, list[str], Path]], processes: int) -> dict[Key, dict[str, Any] | None]:
    """Make every run that is not there yet, `processes` at a time; returns each one's `result.json`, None if it diverged.

    Raises:
        UserError: a run failed for another reason than its learning rate.
    """
    context = multiprocessing.get_context("forkserver")
    modules = [Recipe(recipe).module for recipe in {recipe for recipe, _, _ in commands.values()}]
    context.set_forkserver_preload([*modules, "recipes.core.monitor"])
    waiting = [each for each in commands.values() if not (each[2] / "result.json").exists() and not diverged(each[2])]
    running: dict[Any, tuple[Any, Path]] = {}
    for number, (recipe, words, folder) in enumerate(waiting, 1):
        print(f"[{number}/{len(waiting)}] {folder.parent.name} {folder.name}", flush=True)
        process = context.Process(target=work, args=(recipe, words, folder, processes))
        process.start()
        running[process.sentinel] = (process, folder)
        while len(running) >= processes or (number == len(waiting) and running):
            for sentinel in wait(list(running)):
                process, ended = running.pop(sentinel)
                process.join()
                if process.exitcode and not diverged(ended):
                    said = printed(ended).read_text(errors="replace").strip().splitlines()
                    raise UserError(
                        f"{ended.parent.name} {ended.name} failed: {said[-1] if said else process.exitcode}"
                    )
    return {key: read_json(folder / "result.json") for key, (_, _, folder) in commands.items()}


def work(recipe: str, words: list[str], folder: Path, processes: int) -> None:
    """One run in this process; what it prints goes beside its folder."""
    import torch

    folder.parent.mkdir(parents=True, exist_ok=True)
    with printed(folder).open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if not torch.accelerator.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    main = importlib.import_module(Recipe(recipe).module).main
    try:
        main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def printed(folder: Path) -> Path:
    return folder.with_suffix(folder.suffix + ".txt")


def diverged(folder: Path) -> bool:
    """Whether a run ended in a loss that is not finite."""
    log = printed(folder)
    return log.exists() and DIVERGED in log.read_text(errors="replace")


def best_rate(searched: dict[Key, dict[str, Any] | None], name: str, compared: "ComparisonConfig") -> float | None:
    """The multiple of the method's own rate with the best score on held-out rows, of equal ones the lowest; None if none."""
    sign = 1 if compared.higher_is_better else -1
    scores = {
        rate: sign * score_of(result, compared)
        for (method, rate), result in searched.items()
        if method == name and result
    }
    return max(sorted(scores), key=scores.get) if scores else None


def score_of(result: dict[str, Any], compared: "ComparisonConfig") -> float:
    """The figure of a run that is compared.

    Raises:
        UserError: the runs do not measure it.
    """
    measured = result["metrics"]
    if compared.score not in measured:
        raise UserError(
            f"score: the runs of {compared.base} measure no '{compared.score}'{did_you_mean(compared.score, measured)}"
        )
    return measured[compared.score]


def rates_beyond(searched: dict[Key, dict[str, Any] | None], name: str, compared: "ComparisonConfig") -> list[float]:
    """The multiple to try next where the best one so far is the highest or the lowest tried: one more step of that size.

    Where no loss stayed finite it lies below the lowest. Empty where the best lies between others, or one alone was tried.
    """
    tried = sorted(rate for method, rate in searched if method == name)
    best = best_rate(searched, name, compared)
    if len(tried) < 2 or best not in (None, tried[0], tried[-1]):
        return []
    edge, neighbour = (tried[-1], tried[-2]) if best == tried[-1] else (tried[0], tried[1])
    return [float(f"{edge * edge / neighbour:.3g}")]
