"""Distances between student and teacher vectors of the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from taskdistill.losses.term import ALL_ROWS, LossTerm, normalize
from taskdistill.tasks import Task


def embedding_distance(
    projected: Tensor, targets: Tensor, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cosine distance to the teacher's vectors, `1 - cos` (section 4.2).

    `projected`: Student vectors in the teacher's space, `(N, T)`, any length. `targets`: teacher
    vectors, `(N, T)`, any length. `reduction`: `mean` over the N texts, or the `sum` that the paper
    prints.
    """
    distances = 1 - (normalize(projected) * normalize(targets)).sum(-1)
    return distances.mean() if reduction == "mean" else distances.sum()


def teachers_distance(
    projected: Tensor,
    targets: Tensor,
    widths: Sequence[int],
    *,
    apart: bool,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Cosine distance to several teachers, of which some may lack some texts (ours).

    `projected`: Student vectors in the teachers' spaces side by side, `(N, T1 + T2 + ...)`.
    `apart`: whether each teacher has a cosine of its own, of which the mean is taken; otherwise the
    unit vectors side by side are one target. `reduction`: `mean` over the N texts, or `sum`.
    Returns scalar. Only the parts that a text has count; a text that has none gives 0.
    """
    student_parts, teacher_parts = (
        torch.split(projected, list(widths), dim=1),
        torch.split(targets, list(widths), dim=1),
    )
    known = torch.stack([~part.isnan().any(1) for part in teacher_parts], dim=1)
    unit = [normalize(part.nan_to_num()) for part in teacher_parts]
    if apart:
        cosines = torch.stack(
            [
                (normalize(student) * one).sum(1)
                for student, one in zip(student_parts, unit, strict=True)
            ],
            dim=1,
        )
        cosine = (cosines * known).sum(1) / known.sum(1).clamp_min(1)
    else:
        mask = known.repeat_interleave(torch.tensor(list(widths), device=known.device), dim=1)
        cosine = (normalize(projected * mask) * normalize(torch.cat(unit, dim=1) * mask)).sum(1)
    distances = (1 - cosine) * known.any(1)
    return distances.mean() if reduction == "mean" else distances.sum()


def l2_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of unit vectors, as LEAF (arXiv 2509.12539) distils.

    `student`: `(N, D)`, any length. `teacher`: `(N, D)`, any length. Returns scalar, the mean over
    the N texts of the length of the difference.
    """
    lengths: Tensor = (normalize(student) - normalize(teacher).detach()).norm(dim=1)
    return lengths.mean()


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of vectors as they are, lengths included."""
    return (student - teacher.detach()).square().mean()


def hidden_distance(student: Tensor, teacher: Tensor, layers: list[int] | None = None) -> Tensor:
    """Match unit hidden states of chosen layers (TinyBERT, arXiv 1909.10351).

    It needs a teacher at work beside the student; stored vectors hold no layers. `student`: `(S, N,
    D)`: states of the student's layers. `teacher`: `(L, N, D)`: states of the teacher's layers.
    `layers`: the teacher's layer for each of the student's; None spreads them evenly, the last with
    the last. Returns scalar, the mean squared distance over layers and tokens.
    """
    chosen = (
        layers
        if layers is not None
        else [((i + 1) * len(teacher)) // len(student) - 1 for i in range(len(student))]
    )
    return (normalize(student) - normalize(teacher[chosen]).detach()).square().sum(-1).mean()


TERMS = (
    LossTerm(
        name="distill",
        order=2,
        formula=embedding_distance,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLUSTERING),
        of_base=True,
        rows=ALL_ROWS,
        needs=frozenset({"teacher", "projection"}),
    ),
    LossTerm(
        name="l2",
        order=10,
        formula=l2_distance,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLUSTERING),
        of_base=True,
        rows=ALL_ROWS,
        needs=frozenset({"teacher", "projection"}),
    ),
    LossTerm(
        name="mse",
        order=11,
        formula=squared_error,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLUSTERING),
        of_base=True,
        rows=ALL_ROWS,
        needs=frozenset({"teacher", "projection"}),
    ),
)
