"""The first pass: nearest binary codes by Hamming distance, exact by default, or in a part of the cells of an inverted file.

The exact pass runs faiss's kernel on the memory map itself, without a copy. The cells are built in memory from codes that
were hashed, never read from a faiss file: such files answer happily with flipped bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import require

FirstPass = Literal["flat", "ivf"]
CELL_ROWS = 65_536
"""Segments with fewer rows are always searched exactly: that takes a few tenths of a millisecond."""

_PART_ROWS = 131_072
"""Codes each thread takes at least when one query is spread over threads."""

Distances = NDArray[np.int64]
Rows = NDArray[np.int64]


def flat(queries: NDArray[np.uint8], codes: NDArray[np.uint8], count: int) -> tuple[Distances, Rows]:
    """Find the nearest codes exactly.

    Args:
        queries: (q, bytes) binary codes.
        codes: (n, bytes) binary codes.
        count: How many to find, at most n.

    Returns:
        (q, count) Hamming distances, ascending, and rows.
    """
    workers, pool = _pool()
    if len(queries) >= workers:
        return _by_queries(lambda part: _scan(part, codes, count), queries)
    queries = np.ascontiguousarray(queries)
    pieces = max(1, min(workers, len(codes) // _PART_ROWS))
    edges = np.linspace(0, len(codes), pieces + 1).astype(int).tolist()
    parts = list(pool.map(lambda start, stop: _scan(queries, codes[start:stop], count), edges[:-1], edges[1:]))
    return nearest_of([each[0] for each in parts], [rows + start for (_, rows), start in zip(parts, edges, strict=False)], count)


@cache
def _pool() -> tuple[int, ThreadPoolExecutor]:
    """Return our own threads, one OpenMP thread each: faiss's would spin against those of other libraries and requests."""
    require("faiss", "search", "searching an index")
    import faiss

    workers = faiss.omp_get_max_threads()
    return workers, ThreadPoolExecutor(workers, "first-pass", initializer=lambda: faiss.omp_set_num_threads(1))


os.register_at_fork(after_in_child=_pool.cache_clear)


def _by_queries(search: Callable[[NDArray[np.uint8]], tuple[Distances, Rows]], queries: NDArray[np.uint8]) -> tuple[Distances, Rows]:
    workers, pool = _pool()
    parts = list(pool.map(search, [np.ascontiguousarray(part) for part in np.array_split(queries, min(workers, len(queries)))]))
    return np.concatenate([each[0] for each in parts]), np.concatenate([each[1] for each in parts])


def _scan(queries: NDArray[np.uint8], codes: NDArray[np.uint8], count: int) -> tuple[Distances, Rows]:
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
    require("faiss", "search", "searching an index")
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
    return _by_queries(lambda part: _widened(*cells.search(part, count)), queries)


def _widened(distances: NDArray[Any], rows: Rows) -> tuple[Distances, Rows]:
    return distances.astype(np.int64), rows
