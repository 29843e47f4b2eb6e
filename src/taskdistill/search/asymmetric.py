"""Tiers of one space: what each pair of document and query encoder is worth and costs."""

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
from taskdistill.search.devset import DevSet, ndcg_scores, passage_depth
from taskdistill.search.index import Index
from taskdistill.search.passages import PassageSettings
from taskdistill.search.query import SearchOptions, query_vectors, rank_queries
from taskdistill.search.settings import SearchEncoder, StorageOptions, former_ids, same_space
from taskdistill.stats.intervals import Estimate, mean_interval, share_interval
from taskdistill.types import Precision

TIMED_QUERIES = 64


@dataclass(frozen=True, kw_only=True)
class AsymmetricPair:
    """One pair of encoders."""

    queries: str
    """Model that embeds queries."""
    documents: str
    """Model that embeds documents."""
    space: str
    """Space id of both."""
    task: str | None
    """Adapter of both; None for base vectors."""
    ndcg: Estimate
    """Mean nDCG@10, 0 to 1, with its interval over queries."""
    retention: Estimate
    """nDCG@10 as a share of teacher/teacher on the same resamples."""
    query_milliseconds: float
    """To embed one query, alone; the median of up to 64."""
    search_milliseconds: float
    """To search for one query, without embedding it."""
    document_milliseconds: float
    """To embed one passage, in batches."""

    @property
    def end_to_end_milliseconds(self) -> float:
        """From a query's text to its documents."""
        return self.query_milliseconds + self.search_milliseconds

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self) | {"end_to_end_milliseconds": self.end_to_end_milliseconds}


def check_one_space(models: Sequence[SearchEncoder], teacher: SearchEncoder) -> None:
    """Refuse to compare vectors of different spaces.

    `models`: students through their projections.
    """
    for model in models:
        if not same_space(model.space_id, former_ids(model), teacher.space_id, former_ids(teacher)):
            raise BadInput(
                f"{model.name} has space_id {model.space_id!r}, but {teacher.name} has "
                f"{teacher.space_id!r}; use the projection that was trained for this teacher"
            )
        if model.embedding_dim != teacher.embedding_dim:
            raise BadInput(
                f"{model.name} has dimension {model.embedding_dim}, but {teacher.name} has "
                f"{teacher.embedding_dim}"
            )


def measure_tiers(
    models: Sequence[SearchEncoder],
    teacher: SearchEncoder,
    dev: DevSet,
    *,
    alone: Sequence[tuple[SearchEncoder, str | None]] = (),
    rescore: str = Precision.FLOAT32.value,
    passages: PassageSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[AsymmetricPair]:
    """Measure every pair of query tier and document tier on one dev set.

    Tiers share the teacher's space; students alone search their own. `models`: students through
    their projections into the teacher's space. `alone`: students with the task that they search by
    themselves with. `rescore`: precision of the vectors kept; every candidate is rescored.
    `progress`: called with indexes built and their number. Returns students alone first, then for
    each document tier, the teacher last, its query tiers, the teacher last.
    """
    check_one_space(models, teacher)
    query_ids = dev.judged()
    texts = [dev.queries[query] for query in query_ids]
    shared = [*models, teacher]
    plan: list[tuple[SearchEncoder, str | None, list[SearchEncoder]]] = [
        *((student, task, [student]) for student, task in alone),
        *((tier, None, shared) for tier in shared),
    ]
    measured: list[tuple[dict[str, Any], np.ndarray]] = []
    query_ms: dict[tuple[int, str | None], float] = {}
    with tempfile.TemporaryDirectory(prefix="taskdistill-tiers-") as folder:
        for at, (document_tier, task, query_tiers) in enumerate(plan):
            start = time.perf_counter()
            index, report = build_index(
                document_tier,
                dev.documents,
                Path(folder) / str(at),
                task=task,
                storage=StorageOptions(rescore=rescore, passages=passages),
            )
            document_ms = 1000 * (time.perf_counter() - start) / report.passages
            oversample = None if rescore == "none" else index.snapshot.live_count
            for query_tier in query_tiers:
                # The time of a query does not depend on whose documents it searches.
                key = (id(query_tier), task)
                if key not in query_ms:
                    query_ms[key] = _query_milliseconds(index, query_tier, texts[:TIMED_QUERIES])
                vectors = query_vectors(index.settings, query_tier, texts)
                start = time.perf_counter()
                ranked = rank_queries(
                    index.snapshot,
                    vectors,
                    passage_depth(passages),
                    SearchOptions(oversample=oversample),
                )
                fields = {
                    "queries": query_tier.name,
                    "documents": document_tier.name,
                    "space": document_tier.space_id,
                    "task": task,
                    "query_milliseconds": query_ms[key],
                    "search_milliseconds": 1000 * (time.perf_counter() - start) / len(texts),
                    "document_milliseconds": document_ms,
                }
                measured.append((fields, ndcg_scores(index.snapshot, ranked, query_ids, dev.qrels)))
            if progress is not None:
                progress(at + 1, len(plan))
    # The plan ends with teacher/teacher.
    teacher_scores = measured[-1][1]
    return [
        AsymmetricPair(
            **fields, ndcg=mean_interval(scores), retention=share_interval(scores, teacher_scores)
        )
        for fields, scores in measured
    ]


def _query_milliseconds(index: Index, encoder: SearchEncoder, texts: Sequence[str]) -> float:
    query_vectors(index.settings, encoder, texts[:1])  # the first call pays for what loads lazily
    times = []
    for text in texts:
        start = time.perf_counter()
        query_vectors(index.settings, encoder, [text])
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
