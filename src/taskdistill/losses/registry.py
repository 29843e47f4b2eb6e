"""All loss terms by name, found in the files of `losses/terms`."""

from __future__ import annotations

from collections.abc import Collection

from taskdistill.losses.term import AnyTerm, PhaseKind
from taskdistill.registry import Registry
from taskdistill.tasks import Task
from taskdistill.types import RowKind

FAMILIES: Registry[tuple[AnyTerm, ...]] = Registry(
    "taskdistill.losses.terms", "TERMS", noun="family of losses"
)
_EVERY = sorted(
    (term for family in FAMILIES.values() for term in family), key=lambda term: term.order
)
LOSSES: dict[str, AnyTerm] = {term.name: term for term in _EVERY if not term.refusal}
REFUSALS = {term.name: term.refusal for term in _EVERY if term.refusal}
"""Losses that a recipe cannot have, with the reason."""


def phase_terms(phase: PhaseKind, names: Collection[str] | None = None) -> list[AnyTerm]:
    """List the terms that a phase may have, or those of them that are named, as they are summed.

    The order of the sum decides its last bits: contrasts come before what has no mask, and in the
    static phase terms of every row before those of a few.
    """
    terms = [
        term
        for term in LOSSES.values()
        if phase in term.rows and (names is None or term.name in names)
    ]
    if phase == "static":
        return sorted(terms, key=lambda term: -len(term.rows[phase]))
    return sorted(terms, key=lambda term: "candidates" not in term.needs)


def task_terms(task: Task, kind: RowKind | None = None) -> list[str]:
    """Name the terms that a task's adapter may have; with `kind`, on those rows."""
    return [
        name
        for name, term in LOSSES.items()
        if task in term.tasks and (kind is None or term.takes("adapter", kind))
    ]


def needing(need: str, names: Collection[str]) -> list[str]:
    """List the named terms that need something, in the order of terms."""
    return [name for name, term in LOSSES.items() if name in names and need in term.needs]
