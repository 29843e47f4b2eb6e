"""The first pass: nearest binary codes by Hamming distance, exact by default, or in a part of the cells of an inverted file.

The exact pass runs faiss's kernel on the memory map itself, without a copy. The cells are built in memory from codes that
were hashed, never read from a faiss file: such files answer happily with flipped bytes.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import require_extra

FirstPass = Literal["flat", "ivf"]
CELL_ROWS = 65_536
"""Segments with fewer rows are always searched exactly: that takes a few tenths of a millisecond."""

_PART_ROWS = 65_536
"""Codes each thread takes at least when one query is spread over threads."""

_own = threading.local()

Distances = NDArray[np.int64]
Rows = NDArray[np.int64]
Result = TypeVar("Result")


def flat(
    queries: NDArray[np.uint8], codes: NDArray[np.uint8], count: int
) -> tuple[Distances, Rows]:
    """Find the nearest codes exactly.

    Args:
        queries: (q, bytes) binary codes.
        codes: (n, bytes) binary codes.
        count: How many to find, at most n.

    Returns:
        (q, count) Hamming distances, ascending, and rows.
    """
    queries = np.ascontiguousarray(queries)
    if _in_part():
        return _scan(queries, codes, count)
    workers, pool = _pool()
    pieces = max(1, min(workers, len(codes) // _PART_ROWS))
    edges = np.linspace(0, len(codes), pieces + 1).astype(int).tolist()
    parts = list(
        pool.map(
            lambda start, stop: _scan(queries, codes[start:stop], count), edges[:-1], edges[1:]
        )
    )
    return nearest_of(
        [each[0] for each in parts],
        [rows + start for (_, rows), start in zip(parts, edges, strict=False)],
        count,
    )


def in_parts(
    work: Callable[[NDArray[np.float32]], list[Result]], queries: NDArray[np.float32]
) -> list[Result]:
    """Spread queries over threads, if there are enough, so that each thread does all the work on its own.

    Args:
        work: Takes some of the queries and returns a result for each.
        queries: (q, dim) vectors.

    Returns:
        The results, in the order of queries.
    """
    workers, pool = _pool()
    if len(queries) < max(2, workers) or _in_part():
        return work(queries)
    return [each for part in pool.map(work, np.array_split(queries, workers)) for each in part]


def _in_part() -> bool:
    """Say whether this is one of our threads, which must not wait for another."""
    return getattr(_own, "thread", False)


@cache
def _pool() -> tuple[int, ThreadPoolExecutor]:
    """Return our own threads, one OpenMP thread each: faiss's would spin against those of other libraries and requests."""
    require_extra("faiss", "search", "searching an index")
    import faiss

    def begin() -> None:
        faiss.omp_set_num_threads(1)
        _own.thread = True

    workers = faiss.omp_get_max_threads()
    return workers, ThreadPoolExecutor(workers, "first-pass", initializer=begin)


os.register_at_fork(after_in_child=_pool.cache_clear)


def _scan(
    queries: NDArray[np.uint8], codes: NDArray[np.uint8], count: int
) -> tuple[Distances, Rows]:
    import faiss

    return _widened(*faiss.knn_hamming(queries, codes, min(count, len(codes))))


def nearest_of(distances: list[Distances], rows: list[Rows], count: int) -> tuple[Distances, Rows]:
    """Join the results of several parts.

    Args:
        distances: (q, any) Hamming distances of each part; a negative row is no result.
        rows: (q, any) row numbers, distinct in all parts together.
        count: How many to keep.

    Returns:
        (q, at most count) distances, ascending, and rows; equal distances come in the order of rows.
    """
    distance, row = np.concatenate(distances, axis=1), np.concatenate(rows, axis=1)
    keys = np.where(row < 0, np.iinfo(np.int64).max, distance << 40 | row)
    if keys.shape[1] > count:
        keys = np.partition(keys, count - 1, axis=1)[:, :count]
    keys.sort(axis=1)
    nothing = keys == np.iinfo(np.int64).max
    return np.where(nothing, -1, keys >> 40), np.where(nothing, -1, keys & (1 << 40) - 1)


def build_cells(codes: NDArray[np.uint8]) -> Any:
    """Sort codes into cells around sqrt(n) centres, of which a search looks into a quarter.

    Args:
        codes: (n, bytes) binary codes.

    Returns:
        A faiss index whose labels are rows.
    """
    require_extra("faiss", "search", "searching an index")
    import faiss

    bits, cells = codes.shape[1] * 8, math.isqrt(len(codes))
    structure = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, cells)
    structure.nprobe = max(1, cells // 4)
    sample = np.random.default_rng(0).choice(len(codes), min(len(codes), 40 * cells), replace=False)
    structure.train(codes[np.sort(sample)])
    structure.add(codes)
    return structure


def approximate(cells: Any, queries: NDArray[np.uint8], count: int) -> tuple[Distances, Rows]:
    """Find near codes in the nearest cells.

    Args:
        cells: From `build_cells`.
        queries: (q, bytes) binary codes.
        count: How many to find, at most its size.

    Returns:
        (q, count) Hamming distances and rows, ascending; row -1 where fewer were found.
    """
    queries = np.ascontiguousarray(queries)
    found = (
        cells.search(queries, count)
        if _in_part()
        else _pool()[1].submit(cells.search, queries, count).result()
    )
    return _widened(*found)


def _widened(distances: NDArray[Any], rows: Rows) -> tuple[Distances, Rows]:
    return distances.astype(np.int64), rows
