"""Evaluate several models on several sets; a finished score is never computed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.evaluate.languages import families, pooled_retrieval
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.records import PoolScores, Record, Results
from taskdistill.evaluate.result_cache import ResultCache
from taskdistill.evaluate.results import summarize
from taskdistill.evaluate.set_data import RankingData
from taskdistill.evaluate.set_runner import EvalOptions, SetRunner
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.io.atomic import remove_stale_within
from taskdistill.io.outputs import check_output, write_output
from taskdistill.io.sealed import dump_json
from taskdistill.versions import versions

Note = Callable[[str], None]


def evaluate_models(
    models: Sequence[Embedder],
    sets: Sequence[EvalSet],
    folder: Path | None = None,
    options: EvalOptions | None = None,
    *,
    reference: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Note | None = None,
) -> Results:
    """Score every model on every set, and return what `results.json` holds.

    With a folder, each score is written to `folder/cache/` as soon as it is there, under a hash of
    the model's fingerprint, the set's files and the options; what is there already is not computed
    again. Where compression is measured, int8 ranges go to `folder/calibration/`. `models`: the
    models; names must differ. `reference`: name of the model the others are compared with; None
    takes the first. `progress`: called with per cent done and 100, of what has to be computed; a
    set counts by the size of its files. `note`: called with a line for each score. Raises BadInput
    if two models have one name, a set cannot be scored, or a model's vectors cannot; finished
    scores stay.
    """
    options = options or EvalOptions()
    _check_names([model.name for model in models], reference)
    if folder is not None:
        check_output(folder / "results.json")
    scores, calibration = (
        ResultCache(folder / name if folder is not None else None)
        for name in ("cache", "calibration")
    )
    for cache in (scores, calibration):
        if cache.folder is not None:
            remove_stale_within(cache.folder)
    runners = [SetRunner(each, options, scores, calibration) for each in sets]
    fingerprints = {model.name: model.fingerprint() for model in models}
    pools = _Pools(families(sets) if options.languages else {}, options, scores)
    total = sum(
        runner.eval_set.size()
        for runner in runners
        for fingerprint in fingerprints.values()
        if runner.missing(fingerprint)
    )
    total += sum(pools.missing_size(fingerprint) for fingerprint in fingerprints.values())
    weighted = _WeightedProgress(total, progress)
    records: dict[str, dict[str, Record]] = {model.name: {} for model in models}
    for runner in runners:
        name, size = runner.eval_set.name, runner.eval_set.size()
        for model in models:
            fingerprint = fingerprints[model.name]
            missing = runner.missing(fingerprint)

            def report(share: float, size: int = size) -> None:
                weighted.show(share * size)

            record = runner.record(model, fingerprint, report)
            records[model.name][name] = record
            _check_same_dimension(model.name, records[model.name])
            if note is not None:
                note(_score_line(name, model.name, record))
            weighted.add(size if missing else 0)
        runner.forget()
    pooled: dict[str, dict[str, PoolScores]] = {model.name: {} for model in models}
    for family in pools.families:
        for model in models:
            pool = pools.record(model, fingerprints[model.name], family, weighted)
            pooled[model.name][family] = pool
            if note is not None:
                note(_pool_line(family, model.name, pool))
    weighted.end()
    results: Results = {
        "models": [{"name": name, "fingerprint": each} for name, each in fingerprints.items()],
        "sets": [
            {
                "name": runner.eval_set.name,
                "kind": runner.eval_set.kind,
                "split": runner.eval_set.split,
                "digest": runner.digest,
            }
            for runner in runners
        ],
        "options": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(options).items()
        },
        **summarize(records, reference),
        "pools": pooled if pools.families else {},
        "versions": versions(),
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_output(folder / "results.json", dump_json(results))
    return results


class _Pools:
    """Scores of families of retrieval sets, searched crosswise and together, cached by family."""

    def __init__(
        self, pools: Mapping[str, dict[str, EvalSet]], options: EvalOptions, cache: ResultCache
    ) -> None:
        self.families, self._options, self._cache = pools, options, cache
        self._digests = {
            family: {language: each.digest() for language, each in members.items()}
            for family, members in pools.items()
        }

    def key(self, fingerprint: str, family: str) -> str:
        cut = (self._options.max_queries, self._options.seed)
        return self._cache.key("pool", fingerprint, self._digests[family], *cut)

    def size(self, family: str) -> int:
        return sum(each.size() for each in self.families[family].values())

    def missing_size(self, fingerprint: str) -> int:
        return sum(
            self.size(family)
            for family in self.families
            if self._cache.read(self.key(fingerprint, family)) is None
        )

    def record(
        self, model: Embedder, fingerprint: str, family: str, weighted: _WeightedProgress
    ) -> PoolScores:
        key = self.key(fingerprint, family)
        pool: PoolScores | None = self._cache.read(key)
        if pool is None:
            data = {
                language: each.load(self._options.max_queries, self._options.seed)
                for language, each in self.families[family].items()
            }
            scores = pooled_retrieval(
                model, {name: each for name, each in data.items() if isinstance(each, RankingData)}
            )
            pool = scores.to_json()
            self._cache.write(key, pool, model=model.name, set=family)
            weighted.add(self.size(family))
        return pool


class _WeightedProgress:
    """How much of the work that has to be done is done, in per cent."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.total, self.done, self.progress = total, 0, progress

    def show(self, more: float) -> None:
        if self.progress is not None and self.total:
            # 100 is for the end alone: results are still summed up after the last score.
            self.progress(min(99, int(100 * (self.done + more) / self.total)), 100)

    def add(self, size: int) -> None:
        self.done += size
        self.show(0)

    def end(self) -> None:
        if self.progress is not None:
            self.progress(100, 100)


def _score_line(name: str, model: str, record: Record) -> str:
    cut = f", {record['cut']:,} of {record['texts']:,} texts cut" if record.get("cut") else ""
    return f"{name}  {model}  {record['metric']} {100 * record['score']:.2f}{cut}"


def _pool_line(family: str, model: str, pool: PoolScores) -> str:
    shares = [each["own_share"] for each in pool["by_language"].values()]
    return (
        f"{family}  {model}  {len(shares)} languages in one pool,"
        f" {100 * sum(shares) / len(shares):.1f} % of results in the query's own"
    )


def _check_names(names: list[str], reference: str | None) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"two models are called {repeated[0]!r}; give each its own name")
    if reference is not None and reference not in names:
        raise BadInput(
            f"the reference {reference!r} is not among the models {', '.join(names)};"
            " evaluate it too or name another"
        )


def _check_same_dimension(name: str, records: Mapping[str, Record]) -> None:
    dims = {record["dim"]: each for each, record in records.items()}
    if len(dims) > 1:
        listed = ", ".join(f"{dim} on {each}" for dim, each in dims.items())
        raise BadInput(
            f"model {name!r} returned vectors of different dimensions: {listed};"
            " one dimension for all texts is needed"
        )
