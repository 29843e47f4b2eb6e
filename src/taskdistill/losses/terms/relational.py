"""Distances among texts, held to those of the base without adapter."""

from __future__ import annotations

from torch import Tensor

from taskdistill.losses.term import LossTerm
from taskdistill.tasks import Task
from taskdistill.types import RowKind


def relational_distance(student: Tensor, reference: Tensor, mean_gradient: bool = True) -> Tensor:
    """Match the distances among texts, each matrix divided by its own mean (section 5.4).

    `student`: unit rows with the adapter on, `(N, D)`. `reference`: unit rows of the same texts
    without adapter, `(N, D')`; no gradient flows into them. `mean_gradient`: whether the gradient
    flows through the mean of the student's matrix; the paper does not say. Returns scalar, the mean
    over all N x N entries of the squared difference. The means include the zero diagonal.
    """
    distances = 1 - student @ student.T
    targets = (1 - reference @ reference.T).detach()
    scale = distances.mean() if mean_gradient else distances.mean().detach()
    return (distances / scale - targets / targets.mean()).square().mean()


TERMS = (
    LossTerm(
        name="relational",
        order=8,
        formula=relational_distance,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLASSIFICATION),
        rows=(RowKind.PAIRS, RowKind.SCORED, RowKind.LABELLED),
        needs=frozenset({"base"}),
    ),
)
