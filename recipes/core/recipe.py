"""`@recipe`: what turns a script's `main(run, model, data, training)` into a command."""

import functools
import inspect
import logging
import os
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from recipes.core.catalog import ROOT, Recipe
from recipes.core.config import Resolved, find_config, read_command_line, read_yaml, resolve, with_origin
from recipes.core.errors import UserError, refused_by_library, report_user_errors
from recipes.core.processes import connect_processes, end_processes
from recipes.core.run import Run, RunConfig, TaskConfig

REFUSED = {  # of TrainingArguments
    "resume_from_checkpoint": "a run resumes by itself from its last whole checkpoint",
    "save_only_model": "a run could not resume from checkpoints without the optimizer's state",
}


def recipe(main: Callable[..., None]) -> Callable[..., None]:
    """Read the config into the dataclasses that `main` names, open the run, call `main`, write the result.

    `main`'s first parameter is the Run; the others are annotated with dataclasses, whose fields are the config's keys.
    The one that has `output_dir` and `seed` (a TrainingArguments or a TaskConfig) stands last.
    """
    hints = typing.get_type_hints(main)
    hints.pop("return", None)
    groups = [hints[name] for name in list(inspect.signature(main).parameters)[1:]]
    name = str(Path(inspect.getfile(main)).resolve().relative_to(ROOT / "recipes").with_suffix(""))

    def parse(argv: Sequence[str]) -> Resolved:
        """The resolved config, checked as far as it can be without loading anything."""
        config = resolve([RunConfig, *groups], name, argv)
        for key, why in REFUSED.items():
            if getattr(config.get(groups[-1]), key, None):
                raise with_origin(UserError(f"{key}: drop it; {why}"), config.settings, config.name)
        for group in groups:
            check = getattr(config.get(group), "check_names", None)
            if check:
                try:
                    check()
                except UserError as error:
                    raise with_origin(error, config.settings, config.name) from None
        return config

    @functools.wraps(main)
    def command(argv: Sequence[str] | None = None) -> None:
        quiet_libraries()
        from transformers import set_seed

        with report_user_errors():
            argv = sys.argv[1:] if argv is None else argv
            connect_processes(ddp_timeout(argv))
            config = parse(argv)
            if issubclass(groups[-1], TaskConfig) and int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise UserError(f"{name} is one process, which starts those that it needs: run it without --launch")
            run = Run(Recipe(name), config, config.get(groups[-1]))
            if run.finished():
                os.utime(run.output_dir / "result.json")  # make compares times: this run is up to date
                if run.is_main_process:
                    print(f"{run.name}: finished before, in {run.output_dir}; --overwrite always makes it again")
                return
            run.claim()
            set_seed(run.arguments.seed)  # before any weight or adapter is made
            try:
                main(run, *(config.get(group) for group in groups))
                run.finish()
            except (ValueError, RuntimeError, ImportError, OSError) as error:
                if not run.started and refused_by_library(error):
                    raise UserError(error) from None
                raise
            finally:
                run.close()
        end_processes()

    command.parse = parse
    command.groups = [RunConfig, *groups]
    return command


def ddp_timeout(argv: Sequence[str]) -> int:
    """TrainingArguments' key of this name, read on its own: the config's classes want the processes to be there."""
    settings = read_command_line(argv)
    config = settings["config"].value if "config" in settings else None
    if isinstance(config, str):  # what is no name is refused where the config is read
        settings = read_yaml(find_config(config))[0] | settings
    asked = settings["ddp_timeout"].value if "ddp_timeout" in settings else None
    return asked if isinstance(asked, int) else 1800


def quiet_libraries() -> None:
    """Silence what is neither an error nor ours to change, so that a run's own lines can be read."""
    warnings.simplefilter("ignore", FutureWarning)  # what the pinned libraries will do some day
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # its readers log what they raise
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import datasets
    import transformers

    if os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()
