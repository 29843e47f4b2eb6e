"""From queries to ranked rows: vectors, and on request refinement and lexical search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.quantization import truncate
from taskdistill.search.candidates import Rows
from taskdistill.search.hybrid import DEPTH, Bm25, fuse
from taskdistill.search.prf import Floats, PrfSettings, apply_prf
from taskdistill.search.ranking import OVERSAMPLE, FirstPassSearch, Ranked, exact_pass, rank
from taskdistill.search.settings import IndexSettings, SearchEncoder, former_ids, unit_vectors
from taskdistill.search.storage.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How queries are ranked."""

    oversample: int | None = None
    """Candidates of the first pass for each row; None for the default."""
    refinement: PrfSettings | None = None
    """Move each query towards its best documents and search again; None for off."""
    bm25: Bm25 | None = None
    """Join the ranking with BM25's by reciprocal rank fusion; None for off."""
    first_pass: FirstPassSearch = exact_pass
    """How segments without a filter are searched."""


def query_vectors(
    settings: IndexSettings,
    encoder: SearchEncoder,
    texts: Sequence[str],
    vectors: NDArray[np.floating] | None = None,
) -> Floats:
    """Embed queries as an index needs them: `(q, dim)` unit rows.

    `encoder`: any encoder of the index's space. `vectors`: `(q, at least dim)` vectors of the texts
    by this encoder, where they are there already.
    """
    settings.check_space(encoder.space_id, former_ids(encoder))
    empty = [at for at, text in enumerate(texts) if not text.strip()]
    if empty:
        raise BadInput(
            f"{len(empty)} of {len(texts)} queries are empty, the first is number {empty[0]}; "
            "leave them out"
        )
    if not texts:
        return np.zeros((0, settings.dim), np.float32)
    if vectors is not None:
        vectors = truncate(vectors, settings.dim)
    else:
        vectors = encoder.encode(
            list(texts),
            task=settings.task,
            prompt_name=settings.query_prompt,
            truncate_dim=settings.dim,
        )
    return unit_vectors(vectors, settings.dim, "query")


def rank_queries(
    snapshot: Snapshot,
    queries: Floats,
    top_k: int,
    options: SearchOptions,
    *,
    allowed: list[Rows | None] | None = None,
    texts: Sequence[str] = (),
) -> list[Ranked]:
    """Rank the rows of a snapshot for each query.

    `queries`: `(q, dim)` unit vectors. `top_k`: rows a query; fewer come back where there are
    fewer. `allowed`: from `Snapshot.allowed`; None for all that live. `texts`: `(q,)` the queries'
    texts, for BM25. Returns for each query rows and scores, best first: dot products, or fusion
    scores with BM25.
    """
    _check_count("top_k", top_k)
    if options.oversample is not None:
        _check_count("oversample", options.oversample)
        if snapshot.manifest.settings.rescore == "none":
            raise BadInput(
                "oversample has no effect on an index of binary codes only (rescore none); leave "
                "it out or build with rescore int8"
            )
    if allowed is None:
        allowed = snapshot.allowed(None)
    oversample = OVERSAMPLE if options.oversample is None else options.oversample

    def ranked(queries: Floats, count: int) -> list[Ranked]:
        return rank(
            snapshot,
            queries,
            count,
            oversample=oversample,
            allowed=allowed,
            first_pass=options.first_pass,
        )

    if options.refinement is not None:
        first = ranked(queries, options.refinement.documents)
        moved = [
            apply_prf(query, snapshot.float_vectors(rows), options.refinement)
            for query, (rows, _) in zip(queries, first, strict=True)
        ]
        queries = np.array(moved, np.float32).reshape(queries.shape)
    if options.bm25 is None:
        return ranked(queries, top_k)
    # Fusion needs ranks below top_k too: a row that both rankings have at 30 beats one at 9.
    depth = max(top_k, DEPTH)
    dense = ranked(queries, depth)
    live = snapshot.rows()
    # BM25 numbers the live rows of the snapshot, without gaps.
    mask = None if all(rows is None for rows in allowed) else np.isin(live, snapshot.rows(allowed))
    return [
        fuse([rows, live[options.bm25.rank(text, depth, mask)[0]]], top_k)
        for text, (rows, _) in zip(texts, dense, strict=True)
    ]


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise BadInput(f"{name} is {value!r}; give a whole number of at least 1")
