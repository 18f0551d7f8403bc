"""Every quickstart takes two steps: the chain from text to the comparison of policies, made small by flags alone."""

import functools
import json
from pathlib import Path

import pytest

from recipes.core.catalog import configs

FEW = ["--max_train_samples", "64", "--max_test_samples", "16"]
TWO_STEPS = [*FEW, "--max_steps", "2", "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "16"]


def of_rows(number: int) -> list[str]:
    """TWO_STEPS, of more rows: probes and few-shot tasks need enough of each class."""
    return ["--max_train_samples", str(number), *TWO_STEPS[2:]]


BASE, SFT, REWARD, PPO = (
    f"{recipe}/quickstart" for recipe in ("pretraining/causal", "finetuning/sft", "rlhf/reward", "rlhf/ppo")
)
ENCODER = "pretraining/masked/quickstart"
DPO, KTO, RLOO, GRPO = (f"rlhf/{method}/quickstart" for method in ("dpo", "kto", "rloo", "grpo"))
PPO_FORMS = [f"{PPO}-{form}" for form in ("separate", "adapter", "ptx", "low-kl")]
PPO_SMALL = [*TWO_STEPS, "--total_episodes", "null", "--response_length", "8"]
GROUPS = [*TWO_STEPS, "--max_completion_length", "8"]
COMPARED = ["--max_test_samples", "8", "--response_length", "8", "--best_of_n", "1", "2"]
WITH_STAGES = {"adapter_fusion", "comparison", "cross_lingual", "prompt_transfer", "three_stage"}  # runs within a run
# Tokenizers that several quickstarts start from.
WORDPIECE, UNIGRAM, BART_TOKENS, FOREIGN_TOKENS = (
    f"tokenization/train/{name}" for name in ("wordpiece", "unigram", "bart", "second-language")
)
BART = "pretraining/denoising/quickstart"
ARCHITECTURES = ("gpt1", "gpt2", "gpt3-banded", "llama1", "llama2")
BEFORE = {name: ([], ["--vocab_size", "500", *FEW]) for name in (UNIGRAM, BART_TOKENS, FOREIGN_TOKENS)}
BEFORE[WORDPIECE] = ([], ["--max_train_samples", "6000", "--max_test_samples", "16"])  # answers must be one token each
# Each quickstart, and other configs that run offline: what is made before it, and the flags that make it small.
STAGES = {
    "tokenization/train/quickstart": ([], ["--vocab_size", "400", *FEW]),
    "tokenization/explain/quickstart": ([], ["--samples", "100"]),
    "tokenization/compare/quickstart": ([], ["--vocab_size", "600", "--repeats", "1", *FEW]),
    BASE: (["tokenization/train/quickstart"], TWO_STEPS),
    **{f"pretraining/causal/{name}": (["tokenization/train/quickstart"], TWO_STEPS) for name in ARCHITECTURES},
    ENCODER: ([WORDPIECE], [*of_rows(3000), "--duplicates", "1"]),
    BART: ([BART_TOKENS], TWO_STEPS),
    "pretraining/translation/quickstart": ([BART, FOREIGN_TOKENS], [*TWO_STEPS, "--max_length", "16"]),
    "pretraining/translation/quickstart-stage-2": (
        ["pretraining/translation/quickstart"],
        [*TWO_STEPS, "--max_length", "16"],
    ),
    "pretraining/span_corruption/quickstart": ([UNIGRAM], TWO_STEPS),
    "pretraining/text_to_text/quickstart": (["pretraining/span_corruption/quickstart"], TWO_STEPS),
    "pretraining/unified/quickstart": ([ENCODER], TWO_STEPS),
    "pretraining/blank_infilling/quickstart": ([WORDPIECE], TWO_STEPS),
    SFT: ([BASE], TWO_STEPS),
    "finetuning/sft/quickstart-lora": ([BASE], TWO_STEPS),
    "finetuning/sft/quickstart-qlora": ([BASE], TWO_STEPS),
    **{f"finetuning/{task}/quickstart": ([ENCODER], TWO_STEPS) for task in ("classification", "token_classification")},
    "finetuning/question_answering/quickstart": ([ENCODER], TWO_STEPS),
    "finetuning/sequence_to_sequence/quickstart": (
        ["tokenization/train/quickstart"],
        [*TWO_STEPS, "--max_target_length", "8"],
    ),
    "finetuning/three_stage/quickstart": ([ENCODER], [*TWO_STEPS, "--further_steps", "2", "--in_domain_steps", "2"]),
    "finetuning/adapter_fusion/quickstart": ([ENCODER], [*TWO_STEPS, "--fusion_steps", "2", "--seeds", "[0]"]),
    "finetuning/cross_lingual/quickstart": ([ENCODER], [*TWO_STEPS, "--language_steps", "2", "--seeds", "[0]"]),
    "finetuning/prompt_transfer/quickstart": (
        [ENCODER],
        [*of_rows(300), "--target_steps", "2", "--seeds", "[0]", "--shots", "1"],
    ),
    "finetuning/comparison/quickstart": (
        [ENCODER],
        [
            *("--methods", "[frozen, lora]", "--learning_rates", "[1.0]", "--seeds", "[0]", "--settings"),
            "{max_steps: 2, save_steps: 2, max_train_samples: 64, max_test_samples: 16}",
        ],
    ),
    REWARD: ([SFT], TWO_STEPS),
    **{name: ([SFT, REWARD], PPO_SMALL) for name in (PPO, *PPO_FORMS)},
    DPO: ([SFT], TWO_STEPS),
    KTO: ([SFT], TWO_STEPS),
    RLOO: ([SFT, REWARD], GROUPS),
    GRPO: ([SFT, REWARD], GROUPS),
    "rlhf/evaluate/quickstart": ([BASE, SFT, REWARD, PPO], COMPARED),
    "rlhf/evaluate/quickstart-forms": ([BASE, SFT, REWARD, PPO, *PPO_FORMS], COMPARED),
    "rlhf/evaluate/quickstart-methods": ([BASE, SFT, REWARD, DPO, KTO, RLOO, GRPO, PPO], COMPARED),
    # Those that start processes of their own and compare them: two processes, one small thing each.
    "distributed/collectives/quickstart": ([], ["--processes", "[2]", "--message_bytes", "[1024]", "--repeats", "1"]),
    "distributed/data_parallel/quickstart": (
        [],
        ["--processes", "[2]", "--max_steps", "2", "--repeats", "1", "--max_train_samples", "64"],
    ),
    "distributed/tensor_parallel/quickstart": ([], ["--num_hidden_layers", "1", "--processes", "[1,2]"]),
    "distributed/pipeline_parallel/quickstart": (
        [],
        ["--stages", "[2]", "--micro_batches", "[2]", "--forward_ms", "1.0", "--repeats", "1"],
    ),
    "distributed/mesh/quickstart": ([], ["--meshes", "[[2,1,1]]", "--max_steps", "1"]),
    "distributed/expert_parallel/quickstart": ([], [*FEW, "--max_steps", "2", "--processes", "[1,2]"]),
    "distributed/model_parallel/quickstart": (
        [],
        ["--processes", "[2]", "--max_steps", "2", "--max_train_samples", "64"],
    ),
    "distributed/mpmd/quickstart": ([], ["--seeds", "[0, 1]", "--max_steps", "10", "--batch_size", "4"]),
    "distributed/sharding/quickstart": (
        [],
        ["--processes", "[2]", "--strategies", "[fsdp2]", "--precisions", "[full]", "--num_hidden_layers", "1"],
    ),
}


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def make(main, runs_dir, request):
    """`make(name)`: the result of a quickstart, after those it needs."""
    from recipes.embedded import text

    patch = pytest.MonkeyPatch()
    patch.setattr(text, "documents", functools.cache(text.documents))  # two stages read the same rows
    patch.chdir(request.config.rootpath)

    def stage(name: str) -> dict:
        result = runs_dir / name / "result.json"
        if not result.exists():
            parents, flags = (STAGES | BEFORE)[name]
            for parent in parents:
                stage(parent)
            recipe = name.rpartition("/")[0]
            main(recipe)(["--config", f"configs/{name}.yaml", "--runs_dir", str(runs_dir), *flags])
        return json.loads(result.read_text())

    yield stage
    patch.undo()


def test_every_quickstart_is_here():
    quick = {config.name for config in configs() if config.path.stem.startswith("quickstart")}
    assert quick <= set(STAGES) <= {config.name for config in configs()}


@pytest.mark.parametrize("name", STAGES)
def test_it_takes_two_steps_and_leaves_a_result(name, make, runs_dir):
    result = make(name)
    assert result["config"] == name
    assert result["metrics"]
    folder = runs_dir / name
    if name.startswith("distributed"):
        assert (folder / "plot.png").exists()
    elif name.split("/")[1] in WITH_STAGES:
        stages = list(folder.glob("**/result.json"))
        assert len(stages) > 2
        assert all(json.loads(stage.read_text())["steps"] == 2 for stage in stages if stage.parent != folder)
    elif not name.startswith(("tokenization", "rlhf/evaluate")):
        assert result["steps"] == 2
        assert (folder / "checkpoint-2" / "complete.json").exists()
        assert 0 < result["trained_parameters"] <= result["parameters"]
    if "lora" in name:
        adapter = json.loads((folder / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == str(runs_dir / BASE)
        assert result["trained_parameters"] < result["parameters"]
    if name.startswith("rlhf/evaluate"):
        forms = [form.replace("quickstart", "ppo").rpartition("/")[2] for form in PPO_FORMS]
        methods = {"quickstart-methods": ["dpo", "kto", "rloo", "grpo", "ppo"], "quickstart-forms": ["ppo", *forms]}
        methods = methods.get(Path(name).name, ["ppo"])
        assert list(result["metrics"]["policies"]) == ["base", "sft", *methods, "best_of_n"]
        assert (folder / "samples.md").exists()
        assert (folder / "frontier.png").exists()


def test_the_chain_is_that_of_its_own_folder(make, runs_dir):
    """With --runs_dir the parents are those of that folder, though the configs say `runs/…`."""
    make(REWARD)
    config = json.loads((runs_dir / REWARD / "config.json").read_text())
    assert config["vocab_size"] == 400
    inputs = json.loads((runs_dir / REWARD / "run.json").read_text())["inputs"]
    assert f"runs/{SFT}" in inputs
