"""The first pass: nearest binary codes by Hamming distance, exact by default, or by a structure built in memory.

The exact pass runs faiss's kernel on the memory map itself, without a copy. The structures are built from codes that were
hashed, never read from a faiss file: such files answer happily with flipped bytes.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import require

FirstPass = Literal["flat", "ivf", "hnsw"]
STRUCTURE_ROWS = 65_536
"""Segments with fewer rows are always searched exactly: that is faster than any structure."""

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
    queries = np.ascontiguousarray(queries)
    if len(queries) >= workers:
        edges = np.linspace(0, len(queries), workers + 1).astype(int).tolist()
        parts = list(pool.map(lambda start, stop: _scan(queries[start:stop], codes, count), edges[:-1], edges[1:]))
        return np.concatenate([each[0] for each in parts]), np.concatenate([each[1] for each in parts])
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


def build_structure(codes: NDArray[np.uint8], kind: FirstPass) -> Any:
    """Build a structure that finds most of the nearest codes in less time.

    Args:
        codes: (n, bytes) binary codes.
        kind: `ivf` (cells around sqrt(n) centres, of which an eighth is searched) or `hnsw` (a graph of 32 neighbours).

    Returns:
        A faiss index whose labels are rows.
    """
    require("faiss", "search", "searching an index")
    import faiss

    bits = codes.shape[1] * 8
    structure: Any
    if kind == "hnsw":
        structure = faiss.IndexBinaryHNSW(bits, 32)
        structure.hnsw.efConstruction = 64
    else:
        cells = math.isqrt(len(codes))
        quantiser = faiss.IndexBinaryFlat(bits)
        structure = faiss.IndexBinaryIVF(quantiser, bits, cells)
        structure.nprobe = max(1, cells // 8)
        sample = np.random.default_rng(0).choice(len(codes), min(len(codes), 40 * cells), replace=False)
        structure.train(codes[np.sort(sample)])
        structure.quantizer_python = quantiser
    structure.add(codes)
    return structure


def approximate(structure: Any, queries: NDArray[np.uint8], count: int) -> tuple[Distances, Rows]:
    """Find near codes with a structure.

    Args:
        structure: From `build_structure`.
        queries: (q, bytes) binary codes.
        count: How many to find, at most its size.

    Returns:
        (q, count) Hamming distances and rows, ascending; row -1 where fewer were found.
    """
    if hasattr(structure, "hnsw"):
        structure.hnsw.efSearch = max(64, count)
    return _widened(*structure.search(np.ascontiguousarray(queries), count))


def _widened(distances: NDArray[Any], rows: Rows) -> tuple[Distances, Rows]:
    return distances.astype(np.int64), rows
