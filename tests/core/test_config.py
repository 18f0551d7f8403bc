"""Configs: YAML as people mean it, parents, the command line, and types that do not bend."""

import dataclasses
import json
import typing
from enum import Enum

import pytest
import yaml

from recipes.core.catalog import find_config
from recipes.core.config import (
    Setting,
    build,
    fit,
    fit_to_machine,
    merge,
    nest,
    parse_scalar,
    read_command_line,
    read_yaml,
    resolve,
    starts_from,
)
from recipes.core.errors import UserError, did_you_mean

# ------------------------------------------------------------------------------------------------------------- scalars
SCALARS = {
    "1e-5": 1e-5,
    "1E5": 1e5,
    "3e-3": 0.003,
    ".5": 0.5,
    "5.": 5.0,
    "-.5": -0.5,
    "2.0": 2.0,
    "-1.5e+3": -1500.0,
    "10": 10,
    "-3": -3,
    "+3": 3,
    "010": 10,
    "0": 0,
    ".inf": float("inf"),
    "-.inf": float("-inf"),
    "true": True,
    "True": True,
    "false": False,
    "null": None,
    "~": None,
    "None": None,
    "": None,
    "no": "no",
    "yes": "yes",
    "on": "on",
    "off": "off",
    "y": "y",
    "2024-01-01": "2024-01-01",
    "2024-01-01 10:00:00": "2024-01-01 10:00:00",
    "12:30": "12:30",
    "1_000": "1_000",
    "0x10": "0x10",
    "1.2.3": "1.2.3",
    "e5": "e5",
    "nullable": "nullable",
    "truely": "truely",
    "q_proj": "q_proj",
    "'1'": "1",
    '"true"': "true",
    "[1, 1e-5, no]": [1, 1e-5, "no"],
    "{r: 8, target: [a, b]}": {"r": 8, "target": ["a", "b"]},
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_a_scalar_means_what_it_says(text, value, tmp_path):
    (tmp_path / "config.yaml").write_text(f"key: {text}\n")
    for read in (parse_scalar(text), nest(read_yaml(tmp_path / "config.yaml")[0])["key"]):
        assert read == value
        assert type(read) is type(value)


def test_not_a_number_is_a_float():
    assert parse_scalar(".nan") != parse_scalar(".nan")


@pytest.mark.parametrize("text", ["end with #### and a number", "# be brief", "Note: be brief", "- a", "it's", " a "])
def test_on_the_command_line_text_stays_as_it_is(text):
    assert parse_scalar(text) == text
    assert read_command_line(["--system_prompt", text])["system_prompt"].value == text


def test_on_the_command_line_quotes_are_yaml_s():
    assert parse_scalar("'5'") == "5"


def test_keys_with_dots_are_names_of_modules(tmp_path):
    pattern = {"layers.0.self_attn.q_proj": 8, "k_proj": 4}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"peft": {"r": 2, "rank_pattern": pattern}}))
    assert plain(tmp_path / "config.yaml") == {"peft": {"r": 2, "rank_pattern": pattern}}
    told = nest(read_command_line(["--peft.rank_pattern", "{layers.0.self_attn.q_proj: 8, k_proj: 4}"]))
    assert told == {"peft": {"rank_pattern": pattern}}
    assert nest(read_command_line(["--peft", json.dumps({"rank_pattern": pattern})])) == {
        "peft": {"rank_pattern": pattern}
    }


def test_on_the_command_line_what_is_no_yaml_is_text():
    assert parse_scalar("[unfinished") == "[unfinished"
    assert parse_scalar("*") == "*"


def test_environment_variables_are_not_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS", "/secret")
    (tmp_path / "config.yaml").write_text("model: $WEIGHTS/model\n")
    assert plain(tmp_path / "config.yaml") == {"model": "$WEIGHTS/model"}
    assert read_command_line(["--model", "${WEIGHTS}"])["model"].value == "${WEIGHTS}"


# --------------------------------------------------------------------------------------------------------------- files
def plain(path) -> dict:
    return nest(read_yaml(path)[0])


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files into the working directory."""
    monkeypatch.chdir(tmp_path)

    def files(**texts: str):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path

    return files


def test_each_setting_knows_its_line(write):
    folder = write(a="# a comment\nseed: 1\n\npeft:\n  method: lora\n  r: 8\nlist:\n  - 1\n  - 2\nempty: {}\n")
    settings, files = read_yaml(folder / "a.yaml")
    assert {key: (setting.value, setting.origin) for key, setting in settings.items()} == {
        "seed": (1, "a.yaml:2"),
        "peft.method": ("lora", "a.yaml:5"),
        "peft.r": (8, "a.yaml:6"),
        "list": ([1, 2], "a.yaml:7"),
        "empty": ({}, "a.yaml:10"),
    }
    assert files == [folder / "a.yaml"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: 1\nseed: 1\n", "a.yaml:2: key 'seed'"),
        ("peft:\n  r: 8\n  r: 9\n", "a.yaml:3: key 'peft.r'"),
        ("peft: {r: 8}\nseed: 1\npeft: 5\n", "a.yaml:3: key 'peft'"),
        ("peft:\n  r: 8\npeft:\n  r: 9\n", "a.yaml:3: key 'peft'"),
    ],
)
def test_a_key_given_twice_is_refused(text, place, write):
    with pytest.raises(UserError, match="is given twice") as error:
        read_yaml(write(a=text) / "a.yaml")
    assert str(error.value).startswith(place)


def test_a_parent_is_merged_deeply_and_each_value_names_its_file(write):
    folder = write(
        old="seed: 0\nlearning_rate: 1e-3\npeft:\n  method: lora\n  r: 4\n",
        middle="extends: old.yaml\nlearning_rate: 1e-4\npeft:\n  r: 8\n",
        new="extends: middle.yaml\npeft:\n  lora_alpha: 16\n",
    )
    settings, files = read_yaml(folder / "new.yaml")
    assert nest(settings) == {
        "seed": 0,
        "learning_rate": 1e-4,
        "peft": {"method": "lora", "r": 8, "lora_alpha": 16},
    }
    assert {key: setting.origin for key, setting in settings.items()} == {
        "seed": "old.yaml:1",
        "learning_rate": "middle.yaml:2",
        "peft.method": "old.yaml:4",
        "peft.r": "middle.yaml:4",
        "peft.lora_alpha": "new.yaml:3",
    }
    assert [file.stem for file in files] == ["new", "middle", "old"]


def test_a_parent_is_looked_for_beside_its_child(write):
    folder = write(base="seed: 3\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "child.yaml").write_text("extends: ../base.yaml\n")
    assert plain(folder / "sub" / "child.yaml") == {"seed": 3}


def test_null_takes_a_block_of_the_parent_away(write):
    folder = write(base="peft:\n  method: lora\nseed: 1\n", child="extends: base.yaml\npeft: null\n")
    assert plain(folder / "child.yaml") == {"seed": 1, "peft": None}


def test_a_block_replaces_a_scalar_of_the_parent(write):
    folder = write(base="peft: null\n", child="extends: base.yaml\npeft:\n  method: ia3\n")
    assert plain(folder / "child.yaml") == {"peft": {"method": "ia3"}}


def test_a_list_of_the_child_replaces_that_of_the_parent(write):
    folder = write(base="names: [a, b]\n", child="extends: base.yaml\nnames: [c]\n")
    assert plain(folder / "child.yaml") == {"names": ["c"]}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: a.yaml\n"}, "a.yaml: 'extends' leads back to itself"),
        ({"a": "extends: b.yaml\n", "b": "extends: c.yaml\n", "c": "extends: b.yaml\n"}, "b.yaml: 'extends' leads"),
        ({"a": "seed: 1\nextends: gone.yaml\n"}, "a.yaml:2: 'extends': no file gone.yaml"),
        ({"a": "extends: b.yaml\n", "b": "\nextends: gone.yaml\n"}, "b.yaml:2: 'extends': no file gone.yaml"),
        ({"a": "extends: 5\n"}, "a.yaml:1: 'extends' names one file"),
    ],
)
def test_a_parent_that_cannot_be_read_is_named(files, message, write):
    with pytest.raises(UserError) as error:
        read_yaml(write(**files) / "a.yaml")
    assert str(error.value).startswith(message)


def test_two_children_may_share_a_parent_with_their_own_parent(write):
    folder = write(a="extends: b.yaml\nx: 1\n", b="extends: c.yaml\n", c="y: 2\n")
    assert plain(folder / "a.yaml") == {"x": 1, "y": 2}
    assert plain(folder / "b.yaml") == {"y": 2}


def test_merge_leaves_its_arguments_alone():
    below, above = {"peft.r": Setting(1, "a")}, {"peft": Setting(None, "b")}
    assert list(merge(below, above)) == ["peft"]
    assert list(below) == ["peft.r"]
    assert list(above) == ["peft"]


# -------------------------------------------------------------------------------------------------------- command line
@pytest.mark.parametrize(
    ("argv", "settings"),
    [
        (["--seed", "1"], {"seed": 1}),
        (["--seed=1"], {"seed": 1}),
        (["--rate", "1e-5"], {"rate": 1e-5}),
        (["--rate", "-1"], {"rate": -1}),
        (["--rate", "-1e-5"], {"rate": -1e-5}),
        (["--rate=-0.5"], {"rate": -0.5}),
        (["--packing"], {"packing": True}),
        (["--packing", "false"], {"packing": False}),
        (["--packing", "--seed", "1"], {"packing": True, "seed": 1}),
        (["--eval_strategy", "no"], {"eval_strategy": "no"}),
        (["--names", "a", "b", "c"], {"names": ["a", "b", "c"]}),
        (["--names", "[a, b]"], {"names": ["a", "b"]}),
        (["--names=[a]"], {"names": ["a"]}),
        (["--sizes", "1", "2", "--seed", "3"], {"sizes": [1, 2], "seed": 3}),
        (["--peft.r", "8"], {"peft": {"r": 8}}),
        (["--peft.r=8", "--peft.method", "lora"], {"peft": {"r": 8, "method": "lora"}}),
        (["--peft", "{r: 8, method: lora}"], {"peft": {"r": 8, "method": "lora"}}),
        (["--peft", "null"], {"peft": None}),
        (["--peft="], {"peft": None}),
        (["--learning-rate", "1"], {"learning_rate": 1}),
        (["--model.some-name", "1"], {"model": {"some-name": 1}}),
        (["--expression", "a=b"], {"expression": "a=b"}),
        (["--expression=a=b"], {"expression": "a=b"}),
        ([], {}),
    ],
    ids=" ".join,
)
def test_words_become_settings(argv, settings):
    assert nest(read_command_line(argv)) == settings


def test_the_command_line_is_an_origin():
    assert read_command_line(["--peft.r", "8"])["peft.r"].origin == "command line: --peft.r"


@pytest.mark.parametrize(
    "argv",
    [
        ["--seed", "1", "--seed", "2"],
        ["--seed=1", "--seed=1"],
        ["--a-b", "1", "--a_b", "2"],
        ["--peft.r", "8", "--peft", "null"],
        ["--peft", "{r: 8}", "--peft.r", "9"],
        ["--peft.r", "1", "--peft", "{r: 8}"],
    ],
)
def test_a_key_given_twice_on_the_command_line_is_refused(argv):
    with pytest.raises(UserError, match="is given twice"):
        read_command_line(argv)


@pytest.mark.parametrize("word", ["seed=1", "-s", "config.yaml", "--"])
def test_a_word_without_a_key_is_refused(word):
    with pytest.raises(UserError, match="belongs to no key"):
        read_command_line([word])


# --------------------------------------------------------------------------------------------------------------- types
class Colour(Enum):
    RED = "red"
    BLUE = "blue"


FITS = [
    (1, int, 1),
    (1, float, 1.0),
    (1.5, float, 1.5),
    ("a", str, "a"),
    (True, bool, True),
    (None, type(None), None),
    (None, int | None, None),
    (3, int | None, 3),
    ("red", Colour, "red"),
    ("red", Colour | str, "red"),
    ("k1", typing.Literal["k1", "k3"], "k1"),
    (False, str | None | typing.Literal[False], False),
    ([1, 2], list[float], [1.0, 2.0]),
    ([], list[int], []),
    (["a"], str | list[str], ["a"]),
    ("a", str | list[str], "a"),
    ({"a": 1}, dict[str, float], {"a": 1.0}),
    ({"a": [1]}, dict[str, typing.Any], {"a": [1]}),
    ({"a": 1}, dict | str | None, {"a": 1}),
    (object, typing.Any, object),
]


@pytest.mark.parametrize(("value", "hint", "fitted"), FITS, ids=str)
def test_a_value_that_fits(value, hint, fitted):
    found = fit(value, hint)
    assert found == fitted
    assert type(found) is type(fitted)


MISFITS = [
    (1.0, int, "an integer"),
    (True, int, "an integer"),
    (True, float, "a number"),
    ("1", float, "a number"),
    ("1", int, "an integer"),
    (1, str, "text"),
    (None, str, "text"),
    (0, bool, "true or false"),
    ("yes", bool, "true or false"),
    (0, type(None), "null"),
    ("x", int | None, "an integer or null"),
    ("green", Colour, "one of 'red', 'blue'"),
    ("green", Colour | str, "one of 'red', 'blue'"),
    ("k2", typing.Literal["k1", "k3"], "one of 'k1', 'k3'"),
    (True, typing.Literal[1], "one of 1"),
    ("a", list[str], "a list"),
    (["a", 1], list[str], "a list whose every item is text"),
    ([1], str | list[str], "text or a list whose every item is text"),
    ({"a": "b"}, dict[str, int], "an integer"),
    (["a"], dict[str, int], "a block of keys"),
]


@pytest.mark.parametrize(("value", "hint", "wanted"), MISFITS, ids=str)
def test_a_value_that_does_not_fit(value, hint, wanted):
    with pytest.raises(TypeError) as error:
        fit(value, hint)
    assert str(error.value) == wanted


def groups() -> list[type]:
    """Every dataclass whose fields are keys of a config."""
    from trl import DPOConfig, GRPOConfig, KTOConfig, RewardConfig, RLOOConfig, SFTConfig

    from recipes.core import DataConfig, ModelConfig, RunConfig
    from recipes.pretraining.causal import CausalConfig
    from recipes.rlhf.evaluate import EvaluateConfig
    from recipes.rlhf.groups import GroupRewardsConfig
    from recipes.rlhf.kto import LabelConfig
    from recipes.rlhf.ppo import PPORewardsConfig
    from recipes.rlhf.ppo_config import PPOConfig
    from recipes.tokenization.compare import CompareConfig
    from recipes.tokenization.explain import ExplainConfig
    from recipes.tokenization.train import TokenizerConfig

    trainers = [CausalConfig, SFTConfig, RewardConfig, PPOConfig, DPOConfig, KTOConfig, RLOOConfig, GRPOConfig]
    tokenization = [TokenizerConfig, ExplainConfig, CompareConfig]
    methods = [PPORewardsConfig, GroupRewardsConfig, LabelConfig, EvaluateConfig]
    return [RunConfig, DataConfig, ModelConfig, *trainers, *tokenization, *methods]


def right_values(hint) -> list:
    """A value for each kind that a hint allows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in arguments and origin is not typing.Literal:
        return [None, *(value for each in arguments if each is not type(None) for value in right_values(each))]
    enums = [each for each in arguments if isinstance(each, type) and issubclass(each, Enum)]
    if enums:
        return [member.value for each in enums for member in each]
    if origin is typing.Literal:
        return list(arguments)
    if origin is list:
        return [[], [right_values(arguments[0])[0]]]
    if origin is tuple:
        return [[right_values(each)[0] for each in arguments]]
    if origin is dict or hint is dict:
        return [{}, {"key": right_values(arguments[1])[0] if arguments else 1}]
    if arguments:
        return [value for each in arguments for value in right_values(each)]
    simple = {int: [3], float: [0.5, 3], str: ["text"], bool: [True, False], typing.Any: ["anything"]}
    return simple.get(hint, [])


WRONG = [object(), b"bytes", (1, 2)]


def test_every_field_of_every_config_takes_right_values_and_no_others():
    checked, without_value = 0, set()
    for group in groups():
        hints = typing.get_type_hints(group)
        for field in dataclasses.fields(group):
            if not field.init:
                continue
            hint = hints[field.name]
            values = right_values(hint)
            if not values:
                without_value.add(field.name)
            for value in values:
                assert fit(value, hint) == value, (group, field.name, value)
            for value in WRONG:
                with pytest.raises(TypeError):
                    fit(value, hint)
            checked += 1
    assert checked > 500
    assert not without_value, "no value of YAML fits these fields"


SFT_MISFITS = {  # one field of each kind of hint that SFTConfig has
    "per_device_train_batch_size": ("8", 8.0, True, None, [8]),
    "learning_rate": ("fast", True, None, [1e-3]),
    "push_to_hub": ("no", 0, 1, None),
    "bf16": ("yes", 1, "auto"),
    "output_dir": (1, True, ["a"]),
    "max_length": ("512", 0.5, True),
    "lr_scheduler_type": ("cosin", 1, True, None),
    "optim": ("adam", 1, None),
    "eval_strategy": (False, True, "never", 1),
    "save_strategy": ("sometimes", 1, False),
    "report_to": (1, True, [1]),
    "label_names": ("labels", [1], {"a": 1}),
    "fsdp_config": (1, True, [1]),
    "deepspeed": (1, True, ["a"]),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SFT_MISFITS.items() for value in values])
def test_sft_refuses_a_value_of_another_kind(key, value):
    from trl import SFTConfig

    with pytest.raises(UserError, match=rf"^here: '{key}' must be ") as error:
        build([SFTConfig], {key: Setting(value, "here")}, "name")
    assert "\n" not in str(error.value)


def test_on_the_command_line_a_number_may_be_meant_as_text():
    from recipes.core.models import ModelConfig

    settings = read_command_line(["--model_revision", "1", "--model_name_or_path", "true"])
    model = build([ModelConfig], settings, "name")[ModelConfig]
    assert (model.model_revision, model.model_name_or_path) == ("1", "true")
    with pytest.raises(UserError, match="'model_revision' must be text, not 1"):
        build([ModelConfig], {**settings, "model_revision": Setting(1, "a.yaml:1")}, "name")


# --------------------------------------------------------------------------------------------------------- dataclasses
@dataclasses.dataclass
class Small:
    """As a recipe would have it."""

    colour: Colour
    size: int = 3
    kind: str | None = dataclasses.field(default="a", metadata={"choices": ["a", "b"]})
    peft: dict[str, typing.Any] | None = None
    names: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        if self.size > 5 and self.kind == "b":
            raise ValueError("size above 5 and kind b\n exclude each other")
        if self.peft == {"r": 0}:
            raise UserError("peft: 'r' must be above 0")
        if self.names == ["none"]:
            raise UserError("nothing that any key has a part in")


def settings_of(**values) -> dict:
    return {
        key.replace("__", "."): Setting(value, f"a.yaml:{line}") for line, (key, value) in enumerate(values.items(), 1)
    }


def test_build_makes_the_dataclass_with_its_defaults():
    small = build([Small], settings_of(colour="red", peft__r=8, peft__method="lora"), "name")[Small]
    assert small == Small("red", peft={"r": 8, "method": "lora"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colour": "red", "sise": 1}, "a.yaml:2: unknown key 'sise'; did you mean 'size'?"),
        ({"colour": "red", "zzz": 1}, "a.yaml:2: unknown key 'zzz'; known: colour, kind, names, peft, size"),
        ({"colour": "red", "pfet__r": 1}, "a.yaml:2: unknown key 'pfet'; did you mean 'peft'?"),
        ({"size": 3}, "family/name: required key 'colour' is missing"),
        ({"colour": "red", "kind": "c"}, "a.yaml:2: 'kind' must be one of a, b, not 'c'"),
        ({"colour": "red", "size": "3"}, "a.yaml:2: 'size' must be an integer, not \"3\""),
        ({"colour": "red", "size__a": 3}, "a.yaml:2: 'size' must be an integer, not {\"a\": 3}"),
        ({"colour": "red", "kind": "b", "size": 6}, "a.yaml:2: size above 5 and kind b exclude each other"),
        ({"colour": "red", "peft__r": 0}, "a.yaml:2: peft: 'r' must be above 0"),
        ({"colour": "red", "names": ["none"]}, "family/name: nothing that any key has a part in"),
    ],
)
def test_what_cannot_be_built_is_named_with_its_place(settings, message):
    with pytest.raises(UserError) as error:
        build([Small], settings_of(**settings), "family/name")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("capabilities", "bf16"), [({}, False), ({"avx512_bf16": True}, True), ({"bf16": True}, True)]
)
def test_bf16_gives_way_where_a_cpu_would_emulate_it(capabilities, bf16, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    training = {"use_cpu": True, "bf16": True}
    fit_to_machine(training)
    assert training["bf16"] is bf16


def test_choices_may_be_null():
    assert build([Small], settings_of(colour="red", kind=None), "name")[Small].kind is None


PAIRS = [
    ({"load_best_model_at_end": True, "eval_strategy": "no"}, "load_best_model_at_end"),
    ({"fp16": True, "bf16": True}, "bf16"),
    ({"lr_scheduler_type": "linear", "warmup_steps": -3}, "warmup_steps"),
    ({"logging_steps": 0}, "logging_steps"),
]


@pytest.mark.parametrize(
    ("values", "named"), PAIRS, ids=lambda value: "-".join(value) if isinstance(value, dict) else value
)
def test_an_impossible_pair_is_named_with_the_place_of_one_of_them(values, named):
    from trl import SFTConfig

    settings = settings_of(output_dir="x", **values)
    with pytest.raises(UserError) as error:
        build([SFTConfig], settings, "name")
    assert str(error.value).startswith(settings[named].origin + ": ")


def test_nearest_key():
    known = ["learning_rate", "seed", "max_steps"]
    assert did_you_mean("learning_rte", known) == "; did you mean 'learning_rate'?"
    assert did_you_mean("zzz", known) == "; known: learning_rate, max_steps, seed"
    assert did_you_mean("zzz", map(str, range(100, 130))) == ""
    assert did_you_mean("zzz", []) == ""


# ------------------------------------------------------------------------------------------------------------- resolve
@dataclasses.dataclass
class Method:
    output_dir: str | None = None
    seed: int = 42


def test_the_command_line_stands_over_the_file_and_both_are_remembered(write):
    folder = write(a="seed: 1\noutput_dir: here\n")
    config = resolve([Method], "family/recipe", ["--config", str(folder / "a.yaml"), "--seed", "2"])
    assert config.name == "family/recipe/a"
    assert config.get(Method) == Method("here", 2)
    assert {key: setting.origin for key, setting in config.settings.items()} == {
        "seed": "command line: --seed",
        "output_dir": "a.yaml:2",
    }
    assert config.plain() == {"seed": 2, "output_dir": "here"}


def test_the_output_folder_follows_the_name_of_the_config(write):
    from recipes.core.run import RunConfig

    folder = write(a="seed: 1\n")
    argv = ["--config", str(folder / "a.yaml")]
    assert resolve([RunConfig, Method], "family/recipe", argv).get(Method).output_dir == "runs/family/recipe/a"
    argv += ["--runs_dir", "elsewhere"]
    assert resolve([RunConfig, Method], "family/recipe", argv).get(Method).output_dir == "elsewhere/family/recipe/a"


@dataclasses.dataclass
class Chain:
    model: str = ""
    rewards: list[str] = dataclasses.field(default_factory=list)
    policies: dict[str, str] | None = None
    output_dir: str | None = None


def test_what_begins_with_runs_is_looked_up_in_the_folder_of_all_runs(write):
    from recipes.core.run import RunConfig

    folder = write(
        a="""
model: runs/finetuning/sft/quickstart
rewards: [runs/rlhf/reward/mine, package.module:function, ./runs/rlhf/reward/mine, other/runs/rlhf]
policies: {sft: runs/finetuning/sft/quickstart, hub: Qwen/Qwen3-0.6B, data: runs/data/reviews}
"""
    )
    argv = ["--config", str(folder / "a.yaml")]
    chain = resolve([RunConfig, Chain], "family/recipe", argv).get(Chain)
    assert chain.model == "runs/finetuning/sft/quickstart"
    moved = resolve([RunConfig, Chain], "family/recipe", [*argv, "--runs_dir", "/tmp/seed-1"])
    assert moved.get(Chain) == Chain(
        model="/tmp/seed-1/finetuning/sft/quickstart",
        rewards=["/tmp/seed-1/rlhf/reward/mine", *chain.rewards[1:]],
        policies={**chain.policies, "sft": "/tmp/seed-1/finetuning/sft/quickstart"},
        output_dir="/tmp/seed-1/family/recipe/a",
    )
    assert moved.plain()["model"] == chain.model, "the settings are those of the same chain elsewhere"
    argv += ["--runs_dir", "elsewhere", "--output_dir", "runs/rlhf/mine"]
    assert resolve([RunConfig, Chain], "family/recipe", argv).get(Chain).output_dir == "runs/rlhf/mine"


def test_a_config_starts_from_those_that_its_values_name_and_what_they_start_from():
    chain = ["tokenization/train/quickstart", "pretraining/causal/quickstart", "finetuning/sft/quickstart"]
    assert starts_from(find_config(chain[0])) == []
    assert starts_from(find_config(chain[2])) == chain[:2]
    ppo = starts_from(find_config("rlhf/ppo/quickstart"))
    assert ppo == [*chain, "rlhf/reward/quickstart"]
    base, *encoder = (
        "finetuning/classification/quickstart",
        "tokenization/train/wordpiece",
        "pretraining/masked/quickstart",
    )
    assert starts_from(find_config("finetuning/comparison/quickstart")) == encoder == starts_from(find_config(base))
