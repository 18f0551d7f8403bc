"""PPO: the policy's own answers, scored by a reward model and held near the SFT model by a KL penalty, improve it.

Paper: Schulman et al. 2017, Proximal Policy Optimization Algorithms, arXiv 1707.06347, eq. 7 and 9;
       Ouyang et al. 2022, Training language models to follow instructions with human feedback, arXiv 2203.02155, step 3.
Run:   accelerate launch -m recipes.rlhf.ppo --config configs/rlhf/ppo/quickstart.yaml
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.catalog import check_source
from recipes.rlhf.ppo_config import PPOConfig
from recipes.rlhf.ppo_data import as_conversations
from recipes.rlhf.ppo_trainer import PPOTrainer
from recipes.rlhf.rewards import Reward, RewardsConfig, load_reward


@dataclass
class PPORewardsConfig(RewardsConfig):
    """What is rewarded, and where the value model comes from."""

    value_model: str = field(
        default="separate",
        metadata={
            "help": "separate: a model of its own, from the first reward model; shared: a head on the policy's trunk; "
            "adapter: a head on the policy's base under an adapter of its own, reward adapters on that base too (needs "
            "peft); or where a separate one starts (folder, run or Hub name)."
        },
    )
    ptx_dataset_name: str | None = field(
        default=None, metadata={"help": "Texts mixed in with weight ptx_coef, and measured held out; as dataset_name."}
    )

    def check_names(self) -> None:
        super().check_names()
        if self.ptx_dataset_name is not None:
            with _naming_ptx():
                DataConfig(self.ptx_dataset_name).check_names()

    def texts(self, drop_empty_rows: bool) -> Any:
        """Texts of `ptx_dataset_name` in the splits `train` and `test`, of which 200 are enough to measure on."""
        if self.ptx_dataset_name is None:
            return None
        limits = {"test_split_size": 0.02, "max_test_samples": 200}
        with _naming_ptx():
            return DataConfig(self.ptx_dataset_name, drop_empty_rows=drop_empty_rows, **limits).load(("text",))

    def is_shared_adapter(self, name: str) -> bool:
        """Whether a reward model is one more adapter on the policy's own base."""
        return self.value_model == "adapter" and (Path(name) / "adapter_config.json").is_file()


@contextmanager
def _naming_ptx() -> Iterator[None]:
    """Let an error about the data name the key that these data come from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"ptx_dataset_name: {str(error).removeprefix('dataset_name: ')}") from None


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, method: PPORewardsConfig, training: PPOConfig) -> None:
    prompts = as_conversations(data.load(("prompt",)), method.system_prompt)
    tokenizer, policy = model.load_causal_lm(prompts)
    if method.value_model not in ("separate", "shared", "adapter"):
        check_source(method.value_model, "value_model")
    rewards = [
        Reward(name, name) if method.is_shared_adapter(name) else load_reward(name, model.dtype)
        for name in method.reward_funcs
    ]
    texts = method.texts(data.drop_empty_rows)
    if texts is not None and training.ptx_coef == 0 and "test" not in prompts:
        raise UserError(
            "ptx_dataset_name: without ptx_coef it is only measured, in evaluations, and there is no test split"
        )

    trainer = PPOTrainer(
        model=policy,
        reward_funcs=[reward.func for reward in rewards],
        args=training,
        processing_class=tokenizer,
        reward_processing_classes=[reward.tokenizer for reward in rewards],
        value_model=method.value_model,
        train_dataset=prompts["train"],
        eval_dataset=prompts.get("test"),
        peft_config=model.peft_config("CAUSAL_LM"),
        ptx_dataset=texts,
    )
    before = trainer.evaluate() if "test" in prompts else {}
    run.fit(trainer)

    after = trainer.evaluate() if "test" in prompts else {}
    run.record(**quantities(after), baselines=quantities(before))


def quantities(metrics: dict[str, float]) -> dict[str, float]:
    """What was sampled on held-out prompts, without the timings."""
    return {name: value for name, value in metrics.items() if not name.endswith(("runtime", "per_second", "epoch"))}


if __name__ == "__main__":
    main()
