"""All loss terms by name, found in the files of `losses/terms`."""

from __future__ import annotations

from taskdistill.losses.term import LossTerm
from taskdistill.registry import Registry
from taskdistill.tasks import Task
from taskdistill.types import RowKind

FAMILIES: Registry[tuple[LossTerm, ...]] = Registry(
    "taskdistill.losses.terms", "TERMS", noun="family of losses"
)
LOSSES: dict[str, LossTerm] = {
    term.name: term
    for term in sorted(
        (term for family in FAMILIES.values() for term in family), key=lambda term: term.order
    )
}

CONTRASTS = [name for name, term in LOSSES.items() if term.shape is not None]
"""Forms of InfoNCE, by what the vectors are in the forward pass."""
SPREADS = [name for name, term in LOSSES.items() if "both_sides" in term.needs]
"""Regularizers of one side of a batch."""
STAGE1_TERMS = [name for name, term in LOSSES.items() if term.of_base]
TEACHER_TERMS = [name for name in STAGE1_TERMS if name != "distill"]
"""Terms that compare with the teacher's vectors, beside `distill`."""
AMONG_ROWS = {name for name, term in LOSSES.items() if "several_rows" in term.needs}
"""Terms that compare the rows of a batch with each other."""


def task_terms(task: Task, kind: RowKind | None = None) -> list[str]:
    """Name the terms that a task's adapter may have; with `kind`, on those rows."""
    return [
        name
        for name, term in LOSSES.items()
        if task in term.tasks and (kind is None or kind in term.rows)
    ]
