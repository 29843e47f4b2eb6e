"""The first pass: nearest binary codes by Hamming distance, exactly or in part of the cells.

The exact pass runs faiss's kernel on the memory map itself, without a copy. The cells are built in
memory from codes that were hashed, never read from a faiss file: such files answer happily with
flipped bytes.
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
from taskdistill.search.prf import Floats

FirstPass = Literal["flat", "ivf"]
CELL_ROWS = 65_536
"""Segments with fewer rows are searched exactly: that takes a few tenths of a millisecond."""

_ROWS_PER_THREAD = 65_536
"""Codes each thread takes at least when one query is spread over threads."""

_thread = threading.local()

Codes = NDArray[np.uint8]
Rows = NDArray[np.int64]
Nearest = tuple[NDArray[np.int64], Rows]
"""`(q, count)` Hamming distances, ascending, and rows; row -1 where fewer were found."""

Result = TypeVar("Result")


def nearest_codes(queries: Codes, codes: Codes, count: int) -> Nearest:
    """Search exactly for the nearest of `(n, bytes)` codes; `count` is at most n."""
    queries = np.ascontiguousarray(queries)
    if _in_pool():
        return _scan(queries, codes, count)
    workers, pool = _pool()
    parts = max(1, min(workers, len(codes) // _ROWS_PER_THREAD))
    edges = np.linspace(0, len(codes), parts + 1).astype(int).tolist()

    def scan(start: int, stop: int) -> Nearest:
        distances, rows = _scan(queries, codes[start:stop], count)
        return distances, rows + start

    return join_nearest(list(pool.map(scan, edges[:-1], edges[1:])), count)


def spread_queries(work: Callable[[Floats], list[Result]], queries: Floats) -> list[Result]:
    """Spread queries over threads, if there are enough: each thread does all the work for its own.

    `work`: from some of the queries to a result for each.
    """
    workers, pool = _pool()
    if len(queries) < max(2, workers) or _in_pool():
        return work(queries)
    return [each for part in pool.map(work, np.array_split(queries, workers)) for each in part]


def _in_pool() -> bool:
    """Whether this is a thread of the pool, which must not wait for another."""
    return getattr(_thread, "in_pool", False)


@cache
def _pool() -> tuple[int, ThreadPoolExecutor]:
    """Return threads of one OpenMP thread each: faiss's own would spin against those of others."""
    require_extra("faiss", "search", "searching an index")
    import faiss

    def begin() -> None:
        faiss.omp_set_num_threads(1)
        _thread.in_pool = True

    workers = faiss.omp_get_max_threads()
    return workers, ThreadPoolExecutor(workers, "first-pass", initializer=begin)


# A forked child has the pool's object but none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


def _scan(queries: Codes, codes: Codes, count: int) -> Nearest:
    import faiss

    distances, rows = faiss.knn_hamming(queries, codes, min(count, len(codes)))
    return distances.astype(np.int64), rows


def join_nearest(parts: list[Nearest], count: int) -> Nearest:
    """Join the results of several parts with distinct rows; ties come in the order of rows."""
    distance = np.concatenate([part[0] for part in parts], axis=1)
    row = np.concatenate([part[1] for part in parts], axis=1)
    # Distance and row in one number: one partition and one sort order by both.
    missing = np.iinfo(np.int64).max
    keys = np.where(row < 0, missing, distance << 40 | row)
    if keys.shape[1] > count:
        keys = np.partition(keys, count - 1, axis=1)[:, :count]
    keys.sort(axis=1)
    return (
        np.where(keys == missing, -1, keys >> 40),
        np.where(keys == missing, -1, keys & (1 << 40) - 1),
    )


def build_cells(codes: Codes) -> Any:
    """Sort codes into cells around sqrt(n) centres, of which a search looks into a quarter.

    Returns a faiss index whose labels are rows.
    """
    require_extra("faiss", "search", "searching an index")
    import faiss

    bits, cells = codes.shape[1] * 8, math.isqrt(len(codes))
    structure = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, cells)
    structure.nprobe = max(1, cells // 4)
    # Forty codes a centre are what faiss's k-means asks for.
    sample = np.random.default_rng(0).choice(len(codes), min(len(codes), 40 * cells), replace=False)
    structure.train(codes[np.sort(sample)])
    structure.add(codes)
    return structure


def search_cells(cells: Any, queries: Codes, count: int) -> Nearest:
    """Search the nearest cells of `build_cells`; `count` is at most their codes."""
    queries = np.ascontiguousarray(queries)
    if _in_pool():
        distances, rows = cells.search(queries, count)
    else:
        distances, rows = _pool()[1].submit(cells.search, queries, count).result()
    return distances.astype(np.int64), rows
