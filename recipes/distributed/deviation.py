"""How far what several processes find is from what one process finds."""

from torch import Tensor


def deviation(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest absolute value of what is expected; plain where that is zero throughout."""
    largest = expected.abs().max().item()
    return (found - expected).abs().max().item() / (largest or 1.0)


def largest_deviation(expected: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    """The largest of all tensors by name.

    Raises:
        KeyError: one that is expected was not found.
    """
    return max(deviation(tensor, found[name]) for name, tensor in expected.items())
