"""From queries to ranked rows: vectors, and on request refinement and lexical search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.search.hybrid import DEPTH, Bm25, fuse
from taskdistill.search.prf import PrfSettings, apply_prf
from taskdistill.search.protocol import SearchEncoder, former_ids, unit_vectors
from taskdistill.search.ranking import OVERSAMPLE, Floats, Pass, Ranked, exact_pass, rank
from taskdistill.search.settings import IndexSettings
from taskdistill.search.storage.segment_writer import Rows
from taskdistill.search.storage.snapshot import Snapshot


def query_vectors(settings: IndexSettings, encoder: SearchEncoder, texts: Sequence[str]) -> Floats:
    """Embed queries as an index needs them.

    Args:
        settings: The index's.
        encoder: Any encoder of the index's space.
        texts: The queries.

    Returns:
        (q, dim) unit vectors.

    Raises:
        BadInput: If the encoder is of another space, or a query has no vector.
    """
    settings.check_space(encoder.space_id, former_ids(encoder))
    empty = [at for at, text in enumerate(texts) if not text.strip()]
    if empty:
        raise BadInput(
            f"{len(empty)} of {len(texts)} queries are empty, the first is number {empty[0]}; leave them out"
        )
    if not texts:
        return np.zeros((0, settings.dim), np.float32)
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
    *,
    oversample: int | None = None,
    allowed: list[Rows | None],
    first_pass: Pass = exact_pass,
    refinement: PrfSettings | None = None,
    lexical: Bm25 | None = None,
    texts: Sequence[str] = (),
) -> list[Ranked]:
    """Rank the rows of a snapshot for each query.

    Args:
        snapshot: What to search.
        queries: (q, dim) unit vectors.
        top_k: Rows a query; fewer come back where there are fewer.
        oversample: Candidates of the first pass for each row; None for the default. Has no meaning without stored vectors.
        allowed: From `Snapshot.allowed`.
        first_pass: How segments without a filter are searched.
        refinement: Move each query towards its best documents and search again; None for off.
        lexical: Join the ranking with BM25's by reciprocal rank fusion; None for off.
        texts: (q,) the queries' texts, for `lexical`.

    Returns:
        For each query rows and scores, best first. Scores are dot products, or fusion scores with `lexical`.

    Raises:
        BadInput: If `top_k` or `oversample` is below 1, or an option needs vectors that the index does not keep.
    """
    _check_count("top_k", top_k)
    if oversample is not None:
        _check_count("oversample", oversample)
        if snapshot.manifest.settings.rescore == "none":
            raise BadInput(
                "oversample has no effect on an index of binary codes only (rescore none); leave it out or build with rescore int8"
            )
    depth = top_k if lexical is None else max(top_k, DEPTH)
    factor = OVERSAMPLE if oversample is None else oversample
    if refinement is not None:
        first = rank(snapshot, queries, refinement.documents, factor, allowed, first_pass)
        moved = [
            apply_prf(query, _decoded(snapshot, rows), refinement)
            for query, (rows, _) in zip(queries, first, strict=True)
        ]
        queries = np.array(moved, np.float32).reshape(queries.shape)
    dense = rank(snapshot, queries, depth, factor, allowed, first_pass)
    if lexical is None:
        return dense
    live = snapshot.rows()
    mask = None if all(rows is None for rows in allowed) else np.isin(live, snapshot.rows(allowed))
    return [
        fuse([rows, live[lexical.rank(text, depth, mask)[0]]], top_k)
        for text, (rows, _) in zip(texts, dense, strict=True)
    ]


def _decoded(snapshot: Snapshot, rows: Rows) -> NDArray[np.float32]:
    vectors = snapshot.vectors(rows)
    ranges = snapshot.manifest.ranges
    return vectors.astype(np.float32) if ranges is None else ranges.decode(vectors)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise BadInput(f"{name} is {value!r}; give a whole number of at least 1")
