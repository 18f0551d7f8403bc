"""What a fusion looks at: the mean attention that each adapter gets.

Paper: Pfeiffer et al. 2020, AdapterFusion, arXiv 2005.00247, section 6 and figure 4.
"""

import torch
from torch import Tensor
from transformers import Trainer

from recipes.adapters.fusion import Fusion


@torch.no_grad()
def mean_weights(trainer: Trainer) -> dict[str, float]:
    """The share of each adapter, by name, over all layers and held-out tokens; the shares add up to 1."""
    fusions = [module for module in trainer.model.modules() if isinstance(module, Fusion)]
    names = list(fusions[0].adapters)
    total, count = torch.zeros(len(names), dtype=torch.float64), 0
    seen: list[Tensor] = []

    def keep(fusion: Fusion) -> None:
        weights = fusion.weights

        def weights_and_keep(hidden: Tensor, outputs: Tensor) -> Tensor:
            seen.append(weights(hidden, outputs))
            return seen[-1]

        fusion.weights = weights_and_keep

    for fusion in fusions:
        keep(fusion)
    trainer.model.eval()
    try:
        for batch in trainer.get_eval_dataloader():
            trainer.model(**trainer._prepare_inputs(batch))
            real = batch["attention_mask"].bool()
            for weights in seen:
                total += weights[real].double().sum(0).cpu()
                count += int(real.sum())
            seen.clear()
    finally:
        for fusion in fusions:
            del fusion.weights  # the class's own again
    return dict(zip(names, (total / count).tolist(), strict=True))
