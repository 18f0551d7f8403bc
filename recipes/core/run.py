"""The life of a run, in one place, so that a script says only what is its own.

seed → output folder → resolved config → resume from the last good checkpoint → train → measure → save → result.
Killed at any moment, the same command goes on where the last checkpoint stands and ends as if undisturbed.
"""

import copy
import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from recipes.core.catalog import ROOT, Recipe
from recipes.core.config import Resolved, Setting, in_runs_dir, nest
from recipes.core.errors import UserError
from recipes.core.files import check_writable, read_json, write_json, write_text, write_yaml
from recipes.core.lock import locked

OVERWRITE = ["never", "changed", "always"]


@dataclasses.dataclass
class RunConfig:
    """Where a run's files go and what happens to those that are there."""

    runs_dir: str = dataclasses.field(
        default="runs", metadata={"help": "Folder of all runs; a value that begins with runs/ is looked up here."}
    )
    overwrite: str = dataclasses.field(
        default="never",
        metadata={
            "help": "What to do with an earlier run in output_dir: never = resume or leave it, changed = start anew if "
            "its config, script or parents changed, always = start anew.",
            "choices": OVERWRITE,
        },
    )


@dataclasses.dataclass
class TaskConfig:
    """Base of the method's dataclass in recipes that have no trainer and so no TrainingArguments."""

    output_dir: str | None = dataclasses.field(default=None, metadata={"help": "Folder of the results."})
    seed: int = dataclasses.field(default=42, metadata={"help": "Seed of everything random."})


class Run:
    """One run of one config: its folder, its seed, its record.

    Attributes:
        name: the config's name, such as `rlhf/ppo/quickstart`.
        output_dir: the folder of everything it leaves; a model in it opens with `from_pretrained`.
    """

    def __init__(self, recipe: Recipe, config: Resolved, arguments: Any):
        self.recipe, self.config, self.arguments = recipe, config, arguments
        self.name = config.name
        self.output_dir = Path(arguments.output_dir)
        self._not_there_before = [path for path in (self.output_dir, *self.output_dir.parents) if not path.exists()]
        self.overwrite = config.get(RunConfig).overwrite
        self.metrics: dict[str, Any] = {}
        self.baselines: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}
        self.history: list[dict[str, float]] = []
        self.began = time.monotonic()
        self.earlier_seconds = 0.0
        self.stages: list[Run] = []
        self.started = False
        self._locks = ExitStack()

    # ------------------------------------------------------------------------------------------------ what was asked
    @property
    def is_main_process(self) -> bool:
        return os.environ.get("RANK", "0") == "0"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What identifies the run: every setting but those about its folder.

        How the batch of an optimizer step is split over processes and micro-batches is left open, its size is not.
        """
        elsewhere = {"output_dir", "runs_dir", "overwrite"}
        settings = {key: value for key, value in self.config.settings.items() if key not in elsewhere}
        if hasattr(self.arguments, "per_device_train_batch_size"):
            split = ("per_device_train_batch_size", "gradient_accumulation_steps")
            settings = {key: value for key, value in settings.items() if key not in split}
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            sizes = [getattr(self.arguments, key) for key in split]
            settings["global_batch_size"] = Setting(math.prod(sizes) * processes, "derived")
        return nest(settings)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Digests of what else decides the outcome: the recipe's modules, embedded data, the runs it starts from."""
        modules = list(self.recipe.modules)
        if any(text.startswith("embedded/") for text in _texts(self.settings)):
            modules += sorted((ROOT / "recipes" / "embedded").glob("*.py"))
        digests = {str(file.name): _digest(file.read_bytes()) for file in modules}
        for value in _texts(self.settings):
            folder = Path(in_runs_dir(value, self.config.get(RunConfig).runs_dir))
            result = read_json(folder / "result.json") if "/" in value and len(value) < 4096 else None
            if result:
                digests[value] = _digest(json.dumps(result["metrics"], sort_keys=True).encode())
        return digests

    # --------------------------------------------------------------------------------------------------- its folder
    def finished(self) -> bool:
        """Whether the folder already holds this very run, whole; checks the folder and writes nothing.

        Raises:
            UserError: the folder cannot be written, or holds the run of another config.
        """
        check_writable(self.output_dir)
        held = self._held()
        if held is None:
            if self._foreign():
                raise UserError(f"output_dir: {self.output_dir} holds files of something else; choose an empty folder")
            return False
        if self.overwrite == "always":
            return False
        difference = _difference(held["settings"], self.settings)
        stale = difference or (held["inputs"] != self.inputs and "its script or a run it starts from changed")
        if stale and self.overwrite == "changed":
            return False
        if difference:
            raise UserError(
                f"output_dir: {self.output_dir} holds a run of another config ({difference}); "
                "choose another --output_dir, or start anew with --overwrite changed"
            )
        if stale and self.is_main_process:
            print(
                f"note: {self.output_dir}: {stale} since it was begun; --overwrite changed starts anew",
                file=sys.stderr,
            )
        return (self.output_dir / "result.json").exists()

    def _held(self) -> dict[str, Any] | None:
        return read_json(self.output_dir / "run.json")

    def _foreign(self) -> bool:
        """Whether the folder has files that no unfinished run of ours explains."""
        return self.output_dir.is_dir() and any(self.output_dir.iterdir())

    def claim(self) -> None:
        """Keep other commands out of the folder, if it is there, until `close`.

        Raises:
            UserError: another command is at work in it.
        """
        self._locks.close()
        if self.is_main_process and self.output_dir.is_dir():
            self._locks.enter_context(locked(self.output_dir))

    def start(self) -> None:
        """Make the folder and write what was asked for: the first thing a run writes. A second call does nothing."""
        if self.started:
            return
        self.started = True
        held = self._held()
        if self.is_main_process:
            fresh = {"name": self.name, "settings": self.settings, "inputs": self.inputs}
            if held is not None and (self.overwrite == "always" or (self.overwrite == "changed" and held != fresh)):
                old = self.output_dir.with_name(f".{self.output_dir.name}-old")  # a kill leaves either run whole
                shutil.rmtree(old, ignore_errors=True)
                os.replace(self.output_dir, old)
                shutil.rmtree(old)
                held = None
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self.claim()
            if held is None:
                write_json(self.output_dir / "run.json", fresh)  # first: it tells whose folder this is
            write_yaml(self.output_dir / "config.yaml", self.config.plain())
            if self.settings.get("bf16") and not self.arguments.bf16:
                print("bf16: this CPU has no instructions for it; the run is in fp32", file=sys.stderr)
        self._wait()

    def _wait(self) -> None:
        from accelerate import PartialState

        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            PartialState().wait_for_everyone()

    # ------------------------------------------------------------------------------------------------------ training
    def fit(self, trainer: Any) -> None:
        """Train from the last good checkpoint if there is one, then save the model with all that `from_pretrained` needs.

        Raises:
            UserError: the adapter and the trainer do not fit; the loss is no longer finite, or no gradient reaches an
                adapter: the last good checkpoint stays.
        """
        from recipes.core.adalora import allocate_ranks
        from recipes.core.adapter_checkpoints import keep_all_that_is_trained
        from recipes.core.adapter_penalty import add_fusion_penalty
        from recipes.core.checkpoints import (
            SealCheckpoints,
            discard_half_written,
            last_good_checkpoint,
            stop_at_max_steps,
        )
        from recipes.core.models import ModelConfig
        from recipes.core.monitor import TRL_TOKENS, RunLog, stop_on_non_finite_loss, stop_without_gradient
        from recipes.core.moving import move
        from recipes.core.peft_block import check_training
        from recipes.core.positions import check_row_lengths
        from recipes.core.weights import weights_in

        model = self.config.groups.get(ModelConfig)
        if self.settings.get("do_train") is False:
            raise UserError("do_train: a recipe trains; drop the key")
        check_training(trainer, model.peft if model else None)
        check_row_lengths(trainer)
        allocate_ranks(trainer)
        add_fusion_penalty(trainer)
        self.start()
        checkpoint = last_good_checkpoint(self.output_dir)
        self._wait()
        if checkpoint:
            move(checkpoint, trainer, self.is_main_process)
        if self.is_main_process:
            discard_half_written(self.output_dir)
            if checkpoint:
                print(f"resuming from {checkpoint}")
        self._wait()
        if checkpoint:
            earlier = _logged_state(checkpoint)
            self.earlier_seconds = earlier.get("seconds", 0.0)
            setattr(trainer, TRL_TOKENS, earlier.get("tokens", 0))
            trainer.args.eval_on_start = False  # the start was measured at the start
        trainer.add_callback(RunLog(self, trainer))
        keep_all_that_is_trained(trainer)
        trainer.add_callback(SealCheckpoints(trainer))
        stop_without_gradient(trainer)
        stop_on_non_finite_loss(trainer, self.output_dir)
        stop_at_max_steps(trainer)
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

        history = self.history = trainer.state.log_history
        parameters = [(weights_in(p), p.requires_grad) for p in trainer.model.parameters()]
        self.measured = {
            "steps": trainer.state.global_step,
            "samples_per_second": outcome.metrics.get("train_samples_per_second"),
            "tokens": next((entry["num_tokens"] for entry in reversed(history) if "num_tokens" in entry), None),
            "parameters": sum(count for count, _ in parameters),
            "trained_parameters": sum(count for count, trained in parameters if trained),
        }
        self.metrics["train_loss"] = next((entry["loss"] for entry in reversed(history) if "loss" in entry), None)
        self._save_model(trainer)

    def at_start(self, *names: str) -> dict[str, float]:
        """Held-out figures before the first step, of a run with `eval_on_start`.

        To call `trainer.evaluate()` before `trainer.train()` is no way to get them: under DDP the processes then train
        apart, each on its share of the data, without an error.
        """
        before = [entry for entry in self.history if entry.get("step") == 0]
        return {name: entry[name] for entry in before for name in names if name in entry}

    def _save_model(self, trainer: Any) -> None:
        unfinished = self.output_dir / ".model"
        trainer.save_model(str(unfinished))
        self._wait()
        if self.is_main_process:
            for file in unfinished.iterdir():
                if file.is_dir():  # an adapter with a name; one from before a kill would be in the way
                    shutil.rmtree(self.output_dir / file.name, ignore_errors=True)
                os.replace(file, self.output_dir / file.name)
            unfinished.rmdir()
            from recipes.core.results import draw_curves

            draw_curves(trainer.state.log_history, self.name, self.output_dir / "curves.png")
        self._wait()

    # -------------------------------------------------------------------------------------------------------- record
    def record(self, baselines: dict[str, Any] | None = None, **metrics: Any) -> None:
        """Add figures to the result; `baselines` holds what a reader should hold them against, by the same names."""
        self.start()
        self.metrics |= metrics
        self.baselines |= baselines or {}

    def finish(self) -> None:
        """Write `result.json`, the sign that the run is whole."""
        self._wait()
        if not self.is_main_process:
            return
        from recipes.core.results import commit, hardware, peak_memory_mib, versions

        self.start()
        self.seconds = self.earlier_seconds + time.monotonic() - self.began
        earlier = sum(part.earlier_seconds for part in self.stages)  # of stages that were made before a resume
        seconds = self.seconds + earlier if self.stages else self.seconds
        result = {
            "recipe": self.recipe.name,
            "config": self.name,
            "metrics": {name: _plain(value) for name, value in self.metrics.items() if value is not None},
            "baselines": {name: _plain(value) for name, value in self.baselines.items()},
            "seconds": round(seconds, 1),
            **{name: value for name, value in self.measured.items() if value is not None},
            "peak_memory_mib": peak_memory_mib(),
            "seed": self.arguments.seed,
            "settings": self.config.plain(),
            "versions": versions(),
            "commit": commit(),
            "hardware": hardware(),
        }
        if result.get("tokens"):
            result["tokens_per_second"] = round(result["tokens"] / seconds, 1)
        write_json(self.output_dir / "result.json", result)
        shown = {name: value for name, value in result["metrics"].items() if isinstance(value, (int, float))}
        print(f"\n{self.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
        print(f"{seconds:.0f} s, {result['peak_memory_mib']:.0f} MiB; {self.output_dir}/result.json")

    def write(self, name: str, text: str) -> None:
        """Write a text file of the script's own into the run's folder, whole or not at all."""
        self.start()
        if self.is_main_process:
            write_text(self.output_dir / name, text)

    def stage(self, name: str, **changes: Any) -> "Run":
        """A part of this run that trains a model of its own, in a folder of its own; it resumes by itself.

        Where `finished()` is true it was made before, and its `metrics` are those that it recorded. Else make it as any run,
        with `arguments`, `fit` and `record`, and end it with `finish`.

        Args:
            changes: arguments in which it differs from the run.
        """
        from transformers import set_seed

        self.start()
        arguments = copy.deepcopy(self.arguments)
        for key, value in {"output_dir": str(self.output_dir / name), **changes}.items():
            setattr(arguments, key, value)
        part = Run(self.recipe, self.config, arguments)
        part.name, part.overwrite = f"{self.name}/{name}", "never"
        made = read_json(part.output_dir / "result.json") or {}
        part.metrics, part.earlier_seconds = made.get("metrics", {}), made.get("seconds", 0.0)
        self.stages.append(part)
        set_seed(arguments.seed)  # what a stage draws does not depend on whether those before it were made or found
        return part

    def close(self) -> None:
        """Let other commands into the folder; after a mistake, leave no empty one behind that a trainer made."""
        for run in (self, *self.stages):
            run._locks.close()
        if self.is_main_process and not self.started:
            with suppress(OSError):
                for folder in self._not_there_before:
                    folder.rmdir()


def read_parent(path: str | Path) -> dict[str, Any]:
    """The `result.json` of a finished run; an empty dictionary for a model that is no run of ours."""
    return read_json(Path(path) / "result.json") or {}


def read_held_config(folder: Path) -> dict[str, Any]:
    """The settings that a run in `folder` was made with."""
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}


def _logged_state(checkpoint: Path) -> dict[str, float]:
    """What RunLog left in a checkpoint."""
    state = read_json(checkpoint / "trainer_state.json") or {}
    return state.get("stateful_callbacks", {}).get("RunLog", {}).get("attributes", {})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _texts(value: Any) -> list[str]:
    """Every text inside nested lists and blocks."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in inner for text in _texts(item)]


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first setting in which two configs differ, as `key: old → new`; empty when there is none."""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            return f"{key}: {old.get(key, 'default')} → {new.get(key, 'default')}"
    return ""


def _plain(value: Any) -> Any:
    """A figure as JSON takes it: tensors and numpy numbers become Python's, a number that is not finite becomes null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
