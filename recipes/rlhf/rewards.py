"""Rewards by name: a reward model's folder or Hub name, a judge's run, or a function `package.module:function`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.core.catalog import check_source
from recipes.core.errors import UserError, did_you_mean
from recipes.core.weights import load_pretrained
from recipes.rlhf import naive_bayes


@dataclass
class Reward:
    """A reward model with its tokenizer, or a function `f(prompts, completions, **columns) -> list[float]`."""

    name: str
    func: Any
    tokenizer: Any = None


@dataclass
class RewardsConfig:
    """What is rewarded, and how plain prompts are asked."""

    reward_funcs: list[str] = field(
        metadata={"help": "Reward models (folder, run or Hub name) and functions (package.module:function)."}
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "Ask plain prompts as a conversation that this system message begins."}
    )

    def __post_init__(self):
        if not self.reward_funcs:
            raise UserError("'reward_funcs' is empty; name a reward model or a function package.module:function")

    def check_names(self) -> None:
        for name in self.reward_funcs:
            check_reward(name)


def is_function(name: str) -> bool:
    return ":" in name and "/" not in name


def load_function(name: str) -> Callable[..., list[float]]:
    """The function `package.module:function`.

    Raises:
        UserError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"reward function {name}: {error}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"reward function {name}: {module_name} has no function '{function_name}'"
            + did_you_mean(function_name, functions)
        )
    return function


def check_reward(name: str) -> None:
    """Raise a UserError if the named function does not exist; loads no model."""
    if is_function(name):
        load_function(name)


def load_reward(name: str, dtype: str | None = "float32") -> Reward:
    """The reward function, the judge in a run's folder or, for any other name, the reward model with its tokenizer.

    Raises:
        UserError: it cannot be opened, or the model has more than one score.
    """
    if is_function(name):
        return Reward(name.rpartition(":")[2], load_function(name))
    check_source(name, "reward model")
    if (Path(name) / naive_bayes.FILE).is_file():
        judge = naive_bayes.as_reward(name)
        return Reward(judge.__name__, judge)  # the name under which PPO logs it
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    adapter = (Path(name) / "adapter_config.json").is_file()  # whose base says nothing of the one label of its head
    model = load_pretrained(AutoModelForSequenceClassification, name, dtype=dtype, num_labels=1 if adapter else None)
    if model.config.num_labels != 1:
        raise UserError(
            f"{name} has {model.config.num_labels} labels and no single score; "
            "name a reward model, such as runs/rlhf/reward/quickstart"
        )
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return Reward(name, model.eval(), tokenizer)
