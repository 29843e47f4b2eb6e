"""The words everything shares: tasks, roles, poolings and precisions, each with one spelling."""

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


class Pooling(StrEnum):
    """How per-token hidden states become one vector."""

    LAST = "last"
    MEAN = "mean"
    CLS = "cls"


class Precision(StrEnum):
    """How vectors are stored: float32, float16, int8 codes with stored ranges, or packed sign bits."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    BINARY = "binary"


class Backend(StrEnum):
    """What runs a model: torch in float32, torch in eight bits, two other engines, or the fastest by measurement."""

    TORCH = "torch"
    INT8 = "int8"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    AUTO = "auto"


class RowKind(StrEnum):
    """The four kinds of training rows."""

    PAIRS = "pairs"
    SCORED = "scored"
    LABELLED = "labelled"
    TEXTS = "texts"


class TeacherReads(StrEnum):
    """Which texts of a row the teacher reads; the student learns every text of the row in any case."""

    BOTH = "both"
    QUERY = "query"
    POSITIVE = "positive"
    NEITHER = "neither"


PROMPTS: dict[str, str] = {Role.QUERY.value: "Query: ", Role.DOCUMENT.value: "Document: "}
"""The paper's two prompts (section 3.3); a model folder may hold others."""

QUERY_SIDE: dict[Task, Role] = {
    Task.RETRIEVAL: Role.QUERY,
    Task.TEXT_MATCHING: Role.DOCUMENT,
    Task.CLUSTERING: Role.DOCUMENT,
    Task.CLASSIFICATION: Role.DOCUMENT,
}
"""Which prompt the first text of a pair takes; the other side is always a document (section 3.3)."""

MANIFEST = "taskdistill.json"
"""The manifest of every folder this package writes: kind, format version, hashes of files and inputs."""
