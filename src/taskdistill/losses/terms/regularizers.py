"""Regularizers of one side of a batch, without a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from taskdistill.losses.term import PAIR_ROWS, LossTerm, TermConfig
from taskdistill.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from taskdistill.losses.inputs import LossInputs


def gor(vectors: Tensor) -> Tensor:
    """Global orthogonal regulariser (GOR): mean squared similarity of different rows (section 5.1).

    Only the second moment of the original spread-out regulariser: no squared mean, no hinge at 1/D.
    `vectors`: unit rows, `(B, D)`, B at least 2. Returns scalar between 0 and 1.
    """
    count = vectors.shape[0]
    squares = (vectors @ vectors.T).square()
    return (squares.sum() - squares.diagonal().sum()) / (count * (count - 1))


def gor_hinged(vectors: Tensor) -> Tensor:
    """Spread-out regularizer with mean and hinge (arXiv 1708.06320); `gor` has neither.

    `vectors`: unit rows, `(B, D)`, B at least 2. Returns scalar: the squared mean of the
    similarities of different rows, plus by how much the mean of their squares exceeds 1 / D, the
    value of random directions.
    """
    import torch.nn.functional as F

    count, width = vectors.shape
    similarities = vectors @ vectors.T
    others = count * (count - 1)
    mean = (similarities.sum() - similarities.diagonal().sum()) / others
    return mean.square() + F.relu(gor(vectors) - 1 / width)


def mean_vector_penalty(vectors: Tensor) -> Tensor:
    """Squared length of the mean of unit rows: how far they lie to one side (ours).

    Sign bits tell texts apart only where a coordinate is above zero for some and below for others.
    Queries and documents have means of their own, so this is taken of each side. `vectors`: unit
    rows, `(B, D)`. Returns scalar between 0 and 1; for random directions 1 / B.
    """
    return vectors.mean(0).square().sum()


def _spread(name: str, order: int, formula: Callable[[Tensor], Tensor]) -> LossTerm[TermConfig]:
    def both_sides(config: TermConfig, inputs: LossInputs, width: int) -> Tensor:
        assert inputs.positive_idx is not None
        first, second = (
            formula(inputs.unit(each, width)) for each in (inputs.query_idx, inputs.positive_idx)
        )
        return first + second

    return LossTerm(
        name=name,
        order=order,
        compute=both_sides,
        config=TermConfig,
        tasks=(Task.RETRIEVAL, Task.TEXT_MATCHING),
        rows={"adapter": PAIR_ROWS},
        needs=frozenset({"several_rows"}),
    )


TERMS = (
    _spread("gor", 3, gor),
    _spread("gor_hinged", 4, gor_hinged),
    _spread("centre", 5, mean_vector_penalty),
)
