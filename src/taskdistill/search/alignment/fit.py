"""Fit maps between two spaces on vectors of the same texts: Procrustes, low-rank, residual (Drift-Adapter, arXiv 2509.23471)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.quantization import normalize
from taskdistill.search.alignment.maps import AlignmentMap, Floats

KINDS = ("procrustes", "low-rank", "residual")
HELD_OUT = 0.1
"""Share of the sample on which rank, ridge and kind are chosen."""
SMALLEST = 100
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Tried, as a share of the mean variance times rows."""
RANKS = (32, 64, 128, 256, 512)
HIDDEN, EPOCHS, BATCH, RATE = 256, 30, 128, 1e-3


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map, its mean cosine to the old vectors on held-out texts, and what was chosen there."""

    map: AlignmentMap
    cosine: float
    chosen: str


def fit_maps(
    new: Floats, old: Floats, *, kinds: tuple[str, ...] = KINDS, seed: int = 17
) -> list[FittedMap]:
    """Fit maps and score them on held-out texts.

    Args:
        new: Unit rows of the new model, `(n, d)`.
        old: Unit rows of the old one, of the same texts, `(n, e)`.
        kinds: Which maps.
        seed: Decides which texts are held out.

    Returns:
        A map a kind, best first.

    Raises:
        BadInput: If there are too few texts.
    """
    if len(new) < SMALLEST:
        raise BadInput(
            f"{len(new)} texts are too few to fit a map; give {SMALLEST} or more, some thousand are usual"
        )
    order = np.random.default_rng(seed).permutation(len(new))
    count = max(10, round(HELD_OUT * len(new)))
    held, used = order[:count], order[count:]
    found = [_FITS[kind](new[used], old[used], new[held], old[held], seed) for kind in kinds]
    return sorted(found, key=lambda each: -each.cosine)


def held_out_cosine(mapping: AlignmentMap, new: Floats, old: Floats) -> float:
    """Return the mean cosine of mapped vectors with the old ones.

    Args:
        mapping: The map.
        new: `(n, d)`.
        old: `(n, e)`.

    Returns:
        -1 to 1.
    """
    return float((mapping(new) * normalize(old)).sum(1).mean())


def procrustes(new: Floats, old: Floats) -> AlignmentMap:
    """Fit the rotation that brings the new vectors nearest to the old ones; with other sizes, its rows or columns are orthonormal.

    Args:
        new: `(n, d)`.
        old: `(n, e)`.

    Returns:
        The map, without bias.
    """
    u, _, vt = np.linalg.svd(new.T.astype(np.float64) @ old, full_matrices=False)
    return _linear("procrustes", u @ vt, np.zeros(old.shape[1]))


def low_rank(new: Floats, old: Floats, rank: int, ridge: float) -> AlignmentMap:
    """Fit an affine map of limited rank: ridge regression, cut to the directions of its predictions that vary most.

    Args:
        new: `(n, d)`.
        old: `(n, e)`.
        rank: At most this rank.
        ridge: Added to the diagonal, as a share of the mean variance times rows.

    Returns:
        The map.
    """
    matrix, mean_new, mean_old = _ridge(new, old, ridge)
    _, _, vt = np.linalg.svd((new - mean_new) @ matrix, full_matrices=False)
    cut = matrix @ vt[:rank].T @ vt[:rank]
    return _linear("low-rank", cut, mean_old - mean_new @ cut)


def residual(new: Floats, old: Floats, start: AlignmentMap, seed: int) -> AlignmentMap:
    """Train a small network on what a linear map leaves over, from zero, so that it begins as that map.

    Args:
        new: `(n, d)`.
        old: Unit rows, `(n, e)`.
        start: The linear map.
        seed: Of first weights and order.

    Returns:
        The map.
    """
    rng = np.random.default_rng(seed)
    base = new @ start.arrays["matrix"] + start.arrays["bias"]
    scale = np.linalg.norm(
        base, axis=1
    ).mean()  # the target has the mean length of what it is added to: only directions count
    wanted = normalize(old) * scale - base
    p = {
        "inner": rng.standard_normal((new.shape[1], HIDDEN)) / np.sqrt(new.shape[1]) * 4,
        "inner_bias": np.zeros(HIDDEN),
        "outer": np.zeros((HIDDEN, old.shape[1])),
        "outer_bias": np.zeros(old.shape[1]),
    }
    first, second = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    step, total = 0, EPOCHS * -(-len(new) // BATCH)
    for _ in range(EPOCHS):
        order = rng.permutation(len(new))
        for at in range(0, len(new), BATCH):
            rows = order[at : at + BATCH]
            step += 1
            for name, gradient in _gradients(p, new[rows], wanted[rows]).items():
                first[name] += 0.1 * (gradient - first[name])
                second[name] += 0.001 * (gradient**2 - second[name])
                size = RATE * (1 - step / total) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                p[name] -= size * first[name] / (np.sqrt(second[name]) + 1e-9)
    arrays = {**start.arrays, **{name: value.astype(np.float32) for name, value in p.items()}}
    return AlignmentMap("residual", arrays)


def _gradients(
    p: dict[str, NDArray[np.float64]], x: Floats, wanted: NDArray[np.floating]
) -> dict[str, NDArray[np.float64]]:
    """Gradients of the mean squared length of the error of the network."""
    before = x @ p["inner"] + p["inner_bias"]
    hidden = np.maximum(before, 0)
    error = 2 * (hidden @ p["outer"] + p["outer_bias"] - wanted) / len(x)
    back = (error @ p["outer"].T) * (before > 0)
    return {
        "inner": x.T @ back,
        "inner_bias": back.sum(0),
        "outer": hidden.T @ error,
        "outer_bias": error.sum(0),
    }


def _ridge(
    new: Floats, old: Floats, ridge: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    mean_new, mean_old = new.mean(0, dtype=np.float64), old.mean(0, dtype=np.float64)
    x, y = new - mean_new, old - mean_old
    gram = x.T @ x
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram)
    return np.linalg.solve(gram, x.T @ y), mean_new, mean_old


def _linear(kind: str, matrix: NDArray[np.float64], bias: NDArray[np.float64]) -> AlignmentMap:
    return AlignmentMap(
        kind, {"matrix": matrix.astype(np.float32), "bias": bias.astype(np.float32)}
    )


def _fit_procrustes(
    new: Floats, old: Floats, held_new: Floats, held_old: Floats, seed: int
) -> FittedMap:
    made = procrustes(new, old)
    return FittedMap(made, held_out_cosine(made, held_new, held_old), "")


def _fit_low_rank(
    new: Floats, old: Floats, held_new: Floats, held_old: Floats, seed: int
) -> FittedMap:
    most = min(new.shape[1], old.shape[1])
    tried = []
    for ridge in RIDGES:
        for rank in sorted({min(rank, most) for rank in RANKS} | {most}):
            made = low_rank(new, old, rank, ridge)
            tried.append(
                FittedMap(
                    made, held_out_cosine(made, held_new, held_old), f"rank {rank}, ridge {ridge:g}"
                )
            )
    return max(tried, key=lambda each: each.cosine)


def _fit_residual(
    new: Floats, old: Floats, held_new: Floats, held_old: Floats, seed: int
) -> FittedMap:
    linear = _fit_low_rank(new, old, held_new, held_old, seed)
    made = residual(new, old, linear.map, seed)
    return FittedMap(
        made, held_out_cosine(made, held_new, held_old), f"on {linear.chosen}, {HIDDEN} hidden"
    )


_FITS: dict[str, Callable[[Floats, Floats, Floats, Floats, int], FittedMap]] = {
    "procrustes": _fit_procrustes,
    "low-rank": _fit_low_rank,
    "residual": _fit_residual,
}
