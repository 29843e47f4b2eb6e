"""A projection that starts where the untrained student stands.

A linear map fitted on a sample before step 1 (ours).

Drawn at random, the projection of section 4.1 first pulls a student that already embeds well
towards whatever the draw points at, and what the student knew is lost before the map has learned to
follow it. A fitted map starts near the optimum, so that the first gradients move the student only
where the teacher differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from taskdistill.losses.vectors import normalize

Method = Literal["least_squares", "rotation"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge strengths tried, as shares of the mean eigenvalue of the student's second moment."""
HELD_OUT = 0.1
"""Share of the sample that chooses the ridge and gives the reported cosine."""


@dataclass(frozen=True, kw_only=True)
class FittedProjection:
    """A fitted projection and how well it does on texts that it was not fitted on."""

    weight: Tensor
    """`(T, D)`, float32."""
    bias: Tensor
    """`(T,)`, float32."""
    cosines: dict[int, float]
    """Prefix size to the mean held-out cosine with the teacher's vector; of several teachers, the
    mean over teachers."""
    ridge: float | None
    """Chosen strength; None for a rotation."""


def fit_projection(
    student: Tensor,
    teacher: Tensor,
    dims: Sequence[int],
    *,
    widths: Sequence[int],
    method: Method = "least_squares",
) -> FittedProjection:
    """Fit `W z + b` to a teacher's vectors, for all prefixes of z at once.

    Prefixes share the columns of one W (section 5.5, option 2), so the fit is joint: every text
    counts once for each prefix size. Each teacher of several is fitted on the texts that it has a
    vector for. `student`: vectors of the untrained student, `(n, D)`, any length. `teacher`: the
    teachers' vectors of the same texts side by side, `(n, T)`; a part that is not a number is
    missing. `widths`: size of each teacher's vectors; their sum is T. `method`: `least_squares`
    with a ridge chosen on held-out texts, or `rotation`: orthonormal rows or columns, no bias
    (Procrustes). Returns the map. A teacher that knows fewer than two of the texts gets zero rows.
    """
    parts = [
        _fit_one(student, part, dims, method)
        for part in torch.split(teacher.double(), list(widths), dim=1)
    ]
    cosines = {dim: sum(part.cosines[dim] for part in parts) / len(parts) for dim in dims}
    return FittedProjection(
        weight=torch.cat([part.weight for part in parts]),
        bias=torch.cat([part.bias for part in parts]),
        cosines=cosines,
        ridge=parts[0].ridge,
    )


def _fit_one(
    student: Tensor, teacher: Tensor, dims: Sequence[int], method: Method
) -> FittedProjection:
    known = ~teacher.isnan().any(1)
    inputs, targets = student.double()[known], normalize(teacher[known])
    held = max(1, round(HELD_OUT * len(inputs)))
    if len(inputs) < 2:
        width = teacher.shape[1]
        return FittedProjection(
            weight=torch.zeros(width, student.shape[1]),
            bias=torch.zeros(width),
            cosines=dict.fromkeys(dims, 0.0),
            ridge=None,
        )
    # The sample is drawn from batches in order; every tenth text is held out, so both parts have
    # all sources.
    places = torch.arange(len(inputs))
    out = places % max(2, len(inputs) // held) == 0
    fitted = (
        [(None, *_rotation(inputs[~out], targets[~out], dims))]
        if method == "rotation"
        else [
            (ridge, *result)
            for ridge, result in zip(
                RIDGES, _ridges(inputs[~out], targets[~out], dims), strict=True
            )
        ]
    )
    scored = [
        (ridge, weight, bias, _cosines(inputs[out], targets[out], dims, weight, bias))
        for ridge, weight, bias in fitted
    ]
    ridge, weight, bias, cosines = max(scored, key=lambda each: sum(each[3].values()))
    return FittedProjection(weight=weight.float(), bias=bias.float(), cosines=cosines, ridge=ridge)


def _ridges(inputs: Tensor, targets: Tensor, dims: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Solve the joint normal equations once for each ridge; the bias has none."""
    width, count = inputs.shape[1], len(inputs) * len(dims)
    second, cross = inputs.new_zeros(width, width), inputs.new_zeros(width, targets.shape[1])
    mean_in, mean_out = inputs.new_zeros(width), targets.mean(0)
    for dim in dims:
        prefix = normalize(inputs[:, :dim])
        second[:dim, :dim] += prefix.T @ prefix
        cross[:dim] += prefix.T @ targets
        mean_in[:dim] += prefix.sum(0)
    mean_in /= count
    second = second / count - torch.outer(mean_in, mean_in)
    cross = cross / count - torch.outer(mean_in, mean_out)
    values, vectors = torch.linalg.eigh(second)
    rotated = vectors.T @ cross
    result = []
    for ridge in RIDGES:
        weight = (vectors @ (rotated / (values.clamp_min(0) + ridge * values.mean())[:, None])).T
        result.append((weight, mean_out - weight @ mean_in))
    return result


def _rotation(inputs: Tensor, targets: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    cross = inputs.new_zeros(targets.shape[1], inputs.shape[1])
    for dim in dims:
        cross[:, :dim] += targets.T @ normalize(inputs[:, :dim])
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    return left @ right, inputs.new_zeros(targets.shape[1])


def _cosines(
    inputs: Tensor, targets: Tensor, dims: Sequence[int], weight: Tensor, bias: Tensor
) -> dict[int, float]:
    return {
        dim: float(
            (normalize(normalize(inputs[:, :dim]) @ weight[:, :dim].T + bias) * targets)
            .sum(1)
            .mean()
        )
        for dim in dims
    }
