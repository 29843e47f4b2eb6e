"""Exact search, by blocks of bounded memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from taskdistill.compress import normalise
from taskdistill.evaluate.reading import RankingData

TOP_K = 1000
"""Documents ranked for each query, as mteb does."""

_BLOCK = 256
_COLUMNS = 32_768


def top_documents(queries: NDArray[np.float32], documents: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the documents of largest inner product, exactly, by blocks of bounded memory.

    Args:
        queries: (q, dim) vectors.
        documents: (n, dim) vectors.
        k: Documents wanted for each query.

    Returns:
        (q, min(k, n)) indices, in no particular order, and their inner products.
    """
    k = min(k, len(documents))
    places = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for i in range(0, len(queries), _BLOCK):
        block = queries[i : i + _BLOCK]
        best, where = np.empty((len(block), 0), np.float32), np.empty((len(block), 0), np.int64)
        for j in range(0, len(documents), _COLUMNS):
            found = block @ documents[j : j + _COLUMNS].T
            best = np.hstack([best, found])
            where = np.hstack([where, np.broadcast_to(np.arange(j, j + found.shape[1]), found.shape)])
            if best.shape[1] > k:
                keep = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, where = np.take_along_axis(best, keep, 1), np.take_along_axis(where, keep, 1)
        places[i : i + _BLOCK], scores[i : i + _BLOCK] = where, best
    return places, scores


def rank(data: RankingData, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Rank the documents, or each query's candidates, by cosine.

    Args:
        data: The set.
        queries: (queries, dim) vectors.
        documents: (documents, dim) vectors.

    Returns:
        Query id to document id to cosine, for the best 1000.
    """
    queries, documents = normalise(queries), normalise(documents)
    ids = list(data.documents)
    if data.candidates is None:
        places, scores = top_documents(queries, documents, TOP_K)
        return {
            query: dict(zip([ids[p] for p in row], values, strict=True))
            for query, row, values in zip(data.queries, places.tolist(), scores.tolist(), strict=True)
        }
    place = {key: i for i, key in enumerate(ids)}
    ranking = {}
    for vector, query in zip(queries, data.queries, strict=True):
        names = data.candidates[query]
        ranking[query] = dict(zip(names, (documents[[place[name] for name in names]] @ vector).tolist(), strict=True))
    return ranking
