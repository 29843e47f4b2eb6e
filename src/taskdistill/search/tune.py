"""Decide dimension, precision, oversampling, hybrid search and refinement by measuring them all on a dev set."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.search.build import build_index
from taskdistill.search.devset import CUTOFF, CachedEncoder, DevSet, ndcg
from taskdistill.search.hybrid import Bm25, open_bm25
from taskdistill.search.index import Index
from taskdistill.search.passages import PassageSettings
from taskdistill.search.prf import PrfSettings
from taskdistill.search.protocol import SearchEncoder
from taskdistill.search.query import query_vectors, rank_queries
from taskdistill.search.tune_results import Improvement, SearchSetting, SettingResult, Tuning
from taskdistill.tasks import Task
from taskdistill.types import Precision

RESCORES = ("none", Precision.INT8.value, Precision.FLOAT16.value, Precision.FLOAT32.value)
OVERSAMPLES = (2, 5, 10, 20, 50, 100)
REFINEMENTS = tuple(
    PrfSettings(documents=documents, weight=weight, temperature=temperature)
    for documents, weight, temperature in itertools.product((5, 10), (0.1, 0.3, 0.5), (0.02, 0.1))
)
_RESAMPLES = 1000


def tune(
    encoder: SearchEncoder,
    dev: DevSet,
    *,
    dims: Sequence[int],
    task: str | None = Task.RETRIEVAL.value,
    passages: PassageSettings | None = None,
    rescores: Sequence[str] = RESCORES,
    oversamples: Sequence[int] = OVERSAMPLES,
    refinements: Sequence[PrfSettings] = REFINEMENTS,
    hybrid: bool = True,
    stored: tuple[int, str] | None = None,
    tolerance: float = 0.005,
    progress: Callable[[int, int], None] | None = None,
) -> Tuning:
    """Measure the grid of storage settings, each plain, with hybrid search, with the best refinement and with both.

    Every number comes from a real index of the dev set. The refinement is chosen first, by exact search over all
    dimensions. An addition (hybrid, refinement) is only recommended where it gains more than the tolerance over the same
    setting without it and the 95 % interval of the gain is above zero: it costs time on every query and harms some.

    Args:
        encoder: The model; each text is embedded once.
        dev: Documents, queries and qrels that the final test does not see.
        dims: Dimensions to try.
        task: Task of the embeddings.
        passages: How documents are cut.
        rescores: Precisions to try.
        oversamples: Oversampling factors to try.
        refinements: Refinements to try; empty for none.
        hybrid: Whether to try BM25.
        stored: Dimension and precision of an index that exists; it is measured too, and what suits it best is told apart.
        tolerance: nDCG@10, 0 to 1, that the recommendation may lose against the best.
        progress: Told indexes built and their number.

    Returns:
        The table and the recommendation.

    Raises:
        BadInput: If the dev set cannot be judged or the grid is empty.
    """
    if not dims or not rescores or not oversamples:
        raise BadInput(
            "the grid is empty; give at least one dimension, one precision and one oversampling factor"
        )
    queries = dev.judged()
    embedded = CachedEncoder(encoder)
    reference = SearchSetting(encoder.embedding_dim, Precision.FLOAT32.value, None)
    grid = dict.fromkeys(
        [*itertools.product(dims, rescores), *([] if stored is None else [stored])]
    )
    storages = dict.fromkeys([(reference.dim, reference.rescore), *grid])
    with tempfile.TemporaryDirectory(prefix="taskdistill-tune-") as folder:
        benches: dict[tuple[int, str], _TuneContext] = {}
        lexical: Bm25 | None = None
        for dim, rescore in storages:
            path = Path(folder) / f"{dim}-{rescore}"
            index, _ = build_index(
                embedded,
                dev.documents,
                path,
                task=task,
                truncate_dim=dim,
                rescore=rescore,
                passages=passages,
            )
            if hybrid and lexical is None:
                index.build_bm25()
                index.refresh()
                lexical = open_bm25(index.snapshot)
            benches[dim, rescore] = _TuneContext(index, embedded, dev, queries, lexical)
            if progress is not None:
                progress(len(benches), len(storages))
        exact = benches[reference.dim, reference.rescore]
        baseline = exact.scores(reference)[0]
        refinement = _best_refinement(exact, reference, refinements, baseline)
        rows = [
            benches[dim, rescore].measure(setting, baseline)
            for dim, rescore in grid
            for setting in _settings(dim, rescore, oversamples, hybrid, refinement)
        ]
        measured = exact.measure(reference, baseline)[0]
    ordered = sorted((row for row, _ in rows), key=lambda row: (-row.ndcg, row.bytes))
    best = _recommend(rows, tolerance)
    here = [each for each in rows if (each[0].setting.dim, each[0].setting.rescore) == stored]
    return Tuning(
        queries=len(queries),
        documents=len(dev.documents),
        tolerance=tolerance,
        reference=measured,
        rows=tuple(ordered),
        recommended=best,
        stored=_recommend(here, tolerance) if here else None,
        additions=_additions_to(
            replace(best.setting, hybrid=False, refinement=None),
            {row.setting: scores for row, scores in rows},
        ),
    )


def _settings(
    dim: int, rescore: str, oversamples: Sequence[int], hybrid: bool, refinement: PrfSettings | None
) -> Iterator[SearchSetting]:
    factors: Sequence[int | None] = (None,) if rescore == "none" else oversamples
    moved = (None,) if refinement is None or rescore == "none" else (None, refinement)
    for factor, lexical, each in itertools.product(
        factors, (False, True) if hybrid else (False,), moved
    ):
        yield SearchSetting(dim, rescore, factor, lexical, each)


class _TuneContext:
    """An index of the dev set, on which settings are measured."""

    def __init__(
        self,
        index: Index,
        encoder: SearchEncoder,
        dev: DevSet,
        queries: list[str],
        lexical: Bm25 | None,
    ) -> None:
        self._index, self._dev, self._queries = index, dev, queries
        self._texts = [dev.queries[each] for each in queries]
        self._vectors = query_vectors(index.settings, encoder, self._texts)
        self._lexical = lexical
        sizes = index.describe()["bytes"]
        self._bytes = (sizes["codes"] + sizes.get("vectors", 0)) / index.snapshot.live_count
        self._postings = 0 if lexical is None else lexical.bytes / index.snapshot.live_count

    def scores(self, setting: SearchSetting) -> tuple[NDArray[np.float64], float]:
        snapshot = self._index.snapshot
        exact = setting.oversample is None and setting.rescore != "none"
        start = time.perf_counter()
        ranked = rank_queries(
            snapshot,
            self._vectors,
            CUTOFF if self._index.settings.passages is None else 5 * CUTOFF,
            oversample=snapshot.live_count if exact else setting.oversample,
            allowed=snapshot.allowed(None),
            refinement=setting.refinement,
            lexical=self._lexical if setting.hybrid else None,
            texts=self._texts,
        )
        seconds = time.perf_counter() - start
        return ndcg(snapshot, ranked, self._queries, self._dev.qrels), 1000 * seconds / len(
            self._queries
        )

    def measure(
        self, setting: SearchSetting, baseline: NDArray[np.float64]
    ) -> tuple[SettingResult, NDArray[np.float64]]:
        scores, milliseconds = self.scores(setting)
        low, high = _interval(scores - baseline)
        row = SettingResult(
            setting=setting,
            ndcg=float(scores.mean()),
            difference=float((scores - baseline).mean()),
            low=low,
            high=high,
            harmed=float((scores < baseline - 1e-9).mean()),
            helped=float((scores > baseline + 1e-9).mean()),
            bytes=self._bytes + (self._postings if setting.hybrid else 0),
            milliseconds=milliseconds,
        )
        return row, scores


def _best_refinement(
    bench: _TuneContext,
    plain: SearchSetting,
    refinements: Sequence[PrfSettings],
    baseline: NDArray[np.float64],
) -> PrfSettings | None:
    """Return the refinement with the best mean, if it beats none at all."""
    best, found = float(baseline.mean()), None
    for each in refinements:
        mean = float(
            bench.scores(SearchSetting(plain.dim, plain.rescore, None, refinement=each))[0].mean()
        )
        if mean > best:
            best, found = mean, each
    return found


def _additions_to(
    plain: SearchSetting, scores: Mapping[SearchSetting, NDArray[np.float64]]
) -> tuple[Improvement, ...]:
    """Compare hybrid search and refinement with the same storage and oversampling without them, query by query."""
    found = []
    for setting, each in scores.items():
        if setting != plain and replace(setting, hybrid=False, refinement=None) == plain:
            gains = each - scores[plain]
            low, high = _interval(gains)
            harmed, helped = float((gains < -1e-9).mean()), float((gains > 1e-9).mean())
            found.append(Improvement(setting, float(gains.mean()), low, high, harmed, helped))
    return tuple(found)


def _recommend(
    rows: Sequence[tuple[SettingResult, NDArray[np.float64]]], tolerance: float
) -> SettingResult:
    """Return the cheapest row within the tolerance of the best, leaving out additions that do not earn their place."""
    by_setting = {row.setting: scores for row, scores in rows}

    def earned(setting: SearchSetting) -> bool:
        without = [replace(setting, hybrid=False)] * setting.hybrid + [
            replace(setting, refinement=None)
        ] * (setting.refinement is not None)
        gains = [by_setting[setting] - by_setting[each] for each in without]
        return all(float(gain.mean()) > tolerance and _interval(gain)[0] > 0 for gain in gains)

    allowed = [row for row, _ in rows if earned(row.setting)]
    best = max(row.ndcg for row in allowed)
    return min((row for row in allowed if row.ndcg >= best - tolerance), key=_cost)


def _cost(row: SettingResult) -> tuple[float, int, int, float]:
    return row.bytes, _additions(row.setting), row.setting.oversample or 0, -row.ndcg


def _additions(setting: SearchSetting) -> int:
    return int(setting.hybrid) + int(setting.refinement is not None)


def _interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the bootstrap, the same resamples for every setting."""
    rng = np.random.default_rng(0)
    means = differences[rng.integers(0, len(differences), (_RESAMPLES, len(differences)))].mean(
        axis=1
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
