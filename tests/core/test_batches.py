"""How a batch is split does not change what is learned nor what is measured: losses are weighted by their tokens."""

import pytest

DENOISERS = [f"pretraining/{name}" for name in ("masked", "denoising", "translation")]
OBJECTIVES = [f"pretraining/{name}" for name in ("span_corruption", "text_to_text", "unified", "blank_infilling")]
RECIPES = [
    "pretraining/causal",
    *DENOISERS,
    *OBJECTIVES,
    "finetuning/sft",
    "finetuning/classification",
    "rlhf/reward",
    "rlhf/dpo",
]
NO_DROPOUT = {  # the jobs of the other recipes have none
    "pretraining/masked": [
        "--model_config.hidden_dropout_prob",
        "0",
        "--model_config.attention_probs_dropout_prob",
        "0",
    ],
    "pretraining/denoising": ["--model_config.dropout", "0"],
}
MEAN_OF_BATCHES = pytest.mark.xfail(
    strict=True, raises=AssertionError, reason="Trainer.evaluate averages the means of batches, whatever their tokens"
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_micro_batches_give_the_losses_and_gradients_of_the_whole(recipe, main, job, log_of, tmp_path):
    def curve(size: int) -> list[tuple[float, float]]:
        flags = ["--per_device_train_batch_size", str(size), "--gradient_accumulation_steps", str(4 // size)]
        flags += NO_DROPOUT.get(recipe, [])
        folder = tmp_path / str(size)
        main(recipe)(job(recipe, folder, *flags, "--max_test_samples", "4"))
        return [(line["loss"], line["grad_norm"]) for line in log_of(folder) if "loss" in line]

    whole, split = curve(4), curve(1)
    assert len(whole) >= 3
    for one, other in zip(whole, split, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("recipe", ["pretraining/causal", *DENOISERS, *OBJECTIVES])
def test_label_smoothing_raises_a_loss_and_no_recipe_leaves_it_out(recipe, main, job, log_of, tmp_path):
    def first_loss(smoothing: float) -> float:
        folder = tmp_path / str(smoothing)
        flags = ["--label_smoothing_factor", str(smoothing), "--logging_steps", "1", "--max_steps", "2"]
        main(recipe)(job(recipe, folder, *flags, *NO_DROPOUT.get(recipe, []), "--max_test_samples", "4"))
        return log_of(folder)[0]["loss"]

    plain, smoothed = first_loss(0.0), first_loss(0.5)
    assert plain != pytest.approx(smoothed, rel=1e-6)


@pytest.mark.parametrize(
    "recipe",
    ["pretraining/causal", *DENOISERS, "pretraining/span_corruption", "finetuning/sequence_to_sequence"],
)
def test_the_held_out_loss_is_that_of_unsmoothed_labels(recipe, trainer_of, main, job, tmp_path):
    losses = []
    for smoothing in ("0.0", "0.5"):
        flags = ["--label_smoothing_factor", smoothing, *NO_DROPOUT.get(recipe, [])]
        asked = main(recipe).parse(job(recipe, tmp_path / "run", *flags)).plain()
        losses.append(trainer_of(recipe, {**asked, "report_to": "none"}).evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [
        "pretraining/causal",
        *DENOISERS,
        "pretraining/span_corruption",
        "pretraining/unified",
        "pretraining/blank_infilling",
        pytest.param("finetuning/sft", marks=MEAN_OF_BATCHES),
        "rlhf/reward",
        "rlhf/dpo",
    ],
)
def test_the_held_out_loss_does_not_depend_on_the_batch_size(recipe, trainer_of, main, job, tmp_path):
    asked = main(recipe).parse(job(recipe, tmp_path / "run")).plain()
    trainer = trainer_of(recipe, {**asked, "report_to": "none"})
    losses = []
    for size in (1, 8):
        trainer.args.per_device_eval_batch_size = size
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
