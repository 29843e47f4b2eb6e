"""What a loss term is: its formula, its settings, and where it may be taken.

Shape letters of all terms: B rows of the batch, M candidate documents, N texts, D embedding size, T
teacher size. Every formula is a mean over its items (paper, section 11.5) unless it says otherwise;
no gradient flows into a teacher's side; none knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from taskdistill.config import ConfigModel
from taskdistill.tasks import TASKS, Task
from taskdistill.types import RowKind

if TYPE_CHECKING:
    from torch import Tensor

    from taskdistill.losses.inputs import LossInputs

Need = Literal[
    "teacher", "projection", "base", "scores", "candidates", "several_rows", "several_texts"
]
"""teacher: its vectors; projection: they are compared in its space; base: the base's vectors
without adapter; scores: gold scores; candidates: the documents of a batch against its queries, with
a mask and a temperature; several_rows: it compares the rows of a batch with each other;
several_texts: it tells the compared texts apart."""

PhaseKind = Literal["static", "base", "adapter"]
"""What a phase trains: the static student, the whole student (stage 1 and long), an adapter."""

EVERY_ROW = tuple(RowKind)
UNSCORED = (RowKind.PAIRS, RowKind.TEXTS, RowKind.LABELLED)
"""Rows without gold scores; an adapter's scored rows carry no distillation (paper, section 5.2)."""
PAIR_ROWS = (RowKind.PAIRS,)


class TermConfig(ConfigModel):
    """Settings of a term: keys of a recipe."""

    in_menu: ClassVar[bool] = True
    """Whether they are keys of a phase's `menu`; those of the paper's terms stand in the phase."""


C = TypeVar("C", bound=TermConfig)


@dataclass(frozen=True, kw_only=True)
class PhaseSetting:
    """A key of an adapter that acts only through some terms."""

    rows: tuple[RowKind, ...]
    """Rows on which it acts."""
    needs_weight: bool = False
    """Whether it is refused where its term has no weight; the others are let through."""


@dataclass(frozen=True, kw_only=True)
class LossTerm(Generic[C]):
    """One named summand of a phase's loss; the docstring of its formula is its documentation."""

    name: str
    compute: Callable[[C, LossInputs, int], Tensor] | None = None
    """From settings, batch and the width of a prefix to a scalar; None if it is refused."""
    config: type[C]
    order: int = 100
    """Place among the terms in messages and in the sum, where it decides the last bits."""
    tasks: tuple[Task, ...] = ()
    """Adapters that may have it."""
    rows: Mapping[PhaseKind, tuple[RowKind, ...]] = field(default_factory=dict)
    """Phases that may have it, with the rows that it is taken of there."""
    needs: frozenset[Need] = frozenset()
    by_teacher: bool = False
    """Whether it is taken of each of several teachers by itself, and averaged."""
    additive: Callable[[C], Literal["mean", "sum"]] | None = None
    """How it adds up over the compared texts, where it does: it is then carried back in parts."""
    learns_temperature: bool = False
    """Whether the temperature can be learned with it."""
    phase_settings: Mapping[str, PhaseSetting] = field(default_factory=dict)
    """Keys of an adapter that act through this term and its like alone."""
    refusal: str = ""
    """Why no recipe can have it."""

    def takes(self, phase: PhaseKind, kind: RowKind) -> bool:
        """Say whether it is taken of such rows in such a phase."""
        return kind in self.rows.get(phase, ())

    def tasks_of(self, key: str) -> set[Task]:
        """List the tasks in which one of its `phase_settings` acts."""
        acts = self.phase_settings[key].rows if key in self.phase_settings else ()
        return {task for task in self.tasks if set(acts) & set(TASKS[task].row_kinds)}


AnyTerm = LossTerm[Any]
"""A term whatever its settings are: terms of one list have different ones."""
