"""How far a reward model's margins can be believed: accuracy on held-out pairs, and the calibration curve."""

from pathlib import Path

import torch
from trl import RewardTrainer

from recipes.core.files import write_atomically

BINS = 8


@torch.inference_mode()
def held_out_margins(trainer: RewardTrainer) -> torch.Tensor:
    """score(chosen) − score(rejected) of every evaluation pair, [pairs], float32 on the CPU."""
    trainer.model.eval()
    margins = []
    for batch in trainer.get_eval_dataloader():
        scores = trainer.model(**trainer._prepare_inputs(batch), use_cache=False).logits.squeeze(-1).float()
        chosen, rejected = scores.chunk(2)
        margins.append(trainer.accelerator.gather_for_metrics(chosen - rejected).cpu())
    return torch.cat(margins)


def calibration(trainer: RewardTrainer, plot: Path) -> dict[str, float]:
    """Pair accuracy with its standard error, log loss and expected calibration error on held-out pairs; draws the curve.

    The model's probability that the chosen answer is better is sigmoid(margin) (Bradley & Terry). Each pair is looked
    at from the side the model prefers, so that the probabilities lie in [0.5, 1] and the curve shows how often the
    label agrees.
    """
    margins = held_out_margins(trainer)
    agrees = (margins > 0).float()
    confidence = torch.sigmoid(margins.abs())
    bins = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    error, points = 0.0, []
    for index in range(BINS):
        inside = bins == index
        if inside.any():
            said, true = confidence[inside].mean().item(), agrees[inside].mean().item()
            points.append((said, true))
            error += inside.float().mean().item() * abs(said - true)
    if trainer.is_world_process_zero():
        _draw(points, plot)
    accuracy = agrees.mean().item()
    return {
        "pair_accuracy": accuracy,
        "pair_accuracy_standard_error": (accuracy * (1 - accuracy) / len(margins)) ** 0.5,
        "pairs": len(margins),
        "log_loss": torch.nn.functional.softplus(-margins).mean().item(),
        "calibration_error": error,
    }


def _draw(points: list[tuple[float, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color="grey", linewidth=1, linestyle="--", label="perfectly calibrated")
    axes.plot(*zip(*points), marker="o", label="reward model")
    axes.set(xlabel="probability the model gives its preference", ylabel="share of pairs where the label agrees")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=110))
