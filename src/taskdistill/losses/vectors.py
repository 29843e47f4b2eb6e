"""What all formulas do with vectors: unit rows, prefixes, and draws that a continued run repeats.

Torch loads on use here and in `losses/terms`, so that a recipe can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def normalize(vectors: Tensor) -> Tensor:
    """Scale rows to unit length; a zero row stays zero."""
    import torch.nn.functional as F

    return F.normalize(vectors, dim=-1)


def over_prefixes(loss: Callable[[int], Tensor], dims: Sequence[int]) -> Tensor:
    """Matryoshka: the equal-weight mean of a loss over prefix sizes (section 5.5, option 1)."""
    import torch

    return torch.stack([loss(dim) for dim in dims]).mean()


def step_rng(step: int) -> Generator:
    """Return a generator of the step alone: each prefix, and a continued run, draws the same."""
    import torch

    return torch.Generator().manual_seed(0x5EED + step)


def without_positives(excluded: Tensor, positives: Tensor) -> Tensor:
    """Take each query's positive out of a mask `(B, M)` of candidates that are no negatives."""
    return excluded.scatter(1, positives[:, None], False)
