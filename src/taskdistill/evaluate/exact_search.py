"""Exact search, by blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from taskdistill.evaluate.set_data import RankingData
from taskdistill.metrics import ndcg
from taskdistill.quantization import hamming, normalize

Ranking = dict[str, dict[str, float]]
"""Query id to document id to score, higher is better."""

TOP_K = 1000
"""Documents ranked for each query, as mteb does."""

# 256 x 32,768 inner products are 32 MB, and 32 rows of scores stay below that for any corpus that
# fits into memory as vectors.
_BLOCK = 256
_COLUMNS = 32_768
_ROWS = 32

Number = TypeVar("Number", bound=np.generic)


def top_documents(
    queries: NDArray[np.float32], documents: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the k documents of largest inner product for each query, exactly.

    Returns (q, min(k, n)) indices, in no particular order, and their inner products.
    """
    k = min(k, len(documents))
    places = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for i in range(0, len(queries), _BLOCK):
        block = queries[i : i + _BLOCK]
        best, where = np.empty((len(block), 0), np.float32), np.empty((len(block), 0), np.int64)
        for j in range(0, len(documents), _COLUMNS):
            products = block @ documents[j : j + _COLUMNS].T
            columns = np.arange(j, j + products.shape[1])
            best = np.hstack([best, products])
            where = np.hstack([where, np.broadcast_to(columns, products.shape)])
            if best.shape[1] > k:
                top = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, where = np.take_along_axis(best, top, 1), np.take_along_axis(where, top, 1)
        places[i : i + _BLOCK], scores[i : i + _BLOCK] = where, best
    return places, scores


def rank(
    data: RankingData, queries: NDArray[np.float32], documents: NDArray[np.float32]
) -> Ranking:
    """Rank the documents, or each query's candidates, by cosine; the best 1000 of a query."""
    queries, documents = normalize(queries), normalize(documents)
    if data.candidates is None:
        return named_ranking(data, *top_documents(queries, documents, TOP_K))
    place = {key: i for i, key in enumerate(data.documents)}
    ranking = {}
    for vector, query in zip(queries, data.queries, strict=True):
        ids = data.candidates[query]
        cosines = documents[[place[key] for key in ids]] @ vector
        ranking[query] = dict(zip(ids, cosines.tolist(), strict=True))
    return ranking


def named_ranking(
    data: RankingData, places: NDArray[np.int64], scores: NDArray[np.float32]
) -> Ranking:
    """Turn (q, k) places of documents and their scores into ids."""
    ids = list(data.documents)
    rows = zip(data.queries, places.tolist(), scores.tolist(), strict=True)
    return {
        query: dict(zip([ids[place] for place in row], values, strict=True))
        for query, row, values in rows
    }


def ndcg_by_query(
    data: RankingData,
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    cutoff: int = 10,
) -> NDArray[np.float64]:
    """Compute nDCG of every query without a ranking, for scoring many variants of the same vectors.

    The (q,) numbers are those of `metrics.retrieval_scores`: linear gains, and ties go to the
    larger document id. The set has no candidates.
    """
    order = _larger_ids_first(data)
    documents = normalize(documents)[order]
    return _ndcg(data, normalize(queries), lambda some: some @ documents.T, order, cutoff)


def ndcg_by_query_of_bits(
    data: RankingData, queries: NDArray[np.uint8], documents: NDArray[np.uint8], cutoff: int = 10
) -> NDArray[np.float64]:
    """Do as `ndcg_by_query` from packed sign bits: nearer by Hamming distance is better."""
    order = _larger_ids_first(data)
    documents = documents[order]

    def score(some: NDArray[np.uint8]) -> NDArray[np.float32]:
        return -hamming(some, documents).astype(np.float32)

    return _ndcg(data, queries, score, order, cutoff)


def _larger_ids_first(data: RankingData) -> NDArray[np.int64]:
    ids = list(data.documents)
    return np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True), dtype=np.int64)


def _ndcg(
    data: RankingData,
    queries: NDArray[Number],
    score: Callable[[NDArray[Number]], NDArray[np.float32]],
    order: NDArray[np.int64],
    cutoff: int,
) -> NDArray[np.float64]:
    """Score some queries at a time; of equal scores the document that is first in `order` wins."""
    ids, names = list(data.documents), list(data.queries)
    result = np.zeros(len(queries))
    for start in range(0, len(queries), _ROWS):
        for row, scores in enumerate(score(queries[start : start + _ROWS]), start):
            judged = data.qrels[names[row]]
            gains = [judged.get(ids[order[i]], 0) for i in _first(scores, cutoff)]
            result[row] = ndcg(gains, judged.values(), cutoff)
    return result


def _first(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the places of the k largest scores in order; of equal ones the first place."""
    if len(scores) <= k:
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > least)
    tied = np.flatnonzero(scores == least)[: k - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], tied])
