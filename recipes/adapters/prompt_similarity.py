"""How alike two soft prompts are, which tells which source task helps a target task.

Paper: Vu et al. 2021, SPoT: Better Frozen Model Adaptation through Soft Prompt Transfer, arXiv 2110.07904, section 4.1.
"""

from collections.abc import Mapping

import torch


def cosine_of_average_tokens(first: torch.Tensor, second: torch.Tensor) -> float:
    """The cosine of two prompts' mean token representations.

    Args:
        first: (tokens, features).
        second: (tokens, features), of as many features.
    """
    return float(torch.cosine_similarity(first.double().mean(dim=0), second.double().mean(dim=0), dim=0))


def per_token_average_cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """The mean of the cosines of all pairs of a token of the one and a token of the other.

    Args:
        first: (tokens, features).
        second: (tokens, features), of as many features.
    """
    one, two = (torch.nn.functional.normalize(prompt.double(), dim=1) for prompt in (first, second))
    return float((one @ two.T).mean())


def similarity_table(prompts: Mapping[str, torch.Tensor]) -> list[dict[str, str | float]]:
    """Both similarities of every pair of different prompts, the most alike first."""
    names = list(prompts)
    rows = [
        {
            "first": first,
            "second": second,
            "cosine_of_average_tokens": cosine_of_average_tokens(prompts[first], prompts[second]),
            "per_token_average_cosine": per_token_average_cosine(prompts[first], prompts[second]),
        }
        for number, first in enumerate(names)
        for second in names[number + 1 :]
    ]
    return sorted(rows, key=lambda row: -row["cosine_of_average_tokens"])
