"""The student-side projection: a trained linear map from the student's space to the teacher's (section 4.1)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """psi(z) = W z + b with W `(T, D)`; a prefix of z uses the same columns of W (section 5.5, option 2)."""

    def __init__(self, embedding_dim: int, teacher_dim: int, init: Literal["default", "identity"] = "default") -> None:
        """Start the map.

        Args:
            embedding_dim: Student size D.
            teacher_dim: Teacher size T.
            init: `default` draws W and b as torch's linear layer does; `identity` puts ones on the diagonal.
        """
        super().__init__()
        linear = nn.Linear(embedding_dim, teacher_dim)
        self.weight = linear.weight
        self.bias = linear.bias
        if init == "identity":
            with torch.no_grad():
                nn.init.eye_(self.weight)
                self.bias.zero_()

    def forward(self, vectors: Tensor) -> Tensor:
        """Carry vectors or prefixes of vectors into the teacher's space.

        Args:
            vectors: `(N, k)` with k at most D.

        Returns:
            `(N, T)`, not normalised.
        """
        return F.linear(vectors, self.weight[:, : vectors.shape[1]], self.bias)
