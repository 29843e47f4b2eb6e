"""The training tasks, in one table, and the two roles of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from taskdistill.types import RowKind


class Task(StrEnum):
    """A task selects an adapter and an objective.

    Paper, section 5. The order is that of `task_names`.
    """

    RETRIEVAL = "retrieval"
    TEXT_MATCHING = "text-matching"
    CLUSTERING = "clustering"
    CLASSIFICATION = "classification"


class Role(StrEnum):
    """The role of a text decides its prompt."""

    QUERY = "query"
    DOCUMENT = "document"


PROMPTS: dict[str, str] = {Role.QUERY.value: "Query: ", Role.DOCUMENT.value: "Document: "}
"""The paper's two prompts (section 3.3); a model folder may hold others."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What distinguishes a training task from the others."""

    row_kinds: tuple[RowKind, ...]
    """Rows that its objective can use (section 5)."""
    losses: Mapping[str, float]
    """The paper's loss weights (Table A1); a recipe may set others and add terms."""
    query_role: Role = Role.DOCUMENT
    """Prompt of the first text of a pair; the other is always a document (section 3.3)."""
    topic: bool = False
    """Whether the teacher reads every text with the instruction of topics instead of that of its
    role (section 5.3)."""
    learns_temperature: bool = False
    """Whether the temperature of InfoNCE is learned where the recipe does not say (section 5.1)."""
    other_side: str = "-"
    """Prompt of the second text in the model card; a dash where texts have no other side."""
    use: str
    """What the adapter is for, as the model card says it."""


TASKS: dict[Task, TaskSpec] = {
    Task.RETRIEVAL: TaskSpec(
        row_kinds=(RowKind.PAIRS,),
        losses={"info_nce": 1.0, "distill": 2.0, "gor": 1.0},
        query_role=Role.QUERY,
        learns_temperature=True,
        other_side="document",
        use="search, reranking",
    ),
    Task.TEXT_MATCHING: TaskSpec(
        row_kinds=(RowKind.PAIRS, RowKind.SCORED),
        losses={"cosent": 1.0, "info_nce": 1.0, "distill": 2.0},
        other_side="document",
        use="similarity, paraphrase, translations",
    ),
    Task.CLUSTERING: TaskSpec(
        row_kinds=(RowKind.PAIRS, RowKind.TEXTS, RowKind.LABELLED),
        losses={"distill": 1.0},
        topic=True,
        use="grouping by topic",
    ),
    Task.CLASSIFICATION: TaskSpec(
        row_kinds=(RowKind.LABELLED,),
        losses={"info_nce": 1.0, "relational": 20.0},
        use="features for a classifier",
    ),
}
