"""Every command that the README names is one: its files are there, its options are known, its config parses."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from recipes.core.catalog import ROOT, Recipe, config_name, configs, find_config, launch_profile

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = {config.name for config in configs()}


def commands() -> list[str]:
    """Lines of console blocks, and what stands in backticks and begins like a command; without comments."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    outside = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    lines += re.findall(r"`((?:make|python|accelerate|sbatch) [^`]+)`", outside)
    found = {re.sub(r"\s+#.*", "", line).strip() for line in lines}
    others = {"accelerate launch"}  # spoken of, not given
    return sorted(line for line in found - others if line and "|" not in line and "mine" not in line)


def test_there_are_commands():
    kinds = {command.split()[0] for command in commands()}
    assert kinds == {"make", "python", "accelerate", "sbatch"}


@pytest.mark.parametrize("command", commands())
def test_the_command_is_one(command, main, root, monkeypatch):
    monkeypatch.chdir(root)
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=root, check=True, capture_output=True)
    elif words[:3] == ["python", "-m", "recipes"]:
        assert words[3] in ("run", "list", "show", "validate", "results", "plan")
        if words[3] == "run":
            config, options = words[4], [word for word in words[5:] if word != "--with_inputs"]
            if "--launch" in options:
                at = options.index("--launch")
                assert launch_profile(options[at + 1])
                del options[at : at + 2]
            parse(main, config, options)
    elif words[0] == "accelerate":
        options = launch_command_parser().parse_args(words[2:])
        assert Path(options.config_file).is_file()
        script = options.training_script_args
        path = Path(script[script.index("--config") + 1])
        assert Recipe(config_name(path).rpartition("/")[0]).module == options.training_script
        parse(main, config_name(path), script[2:])
    elif words[0] == "sbatch":
        script = next(word for word in words if word.startswith("scripts/"))
        assert (root / script).is_file()
        parse(main, words[words.index(script) + 1], words[words.index(script) + 2 :])
    else:
        assert words[:2] == ["python", "-m"]
        module = Path(*words[2].split("."))
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()


def parse(main, config: str, options: list[str]) -> None:
    assert config in CONFIGS
    path = find_config(config)
    main(config.rpartition("/")[0]).parse(["--config", str(path), *options])
