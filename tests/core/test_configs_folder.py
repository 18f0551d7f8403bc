"""Every config: it parses, it says what it is, and none went missing."""

import json
import re
from pathlib import Path

import pytest
import yaml

from recipes.core.catalog import CONFIGS, LAUNCH, configs, recipes

# How many configs each recipe has. A config that disappears is noticed here; after adding one, put the new number in.
COUNTS = {
    "tokenization/compare": 3,
    "tokenization/explain": 2,
    "tokenization/train": 14,
    "pretraining/blank_infilling": 2,
    "pretraining/causal": 16,
    "pretraining/denoising": 8,
    "pretraining/masked": 7,
    "pretraining/span_corruption": 2,
    "pretraining/text_to_text": 2,
    "pretraining/translation": 6,
    "pretraining/unified": 2,
    "finetuning/adapter_fusion": 2,
    "finetuning/classification": 26,
    "finetuning/comparison": 5,
    "finetuning/cross_lingual": 2,
    "finetuning/prompt_transfer": 2,
    "finetuning/question_answering": 3,
    "finetuning/sequence_to_sequence": 5,
    "finetuning/sft": 6,
    "finetuning/three_stage": 3,
    "finetuning/token_classification": 3,
    "rlhf/dpo": 3,
    "rlhf/evaluate": 7,
    "rlhf/grpo": 3,
    "rlhf/judge": 1,
    "rlhf/kto": 3,
    "rlhf/ppo": 12,
    "rlhf/reward": 3,
    "rlhf/rloo": 3,
    "distributed/collectives": 2,
    "distributed/data_parallel": 2,
    "distributed/expert_parallel": 2,
    "distributed/mesh": 2,
    "distributed/model_parallel": 2,
    "distributed/mpmd": 2,
    "distributed/pipeline_parallel": 2,
    "distributed/sharding": 2,
    "distributed/tensor_parallel": 2,
}
NO_QUICKSTART = {"rlhf/judge"}  # it needs public data, and the quickstart chain has a gold scorer
SECTIONS = ["model", "method", "data", "training", "evaluation"]
PROFILES = ["cpu", "ddp", "fsdp2", "multi-node", "multi-node-zero3", "zero1", "zero2", "zero3", "zero3-offload"]

ALL = configs()
FILES = sorted(CONFIGS.glob("*/*/*.yaml"))


def test_every_config_is_counted():
    found = {}
    for path in FILES:
        folder = str(path.parent.relative_to(CONFIGS))
        found[folder] = found.get(folder, 0) + 1
    assert found == COUNTS, f"the folders have changed; if that is meant, set COUNTS = {found}"
    assert sorted(config.path for config in ALL) == FILES, "a folder of configs/ has no recipe of its name"


def test_every_folder_has_a_quickstart():
    without = {recipe.name for recipe in recipes() if not (CONFIGS / recipe.name / "quickstart.yaml").exists()}
    assert without == NO_QUICKSTART


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.name)
def test_it_parses_and_builds_the_dataclasses_of_its_recipe(config, main, root, monkeypatch):
    monkeypatch.chdir(root)
    command = main(config.recipe.name)
    resolved = command.parse(["--config", str(config.path.relative_to(root))])
    assert resolved.name == config.name
    assert set(resolved.groups) == set(command.groups)
    outputs = [group.output_dir for group in resolved.groups.values() if hasattr(group, "output_dir")]
    assert outputs == [f"runs/{config.name}"]


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.name)
def test_the_header_says_what_it_is_and_how_it_is_run(config):
    header = []
    for line in config.path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    assert re.fullmatch(r"# [A-Z0-9].*\.", header[0]), "the first line is one sentence on what is trained"
    fields = dict(re.fullmatch(r"# (\w+): +(.+)", line).groups() for line in header[1:4])
    assert list(fields) == ["Run", "Needs", "Result"]
    several = r"sbatch --nodes \d+ scripts/slurm/train.sbatch"  # machines
    run = re.search(rf"(?:python -m recipes run|{several}) (\S+)( |$)", fields["Run"])
    assert run, "Run: names the command"
    assert run[1] == config.name
    if fields["Result"].startswith("results/"):
        assert fields["Result"] == f"results/{config.name}.json"
    else:
        assert fields["Result"].startswith("none yet"), "Result: names its file, or says that there is none yet"


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.name)
def test_its_sections_stand_in_the_fixed_order(config):
    lines = config.path.read_text(encoding="utf-8").splitlines()
    body = lines[lines.index("") :] if "" in lines else []
    found = [line[2:] for line in body if line.startswith("# ")]
    assert found == [section for section in SECTIONS if section in found], "one of each, in the order of SECTIONS"
    assert found
    top = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    before = [line for line in lines[top : lines.index(f"# {found[0]}")] if line]
    assert all(line.startswith("extends:") for line in before), "only 'extends' stands before the first section"


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.name)
def test_only_peft_and_what_libraries_nest_is_nested(config):
    blocks = {"peft", "model_config", "tokenizer_kwargs", "dataset_columns", "policies", "lr_scheduler_kwargs"}
    blocks |= {
        "verbalizer",
        "sources",
        "source_verbalizers",
        "settings",
    }  # names of a task's own, or another recipe's keys
    settings = yaml.safe_load(config.path.read_text(encoding="utf-8"))
    nested = {key for key, value in settings.items() if isinstance(value, dict)}
    assert nested <= blocks


def test_uploads_trackers_and_remote_code_are_off():
    for config in ALL:
        text = config.path.read_text(encoding="utf-8")
        for key in ("push_to_hub", "report_to", "trust_remote_code"):
            assert key not in text, config.name


# -------------------------------------------------------------------------------------------------------------- launch
def test_the_launch_profiles_are_those_that_are_known():
    assert sorted(path.stem for path in LAUNCH.glob("*.yaml")) == PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_accelerate_reads_the_profile(name):
    from accelerate.commands.config.config_args import ClusterConfig

    path = LAUNCH / f"{name}.yaml"
    profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    read = ClusterConfig.from_yaml_file(str(path))
    assert read.num_processes == profile["num_processes"]
    assert read.num_machines == (2 if name.startswith("multi-node") else 1)
    assert read.distributed_type.value == profile["distributed_type"]
    assert "mixed_precision" not in profile, "the precision is the config's to say, not the profile's"


def deepspeed_files() -> list[str]:
    return sorted(path.name for path in (LAUNCH / "deepspeed").glob("*.json"))


def test_each_deepspeed_file_has_its_profile_and_the_other_way_round():
    named = {}
    for name in PROFILES:
        profile = yaml.safe_load((LAUNCH / f"{name}.yaml").read_text(encoding="utf-8"))
        if profile["distributed_type"] == "DEEPSPEED":
            named[name] = profile["deepspeed_config"]["deepspeed_config_file"]
    assert named == {name: f"configs/launch/deepspeed/{name.removeprefix('multi-node-')}.json" for name in named}
    assert sorted({Path(path).name for path in named.values()}) == deepspeed_files()


@pytest.mark.parametrize("name", deepspeed_files())
def test_deepspeed_leaves_batch_and_precision_to_the_config(name):
    settings = json.loads((LAUNCH / "deepspeed" / name).read_text(encoding="utf-8"))
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    ):
        assert settings[key] == "auto"
    assert settings["bf16"]["enabled"] == "auto"
    assert settings.get("fp16", {"enabled": "auto"})["enabled"] == "auto"
    stage = settings["zero_optimization"]["stage"]
    assert name.startswith(f"zero{stage}")
