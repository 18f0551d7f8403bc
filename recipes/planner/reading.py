"""From a config to a workload: which model it names, how long its sequences are, what its method keeps beside the model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from recipes.core import ModelConfig
from recipes.core.catalog import CONFIGS, parent_config
from recipes.core.config import Resolved, nest, read_yaml
from recipes.core.errors import UserError, did_you_mean
from recipes.core.models import HEAD_TASKS
from recipes.planner.architecture import Adapter, Architecture
from recipes.planner.workload import STATES, Role, Rollout, Value, Workload, optimizer_kind, scorer

ARCHITECTURES = Path(__file__).with_name("architectures.yaml")
# The recipes that this module knows to read, and PEFT's name of the task that each trains its model for.
RECIPES = {
    "pretraining/causal": "CAUSAL_LM",
    "finetuning/sft": "CAUSAL_LM",
    "finetuning/classification": "SEQ_CLS",
    "finetuning/token_classification": "TOKEN_CLS",
    "finetuning/question_answering": "QUESTION_ANS",
    "finetuning/sequence_to_sequence": "SEQ_2_SEQ_LM",
    "rlhf/reward": "CAUSAL_LM",
    "rlhf/dpo": "CAUSAL_LM",
    "rlhf/kto": "CAUSAL_LM",
    "rlhf/rloo": "CAUSAL_LM",
    "rlhf/grpo": "CAUSAL_LM",
    "rlhf/ppo": "CAUSAL_LM",
}
PROMPT_TOKENS = 256  # of a prompt, where neither the config nor --prompt_tokens says


# ------------------------------------------------------------------------------------------------------ architectures
def find_architecture(name: str) -> Architecture:
    """The model of a folder, of another run (made or not), or of the Hub, by its config alone.

    Raises:
        UserError: nothing here or on the Hub says what the model is made of.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return find_architecture(adapter["base_model_name_or_path"])
    if (folder / "config.json").is_file():
        return Architecture(name, AutoConfig.from_pretrained(name))
    parent = parent_config(name)
    if parent:
        settings = nest(read_yaml(CONFIGS / f"{parent}.yaml")[0])
        if settings.get("model_config"):
            return from_scratch(settings["model_config"], settings["tokenizer_name_or_path"])
        if settings.get("model_name_or_path"):
            return find_architecture(settings["model_name_or_path"])
    known = yaml.safe_load(ARCHITECTURES.read_text(encoding="utf-8"))
    if name in known:
        block = dict(known[name])
        return Architecture(name, CONFIG_MAPPING[block.pop("model_type")](**block))
    try:
        return Architecture(name, AutoConfig.from_pretrained(name))
    except (OSError, ValueError):
        near = did_you_mean(name, known) or "; give a folder with its config.json"
        raise UserError(
            f"model_name_or_path: '{name}' is no folder, not on the Hub as far as it can be reached, and not in "
            f"recipes/planner/architectures.yaml{near}"
        ) from None


def from_scratch(block: dict[str, Any], tokenizer: str) -> Architecture:
    """The model of a `model_config` block, its vocabulary that of the tokenizer."""
    from transformers import CONFIG_MAPPING

    block = {"vocab_size": vocabulary(tokenizer)} | block
    kind = block.pop("model_type")
    return Architecture(f"{kind} from scratch", CONFIG_MAPPING[kind](**block))


def vocabulary(tokenizer: str) -> int:
    """Tokens of a tokenizer: of a folder, a run of tokenization/train that may not be made yet, or a known model."""
    if Path(tokenizer).is_dir():
        from transformers import AutoTokenizer

        return len(AutoTokenizer.from_pretrained(tokenizer))
    parent = parent_config(tokenizer)
    if parent:
        settings = nest(read_yaml(CONFIGS / f"{parent}.yaml")[0])
        if "vocab_size" in settings:
            return settings["vocab_size"]
    return find_architecture(tokenizer).vocabulary


# ----------------------------------------------------------------------------------------------------------- workload
def workload_of(resolved: Resolved, prompt_tokens: int | None = None, tokens: int | None = None) -> Workload:
    """The workload of a config, as one process of many sees it.

    Args:
        prompt_tokens: of a prompt that is answered, where the config sets no limit.
        tokens: of the whole training; by default what the config's steps or episodes come to.

    Raises:
        UserError: the recipe is none of `RECIPES`, or its optimizer's states are not known.
    """
    recipe = resolved.name.rpartition("/")[0]
    if recipe not in RECIPES:
        raise UserError(
            f"{resolved.name}: there is nothing to plan in {recipe}; the planner knows {', '.join(RECIPES)}"
        )
    groups = list(resolved.groups.values())
    model = next(group for group in groups if isinstance(group, ModelConfig))
    args = next(group for group in groups if hasattr(group, "per_device_train_batch_size"))
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer_kind(optimizer) not in STATES or "4bit" in optimizer:
        raise UserError(f"optim: the planner has no figures for {optimizer}; it knows {', '.join(STATES)}")
    notes: list[str] = []
    if model.model_config is not None:
        architecture = from_scratch(model.model_config, model.tokenizer_source)
        weights = torch.float32
    else:
        architecture = find_architecture(model.model_name_or_path)
        named = {"auto": getattr(architecture.config, "dtype", None) or torch.bfloat16, None: torch.float32}
        weights = named[model.dtype] if model.dtype in named else getattr(torch, model.dtype)
    task = _task(RECIPES[recipe], args, architecture)
    architecture = replace(architecture, task=task)

    batch, length = args.per_device_train_batch_size, getattr(args, "max_length", None)
    quantised = _quantised(model)
    # how a prompt begins changes no size, and may need words that no tokenizer is here for
    block = {key: value for key, value in (model.peft or {}).items() if not key.startswith("prompt_tuning_init")}
    workload = Workload(
        name=resolved.name,
        architecture=architecture,
        sequences=batch,
        length=(length or min(getattr(architecture.text, "max_position_embeddings", 1024), 1024)) + _virtual(model),
        accumulation=args.gradient_accumulation_steps,
        weights=weights,
        bf16=_bf16(resolved, args),
        checkpointing=bool(args.activation_checkpointing),
        attention=_attention(model, recipe),
        optimizer=optimizer,
        quantised=quantised,
        adapter=Adapter(json.dumps(block), in_float32=quantised is None, task=task) if block else None,
        loss=_loss(recipe, task),
        written=args.max_target_length if task == "SEQ_2_SEQ_LM" else 0,
        sync_each_batch=_syncs_each_batch(args),
    )
    if getattr(args, "use_vllm", False):
        share = (
            f"{args.vllm_gpu_memory_utilization:.0%} of each GPU"
            if args.vllm_mode == "colocate"
            else "GPUs of its own"
        )
        notes.append(f"responses are planned as sampled by the model itself; vLLM takes {share} and is faster")
    if hasattr(args, "response_length"):
        workload = _with_ppo(workload, args, resolved, prompt_tokens, notes)
    elif hasattr(args, "max_completion_length"):
        workload = _with_groups(workload, args, resolved, prompt_tokens, notes)
    elif recipe == "rlhf/reward":
        workload = workload.changed(sequences=2 * batch, pair=2, loss="score")
    elif recipe in ("rlhf/dpo", "rlhf/kto"):
        reference = [] if workload.adapter or args.precompute_ref_log_probs else [_reference(architecture)]
        pair = 2 if recipe == "rlhf/dpo" else 1
        workload = workload.changed(sequences=pair * batch, pair=pair, others=tuple(reference))
    if length is None and workload.rollout is None:
        notes.append(f"max_length is not set: sequences of {workload.length} tokens are assumed")
    steps = args.max_steps if args.max_steps and args.max_steps > 0 else None
    if tokens is None and getattr(args, "total_episodes", None):
        tokens = args.total_episodes * workload.rollout.epochs * workload.length
    return workload.changed(tokens=tokens, steps=None if tokens else steps, notes=tuple(notes))


def _task(task: str, args: Any, architecture: Architecture) -> str:
    """PEFT's name of it.

    Raises:
        UserError: the method has the model say a word where the planner knows a head alone.
    """
    if getattr(args, "template", None) is not None or getattr(args, "lm_coef", 0):
        raise UserError("template, lm_coef: the planner knows classification by a head alone")
    if (task == "SEQ_2_SEQ_LM") != architecture.config.is_encoder_decoder:
        raise UserError(f"{architecture.name} is no model that the planner knows for {task}")
    return task


def _loss(recipe: str, task: str) -> str:
    """In the words of `activations.of_logits`."""
    if task in HEAD_TASKS:
        return "labels"
    return "full" if recipe.startswith("pretraining") or task == "SEQ_2_SEQ_LM" else "tiles"


def _virtual(model: ModelConfig) -> int:
    """Tokens that prompt tuning puts before a row."""
    prompts = ("prompt_tuning", "p_tuning")
    return model.peft.get("num_virtual_tokens", 0) if model.peft and model.peft["method"] in prompts else 0


def _attention(model: ModelConfig, recipe: str) -> str:
    """In the words of `Workload`; PPO lays its rows out so that they need no mask (recipes/rlhf/packing.py)."""
    if model.attn_implementation == "eager":
        return "eager"
    if recipe == "rlhf/ppo" or model.attn_implementation not in (None, "sdpa"):
        return "flash"
    return "packed" if recipe.startswith("pretraining") else "padded"


def _bf16(resolved: Resolved, args: Any) -> bool:
    """What the config asks for, whatever this machine can do: `fit_to_machine` may have turned it off here."""
    if args.fp16:
        raise UserError(
            "fp16: the planner knows bf16 and fp32 alone; plan with bf16: true, whose weights are as large"
        )
    if "bf16" in resolved.settings:
        return bool(resolved.settings["bf16"].value)
    default = type(args).__dataclass_fields__["bf16"].default
    return bool(not args.fp16 if default is None else default)


def _quantised(model: ModelConfig) -> str | None:
    if model.load_in_8bit:
        return "8bit"
    if model.load_in_4bit:
        return "4bit-double" if model.use_bnb_nested_quant else "4bit"
    return None


def _syncs_each_batch(args: Any) -> bool:
    accelerator = args.accelerator_config
    given = accelerator if isinstance(accelerator, dict) else getattr(accelerator, "__dict__", {})
    return bool((given.get("gradient_accumulation_kwargs") or {}).get("sync_each_batch"))


def _reference(architecture: Architecture) -> Role:
    return Role("reference", architecture.parameters)


def _with_ppo(
    workload: Workload, args: Any, resolved: Resolved, prompt_tokens: int | None, notes: list[str]
) -> Workload:
    """PPO's rollout and its other models: value, reference, rewards."""
    policy, adapted = workload.architecture, workload.adapter is not None
    form = nest(resolved.settings).get("value_model", "separate")
    rewards = _rewards(resolved, adapters=form != "adapter")  # with which they stand on the policy's base
    if form in ("shared", "adapter"):
        value = Value(form, policy.hidden)
    else:  # a copy of the first reward model that reads the policy's tokens, else of the policy; or a model by name
        reads = [reward for reward in rewards if reward.vocabulary == policy.vocabulary]
        source = find_architecture(form) if form != "separate" else next(iter(reads), policy)
        value = Value("separate", scorer(source), source.embedding)
    based = args.kl_coef > 0 and adapted  # the reference is the policy without its adapter
    reference = [_reference(policy)] if args.kl_coef > 0 and not adapted else []
    count = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.num_mini_batches
    prompt = _prompt(args, prompt_tokens, notes)
    together = min(args.local_rollout_forward_batch_size, count)
    return workload.changed(
        adapter=workload.adapter and replace(workload.adapter, casts=not workload.bf16),  # see PPOTrainer.train
        loss="blocks",
        length=prompt + args.response_length,
        value=value,
        others=(*reference, *_roles(rewards)),
        offloaded=args.offload_frozen,
        rollout=Rollout(prompt, args.response_length, count, together, args.num_ppo_epochs, based=based),
    )


def _with_groups(
    workload: Workload, args: Any, resolved: Resolved, prompt_tokens: int | None, notes: list[str]
) -> Workload:
    """The rollout of TRL's RLOO and GRPO: all of it at once, and under FSDP2 gathered anew for each token."""
    based = args.beta > 0 and workload.adapter is not None
    reference = [_reference(workload.architecture)] if args.beta > 0 and not based else []
    count = args.per_device_train_batch_size * (args.steps_per_generation or 1)
    prompt = _prompt(args, prompt_tokens, notes)
    length = args.max_completion_length
    return workload.changed(
        length=prompt + length,
        others=(*reference, *_roles(_rewards(resolved))),
        rollout=Rollout(prompt, length, count, count, args.num_iterations, gathered_once=False, based=based),
    )


def _prompt(args: Any, given: int | None, notes: list[str]) -> int:
    """Tokens of a prompt."""
    prompt = getattr(args, "prompt_length", None) or given
    if prompt is None:
        notes.append(f"prompts of {PROMPT_TOKENS} tokens are assumed; --prompt_tokens says otherwise")
    return prompt or PROMPT_TOKENS


def _roles(rewards: list[Architecture]) -> list[Role]:
    return [Role(f"reward model {reward.name}", scorer(reward)) for reward in rewards]


def _rewards(resolved: Resolved, adapters: bool = True) -> list[Architecture]:
    """The reward models of a config; Python functions and runs that are no transformer need no memory.

    `adapters`: whether one that is an adapter counts, as it does where it is merged into a base of its own.
    """
    found = []
    for name in nest(resolved.settings).get("reward_funcs", []):
        parent = parent_config(name)
        settings = nest(read_yaml(CONFIGS / f"{parent}.yaml")[0]) if parent else {}
        is_adapter = "peft" in settings or (Path(name) / "adapter_config.json").is_file()
        if ":" in name or (parent and "model_name_or_path" not in settings) or (is_adapter and not adapters):
            continue
        found.append(find_architecture(name))
    return found
