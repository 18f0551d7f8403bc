"""Strict configs: one YAML file, its parents, and the command line become the trainers' own dataclasses.

What the libraries' parsers let pass is refused here, before anything is loaded or written: an unknown or repeated key,
a value of the wrong type, an impossible pair. Every value remembers where it came from.
"""

import dataclasses
import json
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from recipes.core.catalog import CONFIGS, FAMILIES, config_name, find_config
from recipes.core.errors import UserError, did_you_mean

# What the libraries leave unchecked and meet later, as a division by zero or not at all.
AT_LEAST = {
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "max_length": 1,
    "num_train_epochs": 0,
    "per_device_eval_batch_size": 1,
    "per_device_train_batch_size": 1,
    "seed": 0,
}

WRITTEN = ("output_dir", "runs_dir")  # what is written to is where the user says
COMMAND_LINE = "command line"
DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One value and its origin: `configs/x.yaml:12` or the command line. `text` is what was typed there."""

    value: Any
    origin: str
    text: str | None = None


Settings = dict[str, Setting]  # nested keys are joined by dots: `peft.r`


# ---------------------------------------------------------------------------------------------------------------- YAML
class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `no` is a word, `1e-5` a number, `12:30` and `2024-01-01` are text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False|TRUE|FALSE", "tfTF"),
    ("null", r"~|null|Null|NULL|None|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first) + [""])
# YAML 1.1's constructor reads a leading zero as octal; here `010` is ten.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node), 10))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: _float(loader.construct_scalar(node)))
_Loader.add_constructor("tag:yaml.org,2002:null", lambda loader, node: None)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".nan", "nan").replace(".NaN", "nan"))


def parse_scalar(text: str) -> Any:
    """The YAML value of a command-line word: `1e-5`, `true`, `null`, `[q_proj, v_proj]`, `{r: 8}`, or plain text.

    Text is taken as it stands: a comment or a block in it (`end with #### and a number`, `Note: be brief`) is text too.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text
    if isinstance(value, (str, dict, list)):
        return value if text.lstrip().startswith(("'", '"', "{", "[")) else text
    return text if value is None and text.lstrip().startswith("#") else value


def _flatten(node: yaml.Node, file: str, prefix: str, loader: yaml.Loader) -> Settings:
    """Dotted settings of a mapping node, each with its line; lists and scalars are leaves."""
    settings: Settings = {}
    for key_node, value_node in node.value:
        line = f"{file}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{line}: a key must be a word")
        key = prefix + key_node.value
        if key in settings or any(name.startswith(key + ".") for name in settings):
            raise UserError(f"{line}: key '{key}' is given twice")
        if isinstance(value_node, yaml.MappingNode) and value_node.value and not _has_dotted_keys(value_node):
            settings |= _flatten(value_node, file, key + ".", loader)
        else:
            settings[key] = Setting(loader.construct_object(value_node, deep=True), line)
    return settings


def _has_dotted_keys(node: yaml.MappingNode) -> bool:
    """Whether a block names modules, as PEFT's `rank_pattern` does: its keys are no blocks of keys, and it stays whole."""
    return any("." in str(key.value) for key, _ in node.value)


def _shown(path: Path) -> str:
    """A path as the user would type it: relative to the working directory where that is shorter."""
    path = Path(path).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> tuple[Settings, list[Path]]:
    """Settings of a file merged over those of its `extends` parent, and the files read (child first).

    Raises:
        UserError: the file is missing, is not a YAML mapping, repeats a key, or its parents form a circle.
    """
    path, file = path.resolve(), _shown(path)
    if path in seen:
        raise UserError(f"{file}: 'extends' leads back to itself")
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror.lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{file}:{error.problem_mark.line + 1}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{file}: a config is a list of 'key: value' lines")

    settings, files = _flatten(node, file, "", loader), [path]
    parent = settings.pop("extends", None)
    if parent is not None:
        if not isinstance(parent.value, str):
            raise UserError(f"{parent.origin}: 'extends' names one file")
        parent_path = path.parent / parent.value
        if not parent_path.is_file():
            raise UserError(f"{parent.origin}: 'extends': no file {_shown(parent_path)}")
        inherited, parents = read_yaml(parent_path, (*seen, path))
        settings, files = merge(inherited, settings), files + parents
    return settings, files


def merge(below: Settings, above: Settings) -> Settings:
    """`above` over `below`: a leaf replaces a leaf or a whole block, a block is merged key by key."""
    kept = {
        key: setting
        for key, setting in below.items()
        if not any(key == new or key.startswith(new + ".") or new.startswith(key + ".") for new in above)
    }
    return kept | above


# -------------------------------------------------------------------------------------------------------- command line
def read_command_line(argv: Sequence[str]) -> Settings:
    """`--key value`, `--key=value`, `--key` (true), `--key a b c` (a list), `--peft.r 8` (inside a block).

    Raises:
        UserError: a word that belongs to no key, or a key given twice.
    """
    words: dict[str, list[str]] = {}
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            key, equals, value = word[2:].partition("=")
            first, dot, rest = key.partition(".")
            key = first.replace("-", "_") + dot + rest
            if key in words:
                raise UserError(f"{COMMAND_LINE}: --{key} is given twice")
            words[key] = [value] if equals else []
        elif not words:
            raise UserError(f"{COMMAND_LINE}: '{word}' belongs to no key; write --key value")
        else:
            words[next(reversed(words))].append(word)

    settings: Settings = {}
    for key, values in words.items():
        origin = f"{COMMAND_LINE}: --{key}"
        if len(values) > 1:
            settings[key] = Setting([parse_scalar(value) for value in values], origin)
            continue
        value = parse_scalar(values[0]) if values else True
        if isinstance(value, dict) and value and not any("." in str(name) for name in value):
            new = {f"{key}.{name}": Setting(inner, origin) for name, inner in value.items()}
        else:
            new = {key: Setting(value, origin, values[0] if values else None)}
        if len(merge(settings, new)) < len(settings) + len(new):
            raise UserError(f"{origin} is given twice")
        settings |= new
    return settings


# --------------------------------------------------------------------------------------------------------------- types
def fit(value: Any, hint: Any) -> Any:
    """`value` as the type a dataclass field asks for; an integer serves where a float is wanted, nothing else bends.

    Raises:
        TypeError: with a phrase for what was wanted ("a number", "one of 'k1', 'k3'").
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is dataclasses.MISSING:
        return value
    if origin in (Union, types.UnionType):
        # An enum that also accepts str (transformers' way) accepts its own values only.
        options = [option for option in arguments if option is not str or not any(map(_is_enum, arguments))]
        wanted = []
        for option in options:
            try:
                return fit(value, option)
            except TypeError as error:
                wanted.append(str(error))
        raise TypeError(" or ".join(dict.fromkeys(wanted)))
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise TypeError(f"one of {', '.join(map(repr, arguments))}")
    if _is_enum(hint):
        choices = [member.value for member in hint]
        if value in choices:
            return value
        raise TypeError(
            f"one of {', '.join(map(repr, choices))}" if len(choices) < 12 else f"a known value{_near(value, choices)}"
        )
    if origin in (list, tuple, Sequence) or hint is list:
        if not isinstance(value, list):
            raise TypeError("a list")
        try:
            return [fit(item, arguments[0]) if arguments else item for item in value]
        except TypeError as error:
            raise TypeError(f"a list whose every item is {error}") from None
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise TypeError("a block of keys")
        return {key: fit(item, arguments[1]) if arguments else item for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (type(None), None):
        if value is None:
            return None
        raise TypeError("null")
    if isinstance(hint, type) and isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    names = {float: "a number", int: "an integer", bool: "true or false", str: "text"}
    raise TypeError(names.get(hint, getattr(hint, "__name__", str(hint))))


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _near(value: Any, choices: Iterable) -> str:
    return did_you_mean(str(value), [str(choice) for choice in choices]).replace("; known:", " of:")


def fit_setting(key: str, setting: Setting, hint: Any) -> Any:
    """The setting's value as its field's type.

    Raises:
        UserError: the value does not fit; names origin, key, what was wanted and what was found.
    """
    try:
        return fit(setting.value, hint)
    except TypeError as error:
        if setting.text is not None:  # a command line cannot quote: `--model_revision 1` means the text "1"
            try:
                return fit(setting.text, hint)
            except TypeError:
                pass
        found = json.dumps(setting.value, default=str, ensure_ascii=False)
        wanted, near, hint = str(error).partition("; ")
        raise UserError(f"{setting.origin}: '{key}' must be {wanted}, not {found}{near}{hint}") from None


# ---------------------------------------------------------------------------------------------------------- dataclasses
def nest(settings: Settings) -> dict[str, Any]:
    """The dotted settings as nested dictionaries of plain values."""
    nested: dict[str, Any] = {}
    for key, setting in settings.items():
        *blocks, leaf = key.split(".")
        level = nested
        for block in blocks:
            level = level.setdefault(block, {})
        level[leaf] = setting.value
    return nested


@dataclasses.dataclass
class Resolved:
    """A config ready to run: the dataclasses, and for each setting where it came from."""

    name: str  # rlhf/ppo/quickstart
    files: list[Path]  # the YAML file and its parents
    settings: Settings
    groups: dict[type, Any]

    def get(self, group: type) -> Any:
        return self.groups[group]

    def plain(self) -> dict[str, Any]:
        """What was set, without defaults, as nested plain values."""
        return nest(self.settings)


def resolve(types_: Sequence[type], recipe: str, argv: Sequence[str]) -> Resolved:
    """Read `--config FILE [--key value …]` into one instance of each dataclass of a recipe.

    Args:
        types_: dataclasses whose fields are the known keys; no two share a field.
        recipe: `family/name`, for the config's name when its file lies outside `configs/`.
        argv: the words after the program's name.

    Raises:
        UserError: anything a user can put right, in one line.
    """
    if "--help" in argv or "-h" in argv:
        from transformers import HfArgumentParser

        HfArgumentParser(list(types_), prog=f"python -m recipes.{recipe.replace('/', '.')}").print_help()
        raise SystemExit(0)
    overrides = read_command_line(argv)
    if "config" not in overrides:
        raise UserError(f"--config is missing: name a file, such as configs/{recipe}/quickstart.yaml")
    config = overrides.pop("config")
    if not isinstance(config.value, str):
        raise UserError(f"{config.origin} names one file")
    path = find_config(config.value)
    settings, files = read_yaml(path)
    settings = merge(settings, overrides)
    name = config_name(path) or f"{recipe}/{path.stem}"
    if config_name(path) and not name.startswith(recipe + "/"):
        raise UserError(f"{_shown(path)} is a config of {name.rpartition('/')[0]}, not of {recipe}")
    return Resolved(name, files, settings, build(types_, settings, name))


def build(types_: Sequence[type], settings: Settings, name: str) -> dict[type, Any]:
    """One instance of each dataclass from the settings; `output_dir` defaults to the config's name under `runs_dir`."""
    fields = {
        field.name: (group, field, hints[field.name])
        for group in types_
        for hints in [typing.get_type_hints(group)]
        for field in dataclasses.fields(group)
        if field.init
    }
    values: dict[type, dict[str, Any]] = {group: {} for group in types_}
    blocks: dict[str, Settings] = {}
    for key, setting in settings.items():
        top = key.partition(".")[0]
        if top not in fields:
            raise UserError(f"{setting.origin}: unknown key '{top}'{did_you_mean(top, fields)}")
        blocks.setdefault(top, {})[key] = setting
    for top, block in blocks.items():
        group, field, hint = fields[top]
        first = next(iter(block.values()))
        whole = block[top] if top in block else Setting(nest(block)[top], first.origin)
        value = fit_setting(top, whole, hint)
        choices = field.metadata.get("choices")
        if choices and value is not None and value not in choices:
            raise UserError(f"{first.origin}: '{top}' must be one of {', '.join(map(str, choices))}, not '{value}'")
        if top in AT_LEAST and value is not None and value < AT_LEAST[top]:
            raise UserError(f"{first.origin}: '{top}' must be at least {AT_LEAST[top]}, not {value}")
        values[group][top] = value

    runs_dir = next((each["runs_dir"] for each in values.values() if "runs_dir" in each), "runs")
    for group in types_:
        values[group] = {
            key: value if key in WRITTEN else in_runs_dir(value, runs_dir) for key, value in values[group].items()
        }
    if "output_dir" in fields and "output_dir" not in blocks:
        values[fields["output_dir"][0]]["output_dir"] = f"{runs_dir}/{name}"
    if "use_cpu" in fields:
        fit_to_machine(values[fields["use_cpu"][0]])
    if "disable_tqdm" in fields and "disable_tqdm" not in blocks:  # a bar is for eyes, not for a log file
        values[fields["disable_tqdm"][0]]["disable_tqdm"] = not sys.stderr.isatty()

    instances = {}
    for group in types_:
        missing = [
            field.name
            for field in dataclasses.fields(group)
            if field.init
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
            and field.name not in values[group]
        ]
        if missing:
            raise UserError(f"{name}: required key '{missing[0]}' is missing")
        try:
            instances[group] = group(**values[group])
        except (ValueError, TypeError, ImportError) as error:
            raise with_origin(error, settings, name) from None
    return instances


def fit_to_machine(training: dict[str, Any]) -> None:
    """Set what one config needs to run on a laptop and on GPUs: the CPU where nothing else is, fp32 where bf16 is slow.

    Without instructions for it a CPU emulates bf16; TRL takes bf16 where nothing is said.
    """
    import torch

    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")  # by the profile `cpu`
    on_cpu = training.setdefault("use_cpu", asked or not torch.accelerator.is_available())
    can = torch.cpu.get_capabilities()
    if on_cpu and not (can.get("amx_bf16") or can.get("avx512_bf16") or can.get("bf16")):
        training["bf16"] = False


def in_runs_dir(value: Any, runs_dir: str) -> Any:
    """`value`, with every text `runs/<family>/…` in it, however deep, looked up in `runs_dir`."""
    if isinstance(value, dict):
        return {key: in_runs_dir(inner, runs_dir) for key, inner in value.items()}
    if isinstance(value, list):
        return [in_runs_dir(inner, runs_dir) for inner in value]
    names_run = isinstance(value, str) and value.startswith(tuple(f"runs/{family}/" for family in FAMILIES))
    return runs_dir + value.removeprefix("runs") if names_run else value


def starts_from(path: Path, overrides: Settings | None = None) -> list[str]:
    """The configs whose runs a config's values name (`runs/<config>`), each after those that it starts from itself.

    `overrides` are settings that are given in place of the file's.
    A config that is named without `runs/`, as a comparison names its base, is not run, but what it starts from is.
    """
    found: dict[str, None] = {}
    for setting in (read_yaml(path)[0] | (overrides or {})).values():
        for text in setting.value if isinstance(setting.value, list) else [setting.value]:
            name = "/".join(str(text).removeprefix("runs/").split("/")[:3])
            if name.startswith(FAMILIES) and (CONFIGS / f"{name}.yaml").is_file() and name != config_name(path):
                found |= dict.fromkeys(starts_from(find_config(name)))
                if name != text:
                    found[name] = None
    return list(found)


def with_origin(error: Exception, settings: Settings, name: str) -> UserError:
    """The error in one line that begins with the origin of the setting it speaks of, else with the config's name."""
    text = str(error)
    words = set(re.findall(r"\w+", text))
    spoken_of = [key for key in settings if words.issuperset(key.split("."))]
    spoken_of = spoken_of or [key for key in settings if key.partition(".")[0] in words]
    origins = {text.rfind(key.rpartition(".")[2]): settings[key].origin for key in spoken_of}
    return UserError(f"{origins[max(origins)] if origins else name}: {text}")
