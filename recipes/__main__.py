"""python -m recipes list | show CONFIG | validate [CONFIG …] | plan CONFIG | run CONFIG [--launch PROFILE] | results"""

import argparse
import importlib
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.core.catalog import Recipe, config_name, configs, find_config, launch_profile, recipes
from recipes.core.errors import UserError, did_you_mean, report_user_errors

PICTURES = (".png", ".svg", ".pdf")


def list_recipes() -> None:
    """Every recipe and config with its one line, family by family; reads the folders and imports nothing."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `list | head` ends quietly
    family = None
    for recipe in recipes():
        if recipe.name.partition("/")[0] != family:
            family = recipe.name.partition("/")[0]
            print(f"\n{family.upper()}")
        print(f"  {recipe.name:<34} {recipe.description}")
        for config in recipe.configs:
            print(f"    {config.name:<40} {config.description}")


def recipe_of(path: Path) -> Recipe:
    """The recipe of a config file: by its folder in `configs/`, or by that of the config it extends.

    Raises:
        UserError: the file lies elsewhere and extends no config.
    """
    from recipes.core.config import read_yaml

    names = (config_name(file) for file in read_yaml(path)[1])
    name = next((name for name in names if name), None)
    if name is None:
        raise UserError(
            f"{path} is not in configs/ and extends no config there; "
            f"run it as python -m recipes.FAMILY.RECIPE --config {path}"
        )
    recipe = Recipe(name.rpartition("/")[0])
    if not recipe.script.exists():
        known = [each.name for each in recipes()]
        raise UserError(f"{path}: no recipe '{recipe.name}'{did_you_mean(recipe.name, known)}")
    return recipe


def command_of(recipe: Recipe):
    """The `main` of a recipe's script, made by `@recipe`."""
    from recipes.core.recipe import quiet_libraries

    quiet_libraries()
    return importlib.import_module(recipe.module).main


def show(name: str, overrides: Sequence[str]) -> None:
    """The resolved config, each value with the file and line, or the command line, that it comes from."""
    path = find_config(name)
    config = command_of(recipe_of(path)).parse(["--config", str(path), *overrides])
    width = max(len(key) for key in config.settings)
    values = {key: repr(setting.value) for key, setting in config.settings.items()}
    column = min(60, max(len(value) for value in values.values()))
    print(f"# {config.name}")
    for key, setting in config.settings.items():
        print(f"{key:<{width}}  {values[key]:<{column}}  # {setting.origin}")
    print(
        f"{'output_dir':<{width}}  {_output_dir(config)!r:<{column}}  # derived"
    ) if "output_dir" not in config.settings else None


def _output_dir(config) -> str:
    return next(group.output_dir for group in config.groups.values() if hasattr(group, "output_dir"))


def validate(names: Sequence[str]) -> None:
    """Parse configs, build the trainers' arguments, check the files they name; loads no weights.

    Raises:
        UserError: after all were checked, if any failed.
    """
    failures = 0
    chosen = [find_config(name) for name in names] or [config.path for config in configs()]
    for path in chosen:
        try:
            command_of(recipe_of(path)).parse(["--config", str(path)])
            print(f"ok     {config_name(path) or path}")
        except UserError as error:
            failures += 1
            print(f"error  {config_name(path) or path}: {error}")
    if failures:
        raise UserError(f"{failures} of {len(chosen)} configs failed")
    print(f"{len(chosen)} config{'s are' if len(chosen) > 1 else ' is'} valid")


def plan(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """What a config needs on a cluster, layout by layout: memory, messages, time; loads no weights."""
    for name in ("tokens", "prompt_tokens"):
        value = getattr(options, name)
        if value is not None and not 1 <= value < math.inf:
            raise UserError(f"--{name} must be at least 1, not {value:g}")
    if options.plot is not None and options.plot.suffix not in PICTURES:
        raise UserError(f"--plot: '{options.plot.suffix}' is no kind of picture; known: {', '.join(PICTURES)}")
    path = find_config(options.config)
    config = command_of(recipe_of(path)).parse(["--config", str(path), *overrides])
    from recipes.planner import hardware, reading, report
    from recipes.planner.plan import plan as plan_layouts

    names = ("utilisation", "link_efficiency", "overhead_gib", "host_gib")
    assumed = {name: getattr(options, name) for name in names}
    cluster = hardware.cluster(options.gpu, options.gpus, options.nodes, options.network, **assumed)
    tokens = None if options.tokens is None else round(options.tokens)
    workload = reading.workload_of(config, options.prompt_tokens, tokens)
    plans = plan_layouts(workload, cluster)
    print(report.report(workload, cluster, plans))
    if options.plot is not None:
        report.draw(workload, cluster, plans, options.plot)
        print(options.plot)


def run(name: str, launch: str | None, processes: int | None, overrides: Sequence[str]) -> None:
    """Run a config, under an accelerate profile if one is named; prints the plain command first.

    Raises:
        UserError: `processes` without a profile, or more of them than the machine has accelerators.
        SystemExit: the launched run failed; its exit status.
    """
    path = find_config(name)
    recipe = recipe_of(path)
    shown = os.path.relpath(path)
    arguments = ["-m", recipe.module, "--config", shown, *overrides]
    if launch is None:
        if processes is not None:
            raise UserError("--num_processes needs --launch, such as --launch ddp")
        print("$ " + shlex.join(["python", *arguments]), flush=True)
        command_of(recipe)(["--config", str(path), *overrides])
        return
    profile = launch_profile(launch)
    if launch.startswith("multi-node"):
        raise UserError(
            f"--launch {launch}: each machine starts its own processes: accelerate launch --config_file "
            f"configs/launch/{launch}.yaml --num_processes ALL --machine_rank RANK --main_process_ip HOST -m … on each, or "
            "scripts/slurm/train.sbatch for all of them"
        )
    if launch == "cpu" and (processes or 1) > 1:
        raise UserError(f"--launch cpu is one process, not {processes}; for more of them take --launch ddp")
    # Parsed here first: a mistake is one line, not one traceback from each process.
    command_of(recipe).parse(["--config", str(path), *overrides])
    command = ["accelerate", "launch", "--config_file", os.path.relpath(profile)]
    processes = 1 if launch == "cpu" else processes_to_start(processes)
    command += [*(["--num_processes", str(processes)] if processes else []), *arguments]
    print("$ " + shlex.join(command), flush=True)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *command[2:]]
    status = supervised(launcher)
    if status:
        print(
            f"error: the run ended with exit status {status}, the reason stands above; the same command goes on from its "
            "last whole checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(status)


def supervised(command: Sequence[str]) -> int:
    """The exit status of a command that is sent the signals by which this process is told to end, with all its own."""
    child, early = None, []

    def pass_on(number: int, frame: object) -> None:
        if child is None:
            early.append(number)
        else:
            os.killpg(child.pid, number)

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        child = subprocess.Popen(command, start_new_session=True)
        for number in early:
            os.killpg(child.pid, number)
        return child.wait()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def run_inputs(name: str, overrides: Sequence[str]) -> None:
    """Run the configs that a config starts from, one after another, each in a process of its own.

    Finished ones are left as they are, however they were made, unless the config itself is run with `--overwrite changed`.

    Raises:
        SystemExit: one of them failed; its exit status.
    """
    from recipes.core.config import read_command_line, read_yaml, starts_from

    path, given = find_config(name), read_command_line(overrides)
    settings = read_yaml(path)[0] | given
    runs_dir = str(settings["runs_dir"].value) if "runs_dir" in settings else "runs"
    anew = "overwrite" in given and given["overwrite"].value == "changed"
    for before in starts_from(path, given):
        if not anew and (Path(runs_dir) / before / "result.json").is_file():
            continue
        options = ["--runs_dir", runs_dir, *(["--overwrite", "changed"] if anew else [])]
        command = [sys.executable, "-m", "recipes", "run", before, *options]
        status = subprocess.run(command).returncode
        if status:
            print(f"error: {before}, from which {name} starts, failed; the reason stands above", file=sys.stderr)
            raise SystemExit(status)


def processes_to_start(wanted: int | None) -> int | None:
    """One for each accelerator of this machine unless a number is wanted; None leaves it to the profile.

    Raises:
        UserError: fewer than one, or more than there are accelerators.
    """
    import torch

    there = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if wanted is not None and wanted < 1:
        raise UserError(f"--num_processes must be at least 1, not {wanted}")
    if wanted and there and wanted > there:
        raise UserError(f"--num_processes {wanted} is more than this machine's {there} accelerators")
    return wanted or there or None


def results(runs_dir: Path, check: bool) -> None:
    """Publish what was measured to `results/`, or hold it against what is committed there."""
    from recipes.core import publish

    if check:
        off = publish.check(runs_dir)
        if off:
            raise UserError(f"{len(off)} figures differ from the committed ones: {'; '.join(off)}")
        print("all figures agree with the committed ones")
        return
    names = publish.publish(runs_dir)
    publish.write_table()
    print("\n".join(names) or f"no finished run in {runs_dir}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; see: {self.prog} --help")


def main() -> None:
    with report_user_errors():
        dispatch()


def _add_plan_options(planning: argparse.ArgumentParser) -> None:
    planning.add_argument("config")
    planning.add_argument("--gpus", type=int, default=1, help="GPUs in all")
    planning.add_argument("--gpu", default="h100-80gb", help="a GPU of recipes/planner/hardware.yaml")
    planning.add_argument("--nodes", type=int, help="nodes they stand in; default: full ones")
    planning.add_argument("--network", help="between nodes, of the same file; default: the GPU's usual one")
    planning.add_argument("--tokens", type=float, help="tokens of the whole training, such as 2e9")
    planning.add_argument("--prompt_tokens", type=int, help="tokens of a prompt that is answered; default: 256")
    for name, what in {
        "utilisation": "share of the peak that products reach",
        "link_efficiency": "share of a link's rate that is reached",
        "overhead_gib": "GiB of each GPU that no tensor fills",
        "host_gib": "GiB of the host's memory for each GPU",
    }.items():
        planning.add_argument(f"--{name}", type=float, help=f"{what}; default: recipes/planner/hardware.yaml")
    planning.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the memory of every layout")


def dispatch(argv: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = _Parser(prog="python -m recipes", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="every recipe and config, family by family")
    showing = commands.add_parser("show", help="a resolved config with the origin of each value", allow_abbrev=False)
    showing.add_argument("config")
    validating = commands.add_parser("validate", help="check configs (all, unless named) without loading weights")
    validating.add_argument("configs", nargs="*")
    planning = commands.add_parser(
        "plan",
        help="whether a config fits on GPUs, and how long it takes: plan CONFIG --gpus 8 --gpu h100-80gb",
        allow_abbrev=False,
    )
    _add_plan_options(planning)
    running = commands.add_parser(
        "run",
        help="run a config: run CONFIG [--launch PROFILE [--num_processes N]] [--key value …]",
        allow_abbrev=False,
    )
    running.add_argument("config")
    running.add_argument("--launch", help="an accelerate profile of configs/launch, such as ddp or zero3")
    running.add_argument(
        "--num_processes", type=int, help="with --launch; default: one for each accelerator, else two"
    )
    running.add_argument(
        "--with_inputs", action="store_true", help="first run the configs that this one starts from (`runs/…`)"
    )
    publishing = commands.add_parser("results", help="publish finished runs to results/ and its table")
    publishing.add_argument("--runs_dir", type=Path, default=Path("runs"))
    publishing.add_argument("--check", action="store_true", help="only compare them with what is committed")
    options, overrides = parser.parse_known_args(argv)
    if overrides and options.command not in ("show", "run", "plan"):
        parser.error(f"unknown words: {' '.join(overrides)}")
    match options.command:
        case "list":
            list_recipes()
        case "show":
            show(options.config, overrides)
        case "validate":
            validate(options.configs)
        case "plan":
            plan(options, overrides)
        case "run":
            if options.with_inputs:
                run_inputs(options.config, overrides)
            run(options.config, options.launch, options.num_processes, overrides)
        case "results":
            results(options.runs_dir, options.check)


if __name__ == "__main__":
    main()
