"""Two encoders, one space: documents embedded by the teacher, queries by the student through its projection."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.search.build import build_index
from taskdistill.search.index import Index
from taskdistill.search.measure import CUTOFF, DevSet, ndcg
from taskdistill.search.passages import Passages
from taskdistill.search.protocol import SearchEncoder
from taskdistill.search.query import query_vectors, rank_queries
from taskdistill.vocabulary import Precision, Task

_TIMED = 64


@dataclass(frozen=True)
class Tier:
    """One way to pair encoders.

    Attributes:
        queries: Model that embeds queries.
        documents: Model that embeds documents.
        ndcg: Mean nDCG@10, 0 to 1.
        retention: nDCG@10 as a share of teacher/teacher; 0 where that is 0.
        query_milliseconds: To embed one query, alone; the median of up to 64.
        search_milliseconds: To search for one query, without embedding it.
        document_milliseconds: To embed one passage, in batches.
    """

    queries: str
    documents: str
    ndcg: float
    retention: float
    query_milliseconds: float
    search_milliseconds: float
    document_milliseconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def check_one_space(projected: SearchEncoder, teacher: SearchEncoder) -> None:
    """Refuse to query the teacher's documents with vectors of another space.

    Args:
        projected: The student through its projection.
        teacher: The teacher.

    Raises:
        BadInput: Naming both space ids, or both dimensions.
    """
    if projected.space_id != teacher.space_id:
        raise BadInput(
            f"{projected.name} has space_id {projected.space_id!r}, but {teacher.name} has {teacher.space_id!r}; "
            "use the projection that was trained for this teacher"
        )
    if projected.embedding_dim != teacher.embedding_dim:
        raise BadInput(f"{projected.name} has dimension {projected.embedding_dim}, but {teacher.name} has {teacher.embedding_dim}")


def measure_tiers(
    student: SearchEncoder,
    projected: SearchEncoder,
    teacher: SearchEncoder,
    dev: DevSet,
    *,
    task: str | None = Task.RETRIEVAL.value,
    rescore: str = Precision.FLOAT32.value,
    passages: Passages | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tier]:
    """Compare student/student, student/teacher and teacher/teacher (queries/documents) on one dev set.

    Args:
        student: In its own space.
        projected: The same model through its projection into the teacher's space.
        teacher: The teacher.
        dev: Documents, queries and qrels.
        task: The student's task where it searches alone; the teacher's space holds base vectors.
        rescore: Precision of the vectors kept; every candidate is rescored.
        passages: How documents are cut.
        progress: Told indexes built, of two.

    Returns:
        The three tiers in that order.

    Raises:
        BadInput: If the projected student and the teacher are of different spaces, or the dev set cannot be judged.
    """
    check_one_space(projected, teacher)
    queries = dev.judged()
    texts = [dev.queries[each] for each in queries]
    found: list[tuple[str, str, float, float, float, float]] = []
    with tempfile.TemporaryDirectory(prefix="taskdistill-tiers-") as folder:
        for at, (documents, askers) in enumerate([(student, [student]), (teacher, [projected, teacher])]):
            start = time.perf_counter()
            own = task if documents is student else None
            index, report = build_index(documents, dev.documents, Path(folder) / str(at), task=own, rescore=rescore, passages=passages)
            document_ms = 1000 * (time.perf_counter() - start) / report.passages
            for asker in askers:
                query_ms = _query_milliseconds(index, asker, texts[:_TIMED])
                vectors = query_vectors(index.settings, asker, texts)
                start = time.perf_counter()
                ranked = rank_queries(
                    index.snapshot,
                    vectors,
                    CUTOFF if passages is None else 5 * CUTOFF,
                    oversample=None if rescore == "none" else index.snapshot.live_count,
                    allowed=index.snapshot.allowed(None),
                )
                search_ms = 1000 * (time.perf_counter() - start) / len(texts)
                score = float(ndcg(index.snapshot, ranked, queries, dev.qrels).mean())
                found.append((asker.name, documents.name, score, query_ms, search_ms, document_ms))
            if progress is not None:
                progress(at + 1, 2)
    best = found[-1][2]
    return [
        Tier(asker, documents, score, score / best if best else 0.0, query_ms, search_ms, document_ms)
        for asker, documents, score, query_ms, search_ms, document_ms in found
    ]


def _query_milliseconds(index: Index, encoder: SearchEncoder, texts: Sequence[str]) -> float:
    query_vectors(index.settings, encoder, texts[:1])
    times = []
    for text in texts:
        start = time.perf_counter()
        query_vectors(index.settings, encoder, [text])
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
