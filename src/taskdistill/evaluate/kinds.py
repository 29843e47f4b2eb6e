"""The kinds of evaluation sets, and which adapter, prompts and metric each one takes (paper, sections 8.1 and 8.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from taskdistill.quantization import Int8Ranges
from taskdistill.tasks import Role, Task


class Kind(StrEnum):
    """What an evaluation set asks of a model; the order is that of reports."""

    RETRIEVAL = "retrieval"
    RERANKING = "reranking"
    STS = "sts"
    PAIR_CLASSIFICATION = "pair-classification"
    BITEXT = "bitext"
    SUMMARISATION = "summarisation"
    CLUSTERING = "clustering"
    CLASSIFICATION = "classification"
    MULTILABEL = "multilabel"


TASK: dict[Kind, Task] = {
    Kind.RETRIEVAL: Task.RETRIEVAL,
    Kind.RERANKING: Task.RETRIEVAL,
    Kind.STS: Task.TEXT_MATCHING,
    Kind.PAIR_CLASSIFICATION: Task.TEXT_MATCHING,
    Kind.BITEXT: Task.TEXT_MATCHING,
    Kind.SUMMARISATION: Task.TEXT_MATCHING,
    Kind.CLUSTERING: Task.CLUSTERING,
    Kind.CLASSIFICATION: Task.CLASSIFICATION,
    Kind.MULTILABEL: Task.CLASSIFICATION,
}
"""Kind to the adapter that encodes it (section 8.1)."""

QUERY_ROLE: dict[Kind, Role] = {
    kind: Role.QUERY if kind in (Kind.RETRIEVAL, Kind.RERANKING) else Role.DOCUMENT for kind in Kind
}
"""Kind to the prompt of its first side; the other side is always a document (section 8.1)."""

METRIC: dict[Kind, str] = {
    Kind.RETRIEVAL: "nDCG@10",
    Kind.RERANKING: "MAP@1000",
    Kind.STS: "Spearman",
    Kind.PAIR_CLASSIFICATION: "AP",
    Kind.BITEXT: "F1",
    Kind.SUMMARISATION: "Spearman",
    Kind.CLUSTERING: "V-measure",
    Kind.CLASSIFICATION: "accuracy",
    Kind.MULTILABEL: "accuracy",
}
"""Kind to its main metric (section 8.2)."""

_RANKING = ("nDCG@10", "nDCG@1", "MAP@1000", "Recall@100", "MRR@10")
METRICS: dict[Kind, tuple[str, ...]] = {
    Kind.RETRIEVAL: _RANKING,
    Kind.RERANKING: _RANKING,
    Kind.STS: ("Spearman",),
    Kind.PAIR_CLASSIFICATION: ("AP", "AP (cosine)", "AP (dot)", "AP (euclidean)", "AP (manhattan)"),
    Kind.BITEXT: ("F1", "accuracy"),
    Kind.SUMMARISATION: ("Spearman",),
    Kind.CLUSTERING: ("V-measure", "V-measure (one clustering)"),
    Kind.CLASSIFICATION: ("accuracy", "macro-F1"),
    Kind.MULTILABEL: ("accuracy", "macro-F1", "LRAP"),
}
"""Kind to every metric that is computed for it."""


class Embedder(Protocol):
    """All that evaluation knows of a model."""

    name: str

    def encode(self, texts: Sequence[str], *, task: str | None, prompt_name: str) -> NDArray[Any]:
        """Return (n, dim) float32 vectors of the texts, in their order."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the weights and of whatever else changes the vectors."""
        ...


@runtime_checkable
class Calibrated(Protocol):
    """A model that brings its int8 ranges along; they are used as they are, for queries and documents."""

    def int8_ranges(self, task: str) -> Mapping[int, Int8Ranges]:
        """Return the stored ranges of a task by dimension, empty where there are none."""
        ...


@runtime_checkable
class Centred(Protocol):
    """A model that takes the mean of a side from its vectors before their signs."""

    def binary_offsets(self, task: str) -> Mapping[str, Mapping[int, NDArray[Any]]]:
        """Return query and document to dimension to the offsets, empty where there are none."""
        ...


def binary_offsets_of(embedder: Embedder, task: str) -> Mapping[str, Mapping[int, NDArray[Any]]]:
    """Return the offsets of binary codes that a model brings along.

    Returns:
        query and document to dimension to offsets, empty for a model that brings none.
    """
    return embedder.binary_offsets(task) if isinstance(embedder, Centred) else {}


def int8_ranges_of(embedder: Embedder, task: str) -> Mapping[int, Int8Ranges]:
    """Return the int8 ranges that a model brings along.

    Returns:
        Dimension to ranges, empty for a model that brings none.
    """
    return embedder.int8_ranges(task) if isinstance(embedder, Calibrated) else {}
