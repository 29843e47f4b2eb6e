"""Evaluate several models on several sets; every finished score is kept on disk and never computed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import EvalSet
from taskdistill.evaluate.kinds import Embedder
from taskdistill.evaluate.languages import families, pooled_retrieval
from taskdistill.evaluate.reading import RankingData
from taskdistill.evaluate.result_cache import ResultCache
from taskdistill.evaluate.results import Record, summarize
from taskdistill.evaluate.set_runner import EvalOptions, SetRunner
from taskdistill.io.atomic import remove_stale_within
from taskdistill.io.folders import versions
from taskdistill.io.outputs import check_output, write_output
from taskdistill.io.sealed import dump_json

__all__ = ["EvalOptions", "evaluate_models"]


def evaluate_models(
    models: Sequence[Embedder],
    sets: Sequence[EvalSet],
    folder: Path | None = None,
    options: EvalOptions | None = None,
    *,
    reference: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Score every model on every set.

    With a folder, each score is written to `folder/cache/` as soon as it is there, under a hash of the model's
    fingerprint, the set's files and the options; what is there already is not computed again. Where compression is
    measured, int8 ranges go to `folder/calibration/`.

    Args:
        models: The models; names must differ.
        folder: Where scores are kept and `results.json` is written; None keeps nothing.
        options: Cuts, the linear probe, and what is measured beside the scores.
        reference: Name of the model the others are compared with; None takes the first.
        progress: Called with per cent done and 100, of what has to be computed; a set counts by the size of its files.
        note: Called with a line for each score.

    Returns:
        What `results.json` holds.

    Raises:
        BadInput: If two models have one name, a set cannot be scored, or a model's vectors cannot; finished scores stay.
    """
    options = options or EvalOptions()
    _check_names([model.name for model in models], reference)
    digests = {each.name: each.digest() for each in sets}
    prints = {model.name: model.fingerprint() for model in models}
    scores = ResultCache(folder / "cache" if folder is not None else None)
    if folder is not None:
        check_output(folder / "results.json")
    calibration = ResultCache(folder / "calibration" if folder is not None else None)
    for cache in (scores, calibration):
        if cache.folder is not None:
            remove_stale_within(cache.folder)
    scorers = [SetRunner(each, digests[each.name], options, scores, calibration) for each in sets]
    pools = families(sets) if options.languages else {}
    pool_keys = {
        (model.name, family): scores.key(
            "pool",
            prints[model.name],
            {lang: digests[each.name] for lang, each in members.items()},
            options.max_queries,
            options.seed,
        )
        for family, members in pools.items()
        for model in models
    }
    waiting = [
        _size(scorer.each)
        for scorer in scorers
        for model in models
        if scorer.missing(prints[model.name])
    ]
    waiting += [
        sum(map(_size, members.values()))
        for family, members in pools.items()
        for model in models
        if scores.read(pool_keys[model.name, family]) is None
    ]
    share = _WeightedProgress(sum(waiting), progress)
    records: dict[str, dict[str, Record]] = {model.name: {} for model in models}
    for scorer in scorers:
        name, size = scorer.each.name, _size(scorer.each)
        for model in models:
            missing = scorer.missing(prints[model.name])

            def tell(done: float, size: float = size) -> None:
                share.told(done * size)

            record = scorer.record(model, prints[model.name], tell)
            records[model.name][name] = record
            _same_dimension(model.name, records[model.name])
            if note is not None:
                cut = (
                    f", {record['cut']:,} of {record['texts']:,} texts cut"
                    if record.get("cut")
                    else ""
                )
                note(f"{name}  {model.name}  {record['metric']} {100 * record['score']:.2f}{cut}")
            share.finished(size if missing else 0)
        scorer.forget()
    result: dict[str, dict[str, Any]] = {model.name: {} for model in models}
    for family, members in pools.items():
        for model in models:
            key = pool_keys[model.name, family]
            pool = scores.read(key)
            if pool is None:
                pool = _pool(model, members, options)
                scores.write(key, pool, model=model.name, set=family)
                share.finished(sum(map(_size, members.values())))
            result[model.name][family] = pool
            if note is not None:
                own_share = sum(each["own_share"] for each in pool["by_language"].values()) / len(
                    members
                )
                note(
                    f"{family}  {model.name}  {len(members)} languages in one pool, {100 * own_share:.1f} % of results in the query's own"
                )
    share.end()
    results = {
        "models": [{"name": model.name, "fingerprint": prints[model.name]} for model in models],
        "sets": [
            {
                "name": each.name,
                "kind": each.kind.value,
                "split": each.split,
                "digest": digests[each.name],
            }
            for each in sets
        ],
        "options": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(options).items()
        },
        **summarize(records, reference),
        "pools": result if pools else {},
        "versions": versions(),
    }
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_output(folder / "results.json", dump_json(results))
    return results


class _WeightedProgress:
    """How much of the work that has to be done is done, in per cent."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.total, self.done, self.progress = total, 0, progress

    def told(self, more: float) -> None:
        if self.progress is not None and self.total:
            self.progress(min(99, int(100 * (self.done + more) / self.total)), 100)

    def finished(self, size: int) -> None:
        self.done += size
        self.told(0)

    def end(self) -> None:
        if self.progress is not None:
            self.progress(100, 100)


def _size(each: EvalSet) -> int:
    return sum(path.stat().st_size for path in each.files)


def _pool(model: Embedder, members: Mapping[str, EvalSet], options: EvalOptions) -> dict[str, Any]:
    data = {
        language: each.load(options.max_queries, options.seed) for language, each in members.items()
    }
    pooled = pooled_retrieval(
        model, {language: each for language, each in data.items() if isinstance(each, RankingData)}
    )
    return {
        "by_language": {language: asdict(each) for language, each in pooled.by_language.items()},
        "cross": dict(pooled.cross),
    }


def _check_names(names: list[str], reference: str | None) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"two models are called {twice[0]!r}; give each its own name")
    if reference is not None and reference not in names:
        raise BadInput(
            f"the reference {reference!r} is not among the models {', '.join(names)}; evaluate it too or name another"
        )


def _same_dimension(name: str, records: dict[str, Record]) -> None:
    dims = {record["dim"]: each for each, record in records.items()}
    if len(dims) > 1:
        listed = ", ".join(f"{dim} on {each}" for dim, each in dims.items())
        raise BadInput(
            f"model {name!r} returned vectors of different dimensions: {listed}; one dimension for all texts is needed"
        )
