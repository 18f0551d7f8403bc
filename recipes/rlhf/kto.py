"""KTO: answers that are each desirable or not, without a pair, raise and lower the policy's reward as people weigh it.

Paper: Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization, arXiv 2402.01306, eq. 7.
Run:   accelerate launch -m recipes.rlhf.kto --config configs/rlhf/kto/quickstart.yaml
"""

from dataclasses import dataclass, field

from trl import KTOConfig, KTOTrainer

from recipes.core import DataConfig, ModelConfig, Run, recipe
from recipes.rlhf.preferences import check_completions, reference_of, unpaired


@dataclass
class LabelConfig:
    """How the data say that an answer is desirable."""

    desirable_label: str | None = field(
        default=None, metadata={"help": "The label of desirable answers, where labels are not true or false."}
    )


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, method: LabelConfig, training: KTOConfig) -> None:
    rows = data.load(("prompt", "completion", "label"), ("prompt", "chosen", "rejected"), ("chosen", "rejected"))
    tokenizer, policy = model.load_causal_lm(rows)
    answers = unpaired(rows, method.desirable_label, training.seed)

    trainer = KTOTrainer(
        model=policy,
        ref_model=reference_of(policy, model, training),
        args=training,
        processing_class=tokenizer,
        train_dataset=answers["train"],
        eval_dataset=answers.get("test"),
        peft_config=model.peft_config("CAUSAL_LM"),
    )
    supervision = check_completions(trainer, len(answers["train"]))
    run.fit(trainer)

    run.record(**supervision)
    if "test" in answers:
        measured = trainer.evaluate()
        run.record(
            eval_loss=measured["eval_loss"],
            reward_margin=measured.get("eval_rewards/margins"),  # of batches that hold both labels
            baselines={**run.at_start("eval_loss"), "reward_margin": 0.0},
        )


if __name__ == "__main__":
    main()
