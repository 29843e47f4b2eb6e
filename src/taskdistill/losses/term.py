"""What a loss term is, and what all of them share: unit rows and prefixes.

Shape letters: B rows of the batch, M candidate documents, N texts, D embedding size, T teacher
size. Every formula is a mean over its items (paper, section 11.5) unless it says otherwise; no
gradient flows into a teacher's side; none knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from taskdistill.tasks import Task
from taskdistill.types import RowKind

Need = Literal["teacher", "projection", "base", "several_rows", "both_sides"]
"""teacher: its vectors; projection: they are compared in its space; base: the base's vectors
without adapter; several_rows: it compares the rows of a batch with each other; both_sides: it is
taken of queries and of documents, and summed."""

ALL_ROWS = (RowKind.PAIRS, RowKind.TEXTS, RowKind.LABELLED)
"""Rows without gold scores; an adapter's scored rows carry no distillation (paper, section 5.2)."""
PAIR_ROWS = (RowKind.PAIRS,)


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One named summand of a phase's loss; the formula's docstring is its documentation."""

    name: str
    formula: Callable[..., Tensor]
    order: int = 100
    """Place among the terms in messages; terms against the teacher are summed in this order too,
    which decides the last bits."""
    tasks: tuple[Task, ...]
    """Adapters that may have it."""
    of_base: bool = False
    """Whether stage 1 and the long phase may have it."""
    rows: tuple[RowKind, ...]
    """Rows of an adapter's batches that it is taken of."""
    needs: frozenset[Need] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    """Argument of the formula to the key of `menu` that it is read from."""
    draws: bool = False
    """Whether the formula draws a sample, from a `generator`."""
    shape: Callable[[Tensor], Tensor] | None = None
    """Of a contrast: what the vectors are in the forward pass."""


def normalize(vectors: Tensor) -> Tensor:
    """Scale rows to unit length; a zero row stays zero."""
    return F.normalize(vectors, dim=-1)


def over_prefixes(loss: Callable[[int], Tensor], dims: Sequence[int]) -> Tensor:
    """Matryoshka: the equal-weight mean of a loss over prefix sizes (section 5.5, option 1)."""
    return torch.stack([loss(dim) for dim in dims]).mean()
