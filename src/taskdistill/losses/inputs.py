"""What a loss term is taken of: the tensors of one batch, without a model.

Shapes: N distinct texts of the batch, B rows, M hard negatives, n texts compared with the teacher,
D student width, T teacher width, k prefix width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from taskdistill.losses.vectors import normalize
from taskdistill.types import RowKind


@dataclass(kw_only=True)
class LossInputs:
    """One batch as a term sees it; index tensors point into the rows of `vectors`.

    Each term gets a copy of its own: what is cached here is gathered once a term, so that the
    gradients of its prefixes meet before they are scattered to the texts, in a fixed order.
    """

    vectors: Tensor
    """Pooled, not normalized, `(N, D)`."""
    kind: RowKind
    step: int
    query_idx: Tensor
    """Queries, anchors, first texts or lone texts, `(B,)`."""
    positive_idx: Tensor | None = None
    """Positives or second texts, `(B,)`; None for lone texts."""
    negative_idx: Tensor | None = None
    """Hard negatives, `(M,)`."""
    negative_owner: Tensor | None = None
    """Row of each hard negative, `(M,)`."""
    scores: Tensor | None = None
    """Gold scores, `(B,)`."""
    excluded: Tensor | None = None
    """Candidates that are no negatives of a row, `(B, B + M)` of bool; None for none."""
    temperature: Tensor | float = 1.0
    """Of a contrast; a tensor where it is learned."""
    compared_idx: Tensor | None = None
    """Texts that are compared with the teacher, `(n,)`."""
    read_idx: Tensor | None = None
    """Text that the teacher read for each of them: the text itself, or its translation, `(n,)`."""
    teacher: Tensor | None = None
    """The teacher's vectors of them, `(n, T)`; of several teachers side by side, NaN where one has
    none."""
    known: Tensor | None = None
    """Of one teacher among several: the texts that it has vectors for, `(n,)` of bool."""
    teacher_widths: tuple[int, ...] = ()
    """Size of each teacher's vectors, where there are several."""
    teachers_apart: bool = False
    """Whether each of several teachers has a cosine of its own."""
    base: Tensor | None = None
    """Vectors of the base without adapter, `(N, D)`, no gradient."""
    project: Callable[[Tensor], Tensor] | None = None
    """Student prefixes `(n, k)` into the teacher's space `(n, T)`; None where it is the student's
    own."""

    def by_teacher(self) -> list[LossInputs]:
        """Split into one copy for each teacher that knows texts, with its unit vectors of them."""
        assert self.teacher is not None
        if not self.teacher_widths:
            return [replace(self, teacher=normalize(self.teacher))]
        ends = accumulate(self.teacher_widths)
        copies = [
            self._of_teacher(slice(end - width, end))
            for end, width in zip(ends, self.teacher_widths, strict=True)
        ]
        # With two texts there is no relation to compare but one; a teacher that knows fewer says
        # nothing about this batch.
        return [copy for copy in copies if copy.teacher is not None and len(copy.teacher) > 2]

    def _of_teacher(self, columns: slice) -> LossInputs:
        assert self.teacher is not None and self.read_idx is not None
        vectors, project = self.teacher[:, columns], self.project
        known = ~vectors.isnan().any(1)

        def into(prefixes: Tensor) -> Tensor:
            assert project is not None
            return project(prefixes)[:, columns]

        return replace(
            self,
            known=known,
            read_idx=self.read_idx[known],
            teacher=normalize(vectors[known]),
            teacher_widths=(),
            project=None if project is None else into,
        )

    @cached_property
    def compared(self) -> Tensor:
        """Pooled vectors of the texts that are compared with the teacher, `(n, D)`."""
        chosen = self.vectors[self.compared_idx]
        return chosen if self.known is None else chosen[self.known]

    @cached_property
    def candidate_idx(self) -> Tensor:
        """Documents of the batch: positives, then hard negatives, `(B + M,)`."""
        assert self.positive_idx is not None
        if self.negative_idx is None:
            return self.positive_idx
        return torch.cat([self.positive_idx, self.negative_idx])

    @cached_property
    def with_base(self) -> tuple[Tensor, Tensor]:
        """Pooled vectors of texts, and the base's of the same: each distinct text once, but of
        labeled rows as often as it stands in the batch (section 5.4), `(N, D)` both.
        """
        assert self.base is not None
        if self.kind is not RowKind.LABELLED:
            return self.vectors, self.base
        places = torch.cat([self.query_idx, self.candidate_idx])
        return self.vectors[places], self.base[places]

    @property
    def same_read(self) -> Tensor:
        """Pairs of compared texts for which the teacher read the same one, `(n, n)` of bool."""
        assert self.read_idx is not None
        return self.read_idx[:, None] == self.read_idx[None, :]

    def unit(self, idx: Tensor, width: int) -> Tensor:
        """Return unit rows of the first `width` numbers of some texts."""
        return normalize(self.vectors[idx, :width])

    def unit_compared(self, width: int) -> tuple[Tensor, Tensor]:
        """Return unit student prefixes `(n, k)` and the teacher's vectors, each in its space."""
        assert self.teacher is not None
        return normalize(self.compared[:, :width]), self.teacher

    def in_one_space(self, width: int) -> tuple[Tensor, Tensor]:
        """Return student and teacher in one space: the student projected, or, without a
        projection, the teacher cut to the student's prefix.
        """
        student, teacher = self.unit_compared(width)
        if self.project is None:
            return student, teacher[:, :width]
        return self.project(student), teacher
