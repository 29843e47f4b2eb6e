"""Rank the rows of a snapshot: binary first pass, then the vectors of the best candidates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from taskdistill.quantization import Int8Ranges, pack_bits
from taskdistill.search.candidates import (
    Codes,
    Nearest,
    Rows,
    join_nearest,
    nearest_codes,
    spread_queries,
)
from taskdistill.search.prf import Floats
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.snapshot import Snapshot

OVERSAMPLE = 100
"""Candidates of the first pass for each row returned.

Of the exact top 10 among 200,000 MiniLM vectors of 384 dimensions, 20 find 0.969, 50 find 0.988, 70
find 0.991 and 200 find 0.992 with int8, whose rounding is what is missing then; 50 find 0.994 and
100 find 0.998 with float16. Rescoring 1,000 rows takes about half as long as the scan
(benchmarks/search_speed.py).
"""

_QUERIES = 256
_ROWS = 16_384

Ranked = tuple[Rows, Floats]
"""Rows of one query, best first, and their scores."""

FirstPassSearch = Callable[[Segment, Codes, int], Nearest]
"""Near codes among the live rows of a segment: (segment, queries, count) to distances and rows."""


def exact_pass(segment: Segment, queries: Codes, count: int) -> Nearest:
    """Search all live rows of a segment; `count` is at most their number."""
    return _nearest_rows(segment.live_codes, segment.live_rows, queries, count)


def _nearest_rows(codes: Codes, rows: Rows | None, queries: Codes, count: int) -> Nearest:
    """Search codes whose row numbers are `rows`, or 0..n-1."""
    distances, nearest = nearest_codes(queries, codes, count)
    return distances, nearest if rows is None else rows[nearest]


def rank(
    snapshot: Snapshot,
    queries: Floats,
    top_k: int,
    *,
    oversample: int,
    allowed: list[Rows | None],
    first_pass: FirstPassSearch = exact_pass,
) -> list[Ranked]:
    """Rank rows for each query by the dot product with the stored vectors.

    Where the candidates would be all rows, the first pass is left out and the result is exact. An
    index without stored vectors scores 1 - 2 * Hamming distance / dim, the cosine of the signs.
    `queries`: `(q, dim)` unit vectors. `top_k`: rows a query, at least 1; fewer come back where
    there are fewer. `oversample`: candidates for each row. `allowed`: from `Snapshot.allowed`.
    `first_pass`: how segments without a filter are searched. Returns for each query rows and
    scores, best first; equal scores in the order of rows.
    """
    sizes = [
        segment.live_count if rows is None else len(rows)
        for segment, rows in zip(snapshot.segments, allowed, strict=True)
    ]
    top_k = min(top_k, sum(sizes))
    if top_k == 0:
        return [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    settings, ranges = snapshot.manifest.settings, snapshot.manifest.ranges
    binary_only = settings.rescore == "none"
    count = top_k if binary_only else top_k * oversample
    # Where every row is a candidate, the first pass would only cost time.
    every_row = None if binary_only or count < sum(sizes) else snapshot.rows(allowed)

    def candidates(queries: Floats) -> Nearest:
        codes, parts = pack_bits(queries), []
        for segment, size, offset, only in zip(
            snapshot.segments, sizes, snapshot.offsets, allowed, strict=False
        ):
            if size == 0:
                continue
            if only is None:
                distances, rows = first_pass(segment, codes, min(count, size))
            else:
                distances, rows = _nearest_rows(segment.codes[only], only, codes, min(count, size))
            parts.append((distances, np.where(rows < 0, -1, rows + offset)))
        return join_nearest(parts, count)

    def rank_some(queries: Floats) -> list[Ranked]:
        if binary_only:
            cosines = (
                (rows[rows >= 0], 1 - 2 * distances[rows >= 0] / settings.dim)
                for distances, rows in zip(*candidates(queries), strict=True)
            )
            return [(rows, cosine.astype(np.float32)) for rows, cosine in cosines]
        if every_row is not None:
            candidate_rows = np.broadcast_to(every_row, (len(queries), len(every_row)))
        else:
            # In ascending order the vectors are read from the map front to back.
            candidate_rows = np.sort(candidates(queries)[1], axis=1)
        scorer = Rescorer(ranges, queries)
        ranked = []
        for query, rows in enumerate(candidate_rows):
            rows = rows[rows >= 0]
            parts = [
                scorer(query, snapshot.vectors(rows[start : start + _ROWS]))
                for start in range(0, len(rows), _ROWS)
            ]
            scores = np.concatenate([np.zeros(0, np.float32), *parts])
            ranked.append(best_rows(rows, scores, top_k))
        return ranked

    # Some queries at a time bound the memory of candidates and distances.
    return [
        ranked
        for start in range(0, len(queries), _QUERIES)
        for ranked in spread_queries(rank_some, queries[start : start + _QUERIES])
    ]


class Rescorer:
    """Dot products of queries with stored vectors: int8 steps are folded into the queries."""

    def __init__(self, ranges: Int8Ranges | None, queries: Floats) -> None:
        """Prepare `(q, dim)` queries; `ranges` of the stored codes, None for stored numbers."""
        self._queries, self._offsets = queries, np.zeros(len(queries), np.float32)
        if ranges is not None:
            ends = ranges.decode(np.array([[0], [1]], np.int8).repeat(ranges.dim, axis=1))
            self._queries = queries * (ends[1] - ends[0])
            # Not a matrix product: a score must not depend on the other queries of the call.
            self._offsets = (queries * ends[0]).sum(axis=1)

    def __call__(self, query: int, vectors: NDArray[np.generic]) -> Floats:
        """Score `(n, dim)` stored vectors for one query, by its number."""
        # Not BLAS either, which would wake threads of its own.
        products = np.einsum("nd,d->n", vectors.astype(np.float32), self._queries[query])
        scores: Floats = products + self._offsets[query]
        return scores


def best_rows(rows: Rows, scores: Floats, top_k: int) -> Ranked:
    """Choose the `top_k` rows with the highest scores, best first; ties in the order of rows."""
    if len(rows) > 4 * top_k:
        # Cheaper than sorting all; ties at the threshold stay, and the sort decides among them.
        threshold = np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        high = np.flatnonzero(scores >= threshold)
        rows, scores = rows[high], scores[high]
    order = np.lexsort((rows, -scores))[:top_k]
    return rows[order], scores[order]
