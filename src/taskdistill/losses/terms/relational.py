"""Distances among texts, held to those of the base without adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from taskdistill.losses.term import LossTerm, PhaseSetting, TermConfig
from taskdistill.losses.vectors import normalize
from taskdistill.tasks import Task
from taskdistill.types import RowKind

if TYPE_CHECKING:
    from torch import Tensor

    from taskdistill.losses.inputs import LossInputs


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


class RelationalConfig(TermConfig):
    """A key of the phase."""

    in_menu: ClassVar[bool] = False
    relational_mean_gradient: bool = Field(
        default=True, description="relational: let the gradient flow through the mean distance"
    )


def _compute(config: RelationalConfig, inputs: LossInputs, width: int) -> Tensor:
    student, base = inputs.with_base
    return relational_distance(
        normalize(student[:, :width]), normalize(base[:, :width]), config.relational_mean_gradient
    )


ROWS = (RowKind.PAIRS, RowKind.SCORED, RowKind.LABELLED)
TERMS = (
    LossTerm(
        name="relational",
        order=8,
        compute=_compute,
        config=RelationalConfig,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING, Task.CLASSIFICATION),
        rows={"adapter": ROWS},
        needs=frozenset({"base"}),
        phase_settings={"relational_mean_gradient": PhaseSetting(rows=ROWS, needs_weight=True)},
    ),
)
