"""Intervals over queries: of a mean, and of the share of one mean in another, by drawing queries with replacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_interval(values: NDArray[np.float64], *, seed: int = 17) -> Interval:
    """Return the mean over queries.

    Args:
        values: One number a query, `(q,)`.
        seed: Of the draws.

    Returns:
        Mean and percentile interval.
    """
    low, high = np.quantile(values[_drawn(len(values), seed)].mean(1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def share_interval(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], *, seed: int = 17
) -> Interval:
    """Return the mean of one model as a share of another's on the same queries.

    Args:
        ours: One number a query, `(q,)`.
        theirs: Of the other model, in the same order.
        seed: Of the draws; both models are drawn together.

    Returns:
        Share and percentile interval; 0 where the other's mean is 0.
    """
    drawn = _drawn(len(ours), seed)
    low, high = np.quantile(_share(ours[drawn].mean(1), theirs[drawn].mean(1)), [0.025, 0.975])
    return Interval(
        float(_share(ours.mean(keepdims=True), theirs.mean(keepdims=True))[0]),
        float(low),
        float(high),
    )


def _drawn(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def _share(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(ours, theirs, out=np.zeros_like(ours), where=theirs > 0)
