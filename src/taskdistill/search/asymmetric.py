"""Tiers of one space: any of them may embed the documents and any other the queries; what each pair is worth and costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.search.build import build_index
from taskdistill.search.devset import CUTOFF, DevSet, ndcg
from taskdistill.search.index import Index
from taskdistill.search.intervals import Interval, mean_interval, share_interval
from taskdistill.search.passages import PassageSettings
from taskdistill.search.protocol import SearchEncoder, former_ids, same_space
from taskdistill.search.query import query_vectors, rank_queries
from taskdistill.types import Precision

_TIMED = 64


@dataclass(frozen=True)
class AsymmetricPair:
    """One pair of encoders.

    Attributes:
        queries: Model that embeds queries.
        documents: Model that embeds documents.
        space: Space id of both.
        task: Adapter of both; None for base vectors.
        ndcg: Mean nDCG@10, 0 to 1, with its interval over queries.
        retention: nDCG@10 as a share of teacher/teacher, drawn together.
        query_milliseconds: To embed one query, alone; the median of up to 64.
        search_milliseconds: To search for one query, without embedding it.
        document_milliseconds: To embed one passage, in batches.
    """

    queries: str
    documents: str
    space: str
    task: str | None
    ndcg: Interval
    retention: Interval
    query_milliseconds: float
    search_milliseconds: float
    document_milliseconds: float

    @property
    def end_to_end_milliseconds(self) -> float:
        """From a query's text to its documents."""
        return self.query_milliseconds + self.search_milliseconds

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self) | {"end_to_end_milliseconds": self.end_to_end_milliseconds}


@dataclass(frozen=True)
class _PairResult:
    tier: AsymmetricPair
    units: NDArray[np.float64]


def check_one_space(models: Sequence[SearchEncoder], teacher: SearchEncoder) -> None:
    """Refuse to compare vectors of different spaces.

    Args:
        models: Students through their projections.
        teacher: The teacher.

    Raises:
        BadInput: Naming both space ids, or both dimensions.
    """
    for each in models:
        if not same_space(each.space_id, former_ids(each), teacher.space_id, former_ids(teacher)):
            raise BadInput(
                f"{each.name} has space_id {each.space_id!r}, but {teacher.name} has {teacher.space_id!r}; "
                "use the projection that was trained for this teacher"
            )
        if each.embedding_dim != teacher.embedding_dim:
            raise BadInput(
                f"{each.name} has dimension {each.embedding_dim}, but {teacher.name} has {teacher.embedding_dim}"
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
    """Measure every pair of query tier and document tier of the teacher's space, and students alone in their own, on one dev set.

    Args:
        models: Students through their projections into the teacher's space.
        teacher: The teacher.
        dev: Documents, queries and qrels.
        alone: Students with the task that they search by themselves with.
        rescore: Precision of the vectors kept; every candidate is rescored.
        passages: How documents are cut.
        progress: Told indexes built, and their number.

    Returns:
        Students alone first, then for each document tier, the teacher last, its query tiers, the teacher last.

    Raises:
        BadInput: If a projected student and the teacher are of different spaces, or the dev set cannot be judged.
    """
    check_one_space(models, teacher)
    names = dev.judged()
    texts = [dev.queries[each] for each in names]
    shared = [*models, teacher]
    plan: list[tuple[SearchEncoder, str | None, list[SearchEncoder]]] = [
        (each, task, [each]) for each, task in alone
    ]
    plan += [(each, None, shared) for each in shared]
    found: list[_PairResult] = []
    query_ms: dict[tuple[int, str | None], float] = {}
    with tempfile.TemporaryDirectory(prefix="taskdistill-tiers-") as folder:
        for at, (documents, task, askers) in enumerate(plan):
            start = time.perf_counter()
            index, report = build_index(
                documents,
                dev.documents,
                Path(folder) / str(at),
                task=task,
                rescore=rescore,
                passages=passages,
            )
            document_ms = 1000 * (time.perf_counter() - start) / report.passages
            for asker in askers:
                key = (id(asker), task)
                if key not in query_ms:
                    query_ms[key] = _query_milliseconds(index, asker, texts[:_TIMED])
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
                units = ndcg(index.snapshot, ranked, names, dev.qrels)
                kept = mean_interval(units)
                tier = AsymmetricPair(
                    asker.name,
                    documents.name,
                    documents.space_id,
                    task,
                    kept,
                    kept,
                    query_ms[key],
                    search_ms,
                    document_ms,
                )
                found.append(_PairResult(tier, units))
            if progress is not None:
                progress(at + 1, len(plan))
    best = found[-1].units
    return [
        AsymmetricPair(**{**vars(each.tier), "retention": share_interval(each.units, best)})
        for each in found
    ]


def _query_milliseconds(index: Index, encoder: SearchEncoder, texts: Sequence[str]) -> float:
    query_vectors(index.settings, encoder, texts[:1])
    times = []
    for text in texts:
        start = time.perf_counter()
        query_vectors(index.settings, encoder, [text])
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))
