"""Rank the rows of a snapshot: binary first pass over all, then the stored vectors of the best candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.quantization import Int8Ranges, pack_bits
from taskdistill.search.candidates import Distances, flat, in_parts, nearest_of
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.segment_writer import Rows
from taskdistill.search.storage.snapshot import Snapshot

OVERSAMPLE = 100
"""Candidates of the first pass for each row asked for. Of the exact top 10 among 200,000 MiniLM vectors of 384 dimensions, 20 find
0.969, 50 find 0.988, 70 find 0.991 and 200 find 0.992 with int8, whose rounding is what is missing then; 50 find 0.994 and 100 find
0.998 with float16. Rescoring 1,000 rows takes about half as long as the scan (benchmarks/search_speed.py)."""

_QUERIES = 256
_ROWS = 16_384

Floats = NDArray[np.float32]
Ranked = tuple[Rows, Floats]
"""Rows of one query, best first, and their scores."""

Pass = Callable[[Segment, NDArray[np.uint8], int], tuple[Distances, Rows]]
"""Finds near codes among the live rows of a segment: (segment, queries, count) to distances and rows."""


def exact_pass(segment: Segment, queries: NDArray[np.uint8], count: int) -> tuple[Distances, Rows]:
    """Find the nearest live rows of a segment by Hamming distance.

    Args:
        segment: The segment.
        queries: (q, bytes) binary codes.
        count: How many to find, at most its live rows.

    Returns:
        (q, count) distances and rows of the segment.
    """
    return among(segment.live_codes, segment.live_rows, queries, count)


def among(
    codes: NDArray[np.uint8], rows: Rows | None, queries: NDArray[np.uint8], count: int
) -> tuple[Distances, Rows]:
    """Find the nearest of some codes and return their row numbers.

    Args:
        codes: (n, bytes) binary codes.
        rows: (n,) their row numbers; None for 0..n-1.
        queries: (q, bytes) binary codes.
        count: How many to find, at most n.

    Returns:
        (q, count) distances and row numbers.
    """
    distances, found = flat(queries, codes, count)
    return distances, found if rows is None else rows[found]


def rank(
    snapshot: Snapshot,
    queries: Floats,
    top_k: int,
    oversample: int,
    allowed: list[Rows | None],
    first_pass: Pass = exact_pass,
) -> list[Ranked]:
    """Rank rows for each query by the dot product with the stored vectors.

    Where the candidates would be all rows, the first pass is left out and the result is exact. An index without stored
    vectors scores 1 - 2 * Hamming distance / dim, the cosine of the signs.

    Args:
        snapshot: What to search.
        queries: (q, dim) unit vectors.
        top_k: Rows a query, at least 1; fewer come back where there are fewer.
        oversample: Candidates for each row.
        allowed: From `Snapshot.allowed`.
        first_pass: How segments without a filter are searched.

    Returns:
        For each query rows and scores, best first; equal scores in the order of rows.
    """
    sizes = [
        segment.live_count if rows is None else len(rows)
        for segment, rows in zip(snapshot.segments, allowed, strict=True)
    ]
    top_k = min(top_k, sum(sizes))
    if top_k == 0:
        return [(np.zeros(0, np.int64), np.zeros(0, np.float32)) for _ in queries]
    settings = snapshot.manifest.settings
    count = top_k * oversample
    everything = (
        snapshot.rows(allowed) if settings.rescore != "none" and count >= sum(sizes) else None
    )

    def part(queries: Floats) -> list[Ranked]:
        if settings.rescore == "none":
            distances, rows = _candidates(
                snapshot, pack_bits(queries), top_k, sizes, allowed, first_pass
            )
            return [
                (each[each >= 0], _signs_cosine(far[each >= 0], settings.dim))
                for each, far in zip(rows, distances, strict=True)
            ]
        if everything is not None:
            rows = np.broadcast_to(everything, (len(queries), len(everything)))
        else:
            rows = np.sort(
                _candidates(snapshot, pack_bits(queries), count, sizes, allowed, first_pass)[1],
                axis=1,
            )
        scorer = Rescorer(snapshot.manifest.ranges, queries)
        return [
            best(each[each >= 0], _scores(snapshot, scorer, at, each[each >= 0]), top_k)
            for at, each in enumerate(rows)
        ]

    return [
        each
        for start in range(0, len(queries), _QUERIES)
        for each in in_parts(part, queries[start : start + _QUERIES])
    ]


def _candidates(
    snapshot: Snapshot,
    queries: NDArray[np.uint8],
    count: int,
    sizes: list[int],
    allowed: list[Rows | None],
    first_pass: Pass,
) -> tuple[Distances, Rows]:
    distances, rows = [], []
    for segment, size, offset, only in zip(
        snapshot.segments, sizes, snapshot.offsets, allowed, strict=False
    ):
        if size == 0:
            continue
        wanted = min(count, size)
        far, found = (
            first_pass(segment, queries, wanted)
            if only is None
            else among(segment.codes[only], only, queries, wanted)
        )
        distances.append(far)
        rows.append(np.where(found < 0, -1, found + offset))
    return nearest_of(distances, rows, count)


def _signs_cosine(distances: Distances, dim: int) -> Floats:
    return (1 - 2 * distances / dim).astype(np.float32)


class Rescorer:
    """Dot products of queries with stored vectors, without decoding them: int8 steps are folded into the queries."""

    def __init__(self, ranges: Int8Ranges | None, queries: Floats) -> None:
        """Prepare queries.

        Args:
            ranges: Of the stored codes; None for stored numbers.
            queries: (q, dim) vectors.
        """
        self._queries, self._offsets = queries, np.zeros(len(queries), np.float32)
        if ranges is not None:
            ends = ranges.decode(np.array([[0], [1]], np.int8).repeat(ranges.dim, axis=1))
            self._queries = queries * (ends[1] - ends[0])
            self._offsets = (queries * ends[0]).sum(
                axis=1
            )  # not a matrix product: a score must not depend on the other queries

    def __call__(self, query: int, vectors: NDArray[Any]) -> Floats:
        """Score stored vectors.

        Args:
            query: Number of the query.
            vectors: (n, dim) int8 codes, or float16 or float32 numbers.

        Returns:
            (n,) dot products.
        """
        products = np.einsum(
            "nd,d->n", vectors.astype(np.float32), self._queries[query]
        )  # BLAS would wake threads of its own
        scores: Floats = products + self._offsets[query]
        return scores


def _scores(snapshot: Snapshot, scorer: Rescorer, query: int, rows: Rows) -> Floats:
    parts = [
        scorer(query, snapshot.vectors(rows[start : start + _ROWS]))
        for start in range(0, len(rows), _ROWS)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def best(rows: Rows, scores: Floats, top_k: int) -> Ranked:
    """Choose the rows with the highest scores.

    Args:
        rows: (n,) row numbers.
        scores: (n,) scores.
        top_k: How many to keep.

    Returns:
        At most `top_k` rows and scores, best first; equal scores in the order of rows.
    """
    if len(rows) > 4 * top_k:
        kept = np.flatnonzero(
            scores >= np.partition(scores, len(scores) - top_k)[len(scores) - top_k]
        )
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:top_k]
    return rows[order], scores[order]
