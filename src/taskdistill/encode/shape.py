"""How the vectors of one call look: cut to size, then unit length, then precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taskdistill.compress import Int8Ranges, pack_bits, truncate
from taskdistill.vocabulary import Precision


@dataclass(frozen=True, slots=True)
class Shape:
    """Size and precision of the vectors of one call."""

    dim: int
    precision: Precision
    ranges: Int8Ranges | None

    @property
    def width(self) -> int:
        """Numbers (for binary: bytes) of one vector."""
        return -(-self.dim // 8) if self.precision is Precision.BINARY else self.dim

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of one number."""
        names = {Precision.FLOAT32: "float32", Precision.FLOAT16: "float16", Precision.INT8: "int8", Precision.BINARY: "uint8"}
        return np.dtype(names[self.precision])

    def finish(self, vectors: np.ndarray) -> np.ndarray:
        """Cut, normalise and store vectors.

        Args:
            vectors: float32 `(n, D)`, as the model gives them.

        Returns:
            `(n, width)` of `dtype`.
        """
        cut = truncate(vectors, self.dim)
        if self.precision is Precision.BINARY:
            return pack_bits(cut)
        if self.ranges is not None:
            return self.ranges.encode(cut)
        return cut.astype(self.dtype, copy=False)
