"""DPO: the policy itself is the reward model of preference pairs, so that they train it without sampling or reward.

Paper: Rafailov et al. 2023, Direct Preference Optimization: Your Language Model is Secretly a Reward Model,
       arXiv 2305.18290, eq. 7.
Run:   accelerate launch -m recipes.rlhf.dpo --config configs/rlhf/dpo/quickstart.yaml
"""

from trl import DPOConfig, DPOTrainer

from recipes.core import DataConfig, ModelConfig, Run, recipe
from recipes.rlhf.preferences import check_completions, reference_of, with_prompts


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: DPOConfig) -> None:
    pairs = with_prompts(data.load(("prompt", "chosen", "rejected"), ("chosen", "rejected")))
    tokenizer, policy = model.load_causal_lm(pairs)

    trainer = DPOTrainer(
        model=policy,
        ref_model=reference_of(policy, model, training),
        args=training,
        processing_class=tokenizer,
        train_dataset=pairs["train"],
        eval_dataset=pairs.get("test"),
        peft_config=model.peft_config("CAUSAL_LM"),
    )
    supervision = check_completions(trainer, len(pairs["train"]))
    run.fit(trainer)

    run.record(**supervision)
    if "test" in pairs:
        measured = trainer.evaluate()
        run.record(
            eval_loss=measured["eval_loss"],
            pair_accuracy=measured["eval_rewards/accuracies"],
            reward_margin=measured["eval_rewards/margins"],
            baselines={**run.at_start("eval_loss"), "pair_accuracy": 0.5, "reward_margin": 0.0},
        )


if __name__ == "__main__":
    main()
