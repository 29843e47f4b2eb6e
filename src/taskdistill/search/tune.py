"""Decide how an index is stored and searched by measuring every way on a dev set."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.search.build import build_index
from taskdistill.search.devset import CachedEncoder, DevSet, ndcg_scores, passage_depth
from taskdistill.search.hybrid import Bm25, open_bm25
from taskdistill.search.index import Index
from taskdistill.search.passages import PassageSettings
from taskdistill.search.prf import PrfSettings
from taskdistill.search.query import SearchOptions, query_vectors, rank_queries
from taskdistill.search.settings import RESCORES, SearchEncoder, StorageOptions
from taskdistill.search.tune_results import Improvement, SearchSetting, SettingResult, Tuning
from taskdistill.stats.intervals import mean_interval
from taskdistill.tasks import Task
from taskdistill.types import Precision

OVERSAMPLES = (2, 5, 10, 20, 50, 100)
REFINEMENTS = tuple(
    PrfSettings(documents=documents, weight=weight, temperature=temperature)
    for documents, weight, temperature in itertools.product((5, 10), (0.1, 0.3, 0.5), (0.02, 0.1))
)
RESAMPLES = 1000
"""Of the paired bootstrap over queries."""

EQUAL_SCORES = 1e-9
"""Difference of a query's nDCG@10 up to which it counts as unchanged."""

Scores = NDArray[np.float64]
"""`(q,)` nDCG@10 of each query, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class TuneGrid:
    """What is tried."""

    dims: Sequence[int]
    rescores: Sequence[str] = RESCORES
    oversamples: Sequence[int] = OVERSAMPLES
    refinements: Sequence[PrfSettings] = REFINEMENTS
    """Empty for none."""
    hybrid: bool = True
    """Whether to try BM25."""


def tune(
    encoder: SearchEncoder,
    dev: DevSet,
    grid: TuneGrid,
    *,
    task: str | None = Task.RETRIEVAL.value,
    passages: PassageSettings | None = None,
    stored: tuple[int, str] | None = None,
    tolerance: float = 0.005,
    progress: Callable[[int, int], None] | None = None,
) -> Tuning:
    """Measure the grid of storage settings, each plain, with hybrid search, refined, and both.

    Every number comes from a real index of the dev set. The refinement is chosen first, by exact
    search over all dimensions. An addition (hybrid, refinement) is only recommended where it gains
    more than the tolerance over the same setting without it and the 95 % interval of the gain is
    above zero: it costs time on every query and harms some. `dev`: documents, queries and qrels
    that the final test does not see. `stored`: dimension and precision of an index that exists; it
    is measured too, and what suits it best is reported apart. `tolerance`: nDCG@10, 0 to 1, that
    the recommendation may lose against the best. `progress`: called with indexes built and their
    number.
    """
    if not grid.dims or not grid.rescores or not grid.oversamples:
        raise BadInput(
            "the grid is empty; give at least one dimension, one precision and one oversampling "
            "factor"
        )
    query_count = len(dev.judged())
    cached = CachedEncoder(encoder)
    exact = SearchSetting(
        dim=encoder.embedding_dim, rescore=Precision.FLOAT32.value, oversample=None
    )
    tried = dict.fromkeys(
        [*itertools.product(grid.dims, grid.rescores), *([stored] if stored else [])]
    )
    storages = dict.fromkeys([(exact.dim, exact.rescore), *tried])
    with tempfile.TemporaryDirectory(prefix="taskdistill-tune-") as folder:
        contexts: dict[tuple[int, str], _TuneContext] = {}
        bm25: Bm25 | None = None
        for dim, rescore in storages:
            index, _ = build_index(
                cached,
                dev.documents,
                Path(folder) / f"{dim}-{rescore}",
                task=task,
                storage=StorageOptions(truncate_dim=dim, rescore=rescore, passages=passages),
            )
            if grid.hybrid and bm25 is None:
                # All these indexes have the same passages in the same order: one BM25 serves all.
                index.build_bm25()
                bm25 = open_bm25(index.snapshot)
            contexts[dim, rescore] = _TuneContext(index, cached, dev, bm25)
            if progress is not None:
                progress(len(contexts), len(storages))
        reference = contexts[exact.dim, exact.rescore]
        baseline = reference.scores(exact)[0]
        refinement = _best_refinement(reference, exact, grid.refinements, baseline)
        rows = [
            contexts[dim, rescore].measure(setting, baseline)
            for dim, rescore in tried
            for setting in _settings(dim, rescore, grid, refinement)
        ]
        reference_row = reference.measure(exact, baseline)[0]
    as_stored = [row for row in rows if (row[0].setting.dim, row[0].setting.rescore) == stored]
    recommended = _recommend(rows, tolerance)
    return Tuning(
        queries=query_count,
        documents=len(dev.documents),
        tolerance=tolerance,
        reference=reference_row,
        rows=tuple(sorted((row for row, _ in rows), key=lambda row: (-row.ndcg, row.bytes))),
        recommended=recommended,
        stored=_recommend(as_stored, tolerance) if as_stored else None,
        additions=_improvements(
            replace(recommended.setting, hybrid=False, refinement=None),
            {row.setting: scores for row, scores in rows},
        ),
    )


def _settings(
    dim: int, rescore: str, grid: TuneGrid, refinement: PrfSettings | None
) -> Iterator[SearchSetting]:
    """Yield the ways to search one storage; codes alone are neither rescored nor refined."""
    binary_only = rescore == "none"
    factors: Sequence[int | None] = (None,) if binary_only else grid.oversamples
    refinements = (None,) if refinement is None or binary_only else (None, refinement)
    for factor, use_bm25, prf in itertools.product(
        factors, (False, True) if grid.hybrid else (False,), refinements
    ):
        yield SearchSetting(
            dim=dim, rescore=rescore, oversample=factor, hybrid=use_bm25, refinement=prf
        )


class _TuneContext:
    """An index of the dev set, on which settings are measured."""

    def __init__(
        self, index: Index, encoder: SearchEncoder, dev: DevSet, bm25: Bm25 | None
    ) -> None:
        self._index, self._dev, self._bm25 = index, dev, bm25
        self._queries = dev.judged()
        self._texts = [dev.queries[query] for query in self._queries]
        self._vectors = query_vectors(index.settings, encoder, self._texts)
        sizes, rows = index.sizes(), index.snapshot.live_count
        self._bytes = (sizes["codes"] + sizes.get("vectors", 0)) / rows
        self._bm25_bytes = 0 if bm25 is None else bm25.bytes / rows

    def scores(self, setting: SearchSetting) -> tuple[Scores, float]:
        """Return nDCG@10 of each query and milliseconds a query."""
        snapshot = self._index.snapshot
        # Every row as a candidate is exact search.
        exact = setting.oversample is None and setting.rescore != "none"
        start = time.perf_counter()
        ranked = rank_queries(
            snapshot,
            self._vectors,
            passage_depth(self._index.settings.passages),
            SearchOptions(
                oversample=snapshot.live_count if exact else setting.oversample,
                refinement=setting.refinement,
                bm25=self._bm25 if setting.hybrid else None,
            ),
            texts=self._texts,
        )
        seconds = time.perf_counter() - start
        scores = ndcg_scores(snapshot, ranked, self._queries, self._dev.qrels)
        return scores, 1000 * seconds / len(self._queries)

    def measure(self, setting: SearchSetting, baseline: Scores) -> tuple[SettingResult, Scores]:
        scores, milliseconds = self.scores(setting)
        row = SettingResult(
            setting=setting,
            ndcg=float(scores.mean()),
            difference=float((scores - baseline).mean()),
            **_effects(scores - baseline),
            bytes=self._bytes + (self._bm25_bytes if setting.hybrid else 0),
            milliseconds=milliseconds,
        )
        return row, scores


def _best_refinement(
    context: _TuneContext,
    plain: SearchSetting,
    refinements: Sequence[PrfSettings],
    baseline: Scores,
) -> PrfSettings | None:
    """Return the refinement with the best mean, if it beats none at all."""
    best_mean, best = float(baseline.mean()), None
    for refinement in refinements:
        mean = float(context.scores(replace(plain, refinement=refinement))[0].mean())
        if mean > best_mean:
            best_mean, best = mean, refinement
    return best


def _improvements(
    plain: SearchSetting, scores: Mapping[SearchSetting, Scores]
) -> tuple[Improvement, ...]:
    """Compare hybrid search and refinement with the same without them, query by query."""
    return tuple(
        Improvement(
            setting=setting,
            gain=float((scores[setting] - scores[plain]).mean()),
            **_effects(scores[setting] - scores[plain]),
        )
        for setting in scores
        if setting.additions and replace(setting, hybrid=False, refinement=None) == plain
    )


def _effects(differences: Scores) -> dict[str, float]:
    """Return the interval of a mean difference, and the shares of queries that lose and gain."""
    interval = mean_interval(differences, draws=RESAMPLES, seed=0)
    return {
        "low": interval.low,
        "high": interval.high,
        "harmed": float((differences < -EQUAL_SCORES).mean()),
        "helped": float((differences > EQUAL_SCORES).mean()),
    }


def _recommend(rows: Sequence[tuple[SettingResult, Scores]], tolerance: float) -> SettingResult:
    """Return the cheapest row within the tolerance of the best.

    Additions that do not earn their place are left out.
    """
    scores = {row.setting: each for row, each in rows}

    # Against the same storage and oversampling, so that an addition pays for itself.
    def earned(setting: SearchSetting) -> bool:
        without = []
        if setting.hybrid:
            without.append(replace(setting, hybrid=False))
        if setting.refinement is not None:
            without.append(replace(setting, refinement=None))
        gains = [scores[setting] - scores[each] for each in without]
        return all(float(gain.mean()) > tolerance and _effects(gain)["low"] > 0 for gain in gains)

    def cost(row: SettingResult) -> tuple[float, int, int, float]:
        return row.bytes, row.setting.additions, row.setting.oversample or 0, -row.ndcg

    allowed = [row for row, _ in rows if earned(row.setting)]
    best = max(row.ndcg for row in allowed)
    return min((row for row in allowed if row.ndcg >= best - tolerance), key=cost)
