"""The training tasks and the two roles of a text."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """A task selects an adapter and an objective (paper, section 5). The order is that of `task_names`."""

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

QUERY_SIDE: dict[Task, Role] = {
    Task.RETRIEVAL: Role.QUERY,
    Task.TEXT_MATCHING: Role.DOCUMENT,
    Task.CLUSTERING: Role.DOCUMENT,
    Task.CLASSIFICATION: Role.DOCUMENT,
}
"""Which prompt the first text of a pair takes; the other side is always a document (section 3.3)."""
