"""GRPO: several answers to a prompt, each held against mean and spread of the group's rewards, in place of a value model.

Paper: Shao et al. 2024, DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models,
       arXiv 2402.03300, eq. 3.
Run:   accelerate launch -m recipes.rlhf.grpo --config configs/rlhf/grpo/quickstart.yaml
"""

from trl import GRPOConfig, GRPOTrainer

from recipes.core import DataConfig, ModelConfig, Run, recipe
from recipes.rlhf.groups import (
    GroupRewardsConfig,
    check_reference,
    check_rollouts,
    make_repeatable,
    quantities,
    reward_functions,
    sample_plainly,
    stop_on_broken_policy,
)
from recipes.rlhf.ppo_data import as_conversations


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, method: GroupRewardsConfig, training: GRPOConfig) -> None:
    prompts = as_conversations(data.load(("prompt",)), method.system_prompt)
    tokenizer, policy = model.load_causal_lm(prompts)
    check_reference(model, training.beta)
    sample_plainly(policy)

    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=reward_functions(method, training, tokenizer, model.dtype),
        args=training,
        processing_class=tokenizer,
        train_dataset=prompts["train"],
        eval_dataset=prompts.get("test"),
        peft_config=model.peft_config("CAUSAL_LM"),
    )
    check_rollouts(trainer)
    make_repeatable(trainer)
    stop_on_broken_policy(trainer)
    run.fit(trainer)

    if "test" in prompts:
        after = trainer.evaluate()
        run.record(**quantities(after), baselines=quantities(run.at_start(*after)))


if __name__ == "__main__":
    main()
