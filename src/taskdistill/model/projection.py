"""The student-side projection: a trained linear map from the student's space to the teacher's
(section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Module):
    """psi(z) = W z + b with W `(T, D)`; a prefix of z uses the same columns of W (section 5.5,
    option 2).
    """

    def __init__(
        self,
        embedding_dim: int,
        teacher_dim: int | Sequence[int],
        init: Literal["default", "identity"] = "default",
    ) -> None:
        """Start the map.

        `teacher_dim`: teacher size T, or those of several teachers, whose vectors stand side by
        side and whose sum is T. `init`: `default` draws W and b as torch's linear layer does;
        `identity` puts ones on the diagonal of each teacher's rows.
        """
        super().__init__()
        widths = [teacher_dim] if isinstance(teacher_dim, int) else list(teacher_dim)
        linear = nn.Linear(embedding_dim, sum(widths))
        self.weight = linear.weight
        self.bias = linear.bias
        if init == "identity":
            with torch.no_grad():
                for part in torch.split(self.weight, widths):
                    nn.init.eye_(part)
                self.bias.zero_()

    def forward(self, vectors: Tensor) -> Tensor:
        """Carry vectors or prefixes of vectors into the teacher's space.

        `vectors`: `(N, k)` with k at most D. Returns `(N, T)`, not normalised.
        """
        return F.linear(vectors, self.weight[:, : vectors.shape[1]], self.bias)
