"""Exact search, by blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.evaluate.reading import RankingData
from taskdistill.quantization import hamming, normalize

TOP_K = 1000
"""Documents ranked for each query, as mteb does."""

_BLOCK = 256
_COLUMNS = 32_768
_ROWS = 32


def top_documents(
    queries: NDArray[np.float32], documents: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the documents of largest inner product, exactly, by blocks of bounded memory.

    Args:
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
            result = block @ documents[j : j + _COLUMNS].T
            best = np.hstack([best, result])
            where = np.hstack(
                [where, np.broadcast_to(np.arange(j, j + result.shape[1]), result.shape)]
            )
            if best.shape[1] > k:
                keep = np.argpartition(-best, k - 1, axis=1)[:, :k]
                best, where = np.take_along_axis(best, keep, 1), np.take_along_axis(where, keep, 1)
        places[i : i + _BLOCK], scores[i : i + _BLOCK] = where, best
    return places, scores


def rank(
    data: RankingData, queries: NDArray[np.float32], documents: NDArray[np.float32]
) -> dict[str, dict[str, float]]:
    """Rank the documents, or each query's candidates, by cosine.

    Returns:
        Query id to document id to cosine, for the best 1000.
    """
    queries, documents = normalize(queries), normalize(documents)
    ids = list(data.documents)
    if data.candidates is None:
        places, scores = top_documents(queries, documents, TOP_K)
        return {
            query: dict(zip([ids[p] for p in row], values, strict=True))
            for query, row, values in zip(
                data.queries, places.tolist(), scores.tolist(), strict=True
            )
        }
    place = {key: i for i, key in enumerate(ids)}
    ranking = {}
    for vector, query in zip(queries, data.queries, strict=True):
        names = data.candidates[query]
        ranking[query] = dict(
            zip(names, (documents[[place[name] for name in names]] @ vector).tolist(), strict=True)
        )
    return ranking


def ndcg_units(
    data: RankingData,
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    cutoff: int = 10,
) -> NDArray[np.float64]:
    """Compute nDCG of every query without ranking more documents than count, for scoring many variants of the same vectors.

    The numbers are those of `metrics.retrieval_scores`: linear gains, and ties go to the larger document id.

    Args:
        data: The set, without candidates.

    Returns:
        (queries,) nDCG at the cutoff, in the order of the set's queries.
    """
    order = _larger_ids_first(data)
    documents = normalize(documents)[order]
    return _units(data, normalize(queries), lambda some: some @ documents.T, order, cutoff)


def ndcg_units_of_bits(
    data: RankingData, queries: NDArray[np.uint8], documents: NDArray[np.uint8], cutoff: int = 10
) -> NDArray[np.float64]:
    """Compute nDCG of every query from sign bits, as `ndcg_units` does from vectors; nearer by Hamming distance is better.

    Args:
        data: The set, without candidates.
        queries: (queries, bytes) packed bits.
        documents: (documents, bytes) packed bits.

    Returns:
        (queries,) nDCG at the cutoff, in the order of the set's queries.
    """
    order = _larger_ids_first(data)
    documents = documents[order]
    return _units(
        data, queries, lambda some: -hamming(some, documents).astype(np.float32), order, cutoff
    )


def _larger_ids_first(data: RankingData) -> NDArray[np.int64]:
    ids = list(data.documents)
    return np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True), dtype=np.int64)


def _units(
    data: RankingData,
    queries: NDArray[Any],
    score: Callable[[NDArray[Any]], NDArray[np.float32]],
    order: NDArray[np.int64],
    cutoff: int,
) -> NDArray[np.float64]:
    """Return nDCG of every query; `score` gives (some, documents) scores of documents in the order given, in which ties are broken."""
    ids = list(data.documents)
    discounts = 1 / np.log2(np.arange(cutoff) + 2)
    result = np.zeros(len(queries))
    names = list(data.queries)
    for start in range(0, len(queries), _ROWS):
        for row, scores in enumerate(score(queries[start : start + _ROWS]), start):
            judged = data.qrels[names[row]]
            ideal = np.sort(
                np.array([gain for gain in judged.values() if gain > 0], dtype=np.float64)
            )[::-1][:cutoff]
            if len(ideal):
                best = [max(0, judged.get(ids[order[i]], 0)) for i in _first(scores, cutoff)]
                result[row] = (best @ discounts[: len(best)]) / (ideal @ discounts[: len(ideal)])
    return result


def _first(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the places of the k largest scores in order; of equal ones the first place."""
    if len(scores) <= k:
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > least)
    tied = np.flatnonzero(scores == least)[: k - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], tied])
