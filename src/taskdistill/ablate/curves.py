"""Learning curves on steps and CPU-seconds: where they cross, whether the order still changes, and
scores at equal distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAST = 0.2
"""Share of the steps at the end in which a changed order is worth a warning."""

Curve = NDArray[np.float64]
"""(points, 2): x ascending, and the dev score."""


def mean_curve(
    curves: Sequence[Sequence[Mapping[str, Any]]],
    x: str,
    start: float | None = None,
    paid: float = 0.0,
) -> Curve:
    """Average an arm's curves over its seeds.

    `x`: `step`, `cpu_seconds` or `distance`. `start`: score of the untrained base, put at 0; None
    leaves the curve as it is. `paid`: added to x: what the arm had to pay before its first step.
    """
    shared = min(len(points) for points in curves)
    xs = (
        np.mean([[float(point[x]) for point in points[:shared]] for points in curves], axis=0)
        + paid
    )
    ys = np.mean(
        [[float(point["score"]) for point in points[:shared]] for points in curves], axis=0
    )
    if start is not None:
        xs, ys = np.concatenate([[paid], xs]), np.concatenate([[start], ys])
    return np.column_stack([xs, ys])


def crossings(a: Curve, b: Curve) -> list[float]:
    """Find where one curve passes another.

    Returns values of x, by straight lines between the points, within the range that both cover; a
    common start is no crossing.
    """
    low, high = max(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0])
    xs = np.unique(np.concatenate([a[:, 0], b[:, 0]]))
    xs = xs[(xs >= low) & (xs <= high)]
    if not len(xs):
        return []
    gap = np.interp(xs, a[:, 0], a[:, 1]) - np.interp(xs, b[:, 0], b[:, 1])
    result, last = [], 0
    for i in range(len(xs)):
        if gap[i] == 0:
            continue
        if gap[last] * gap[i] < 0:
            result.append(float(xs[last] + (xs[i] - xs[last]) * gap[last] / (gap[last] - gap[i])))
        last = i
    return result


def all_crossings(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Find the crossings of every two arms. Returns `arms` and `at` for each two that cross."""
    return [
        {"arms": [a, b], "at": at}
        for a, b in combinations(curves, 2)
        if (at := crossings(curves[a], curves[b]))
    ]


def still_changing(curves: Mapping[str, Curve]) -> list[str]:
    """Say which arms changed places in the last fifth of the steps.

    Returns a sentence for each two arms whose order changed; empty if the order stood.
    """
    result = []
    for a, b in combinations(curves, 2):
        end = min(curves[a][-1, 0], curves[b][-1, 0])
        late = [at for at in crossings(curves[a], curves[b]) if at > (1 - LAST) * end]
        if late:
            result.append(f"{a} and {b} changed places at step {late[-1]:,.0f} of {end:,.0f}")
    return result


def at_equal_distance(curves: Mapping[str, Curve]) -> tuple[float, dict[str, float]]:
    """Compare dev scores where every arm has moved the weights as far as the one that moved least.

    A sum of losses has larger gradients than one of them; with AdamW the steps still differ in
    length, so that equal steps are not equal distances.
    """
    reach = min(float(curve[:, 0].max()) for curve in curves.values())
    return reach, {arm: _first_at(curve, reach) for arm, curve in curves.items()}


def _first_at(curve: Curve, x: float) -> float:
    """Return the score where the curve first reaches x; the distance may fall again later."""
    for i in range(1, len(curve)):
        if curve[i, 0] >= x > curve[i - 1, 0]:
            share = (x - curve[i - 1, 0]) / (curve[i, 0] - curve[i - 1, 0])
            return float(curve[i - 1, 1] + share * (curve[i, 1] - curve[i - 1, 1]))
    return float(curve[-1, 1])
