"""Pseudo-relevance feedback: move a query towards its best documents, then search again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.quantization import normalize

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PrfSettings:
    """How far a query moves and towards what (frontier.md, 2.6).

    It helps about as many corpora as it harms: measure it on yours (`search.tune`) before switching
    it on.
    """

    documents: int = 10
    """K, the best documents that pull."""
    weight: float = 0.3
    """a, the share of their centroid in the new query, above 0 and at most 1."""
    temperature: float = 0.05
    """tau of the softmax over their similarities, above 0."""

    def __post_init__(self) -> None:
        if (
            self.documents < 1
            or not 0 < self.weight <= 1
            or not 0 < self.temperature < float("inf")
        ):
            raise BadInput(
                f"refinement with {self.documents} documents, weight {self.weight} and temperature "
                f"{self.temperature}; give at least 1 document, a weight in (0, 1] and a "
                "temperature above 0"
            )


def apply_prf(query: Floats, vectors: NDArray[np.generic], settings: PrfSettings) -> Floats:
    """Return norm((1 - a) q + a sum_i softmax(<q, d_i> / tau)_i d_i) over the best documents.

    `query`: `(dim,)` unit vector. `vectors`: `(K, dim)` vectors of its best documents. Returns
    `(dim,)` unit vector; the query itself if there is no document or the sum vanishes.
    """
    if len(vectors) == 0:
        return query
    documents = vectors.astype(np.float64)
    similarities = documents @ query.astype(np.float64) / settings.temperature
    # The largest exponent is 0, so that a small temperature overflows nothing.
    weights = np.exp(similarities - similarities.max())
    centroid = (weights / weights.sum()) @ documents
    moved = normalize(((1 - settings.weight) * query + settings.weight * centroid)[None])[0]
    return moved if moved.any() else query
