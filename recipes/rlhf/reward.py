"""Reward model: one score for an answer, trained so that the chosen answer scores above the rejected one.

Paper: Ouyang et al. 2022, Training language models to follow instructions with human feedback, arXiv 2203.02155, eq. 1.
Run:   accelerate launch -m recipes.rlhf.reward --config configs/rlhf/reward/quickstart.yaml
"""

from trl import RewardConfig, RewardTrainer

from recipes.core import DataConfig, ModelConfig, Run, UserError, recipe
from recipes.core.losses import refuse_smoothing
from recipes.rlhf.calibration import calibration


@recipe
def main(run: Run, model: ModelConfig, data: DataConfig, training: RewardConfig) -> None:
    refuse_smoothing(training)
    pairs = data.load(("chosen", "rejected"))
    tokenizer, reward_model = model.load_scorer(pairs)

    trainer = RewardTrainer(
        model=reward_model,
        args=training,
        processing_class=tokenizer,
        train_dataset=pairs["train"],
        eval_dataset=pairs.get("test"),
        peft_config=model.peft_config("SEQ_CLS"),
    )
    kept = {"train": trainer.train_dataset} | ({"test": trainer.eval_dataset} if "test" in pairs else {})
    for split, rows in kept.items():
        if not len(rows):
            raise UserError(f"max_length: every pair of split '{split}' is longer, so that none is left; raise it")
    run.fit(trainer)

    run.record(dropped_rows=len(pairs["train"]) - len(kept["train"]))
    if "test" in kept:
        baselines = {"pair_accuracy": 0.5}
        if "flipped" in pairs["test"].column_names:  # data that knows which of its labels are noise states the ceiling
            baselines["label_noise_ceiling"] = 1 - sum(pairs["test"]["flipped"]) / len(pairs["test"])
        run.record(**calibration(trainer, run.output_dir / "calibration.png"), baselines=baselines)


if __name__ == "__main__":
    main()
