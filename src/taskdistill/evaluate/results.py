"""Results as plain data: one score on disk, aggregation, and the machine-readable file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from taskdistill.evaluate.compression import CompressionResult, mean_cells, verdict
from taskdistill.evaluate.datasets import task_types
from taskdistill.evaluate.records import Comparison, Means, ModelScore, Record, Results, Retention
from taskdistill.evaluate.score import SetScore
from taskdistill.stats.intervals import Units, interval, paired_difference

_DIGITS = 6


def to_record(result: SetScore, cells: Sequence[CompressionResult] = ()) -> Record:
    """Turn a result into plain data; `units` are rounded to six digits."""
    estimate = interval(result.score.units)
    return {
        "set": result.set,
        "kind": result.kind,
        "metric": result.metric,
        "score": result.score.score,
        "interval": [estimate.low, estimate.high],
        "scores": dict(result.score.scores),
        "by_language": result.score.by_language(),
        "n": result.n,
        "dim": result.dim,
        "texts": result.texts,
        "cut": result.cut,
        "encode_seconds": result.encode_seconds,
        "score_seconds": result.score_seconds,
        "notes": list(result.score.notes),
        "lengths": [],
        "compression": [cell.to_json() for cell in cells],
        "units": {
            language: np.round(units, _DIGITS).tolist()
            for language, units in result.score.units.items()
        },
    }


def units_of(record: Record) -> Units:
    """Return the units of a record as arrays."""
    return {
        language: np.asarray(units, dtype=np.float64) for language, units in record["units"].items()
    }


def cells_of(record: ModelScore) -> list[CompressionResult]:
    """Return the compression matrix of a record, empty where none was measured."""
    return [CompressionResult.from_json(cell) for cell in record["compression"]]


def mean_matrix(records: Mapping[str, ModelScore]) -> tuple[CompressionResult, ...]:
    """Average the compression matrices of a model; nothing where none was measured.

    Only retrieval sets count where there are any, since only they search.
    """
    measured = [record for record in records.values() if record["compression"]]
    searched = [record for record in measured if record["kind"] == "retrieval"]
    return mean_cells([cells_of(record) for record in searched or measured])


def aggregate(
    scores: Mapping[str, float], types: Mapping[str, str], order: Sequence[str] | None = None
) -> Means:
    """Average scores over sets as section 8.3 of the paper does.

    `types`: set to its type, or to mteb's type of task. `order`: the types in the order of reports,
    others follow; None takes that of `task_types`.
    """
    if order is None:
        order = [task.name for task in task_types()]
    present = dict.fromkeys(types[name] for name in scores)
    by_type = {
        str(each): float(np.mean([score for name, score in scores.items() if types[name] == each]))
        for each in (
            *(name for name in order if name in present),
            *(name for name in present if name not in order),
        )
    }
    if not by_type:
        return {"sets": None, "types": None, "by_type": {}}
    return {
        "sets": float(np.mean(list(scores.values()))),
        "types": float(np.mean(list(by_type.values()))),
        "by_type": by_type,
    }


def task_score(splits: Mapping[str, Mapping[str, float]]) -> float:
    """Average a benchmark task's splits, each the mean over its subsets (section 8.3).

    Subsets are languages, mostly; a split maps them to main scores.
    """
    return float(np.mean([np.mean(list(subsets.values())) for subsets in splits.values()]))


def summarize(records: Mapping[str, Mapping[str, Record]], reference: str | None = None) -> Results:
    """Put records together: scores, averages, and how each model compares with a reference.

    The reference is mostly the teacher; None takes the first of several.
    """
    names = list(records)
    base = reference if reference is not None else (names[0] if len(names) > 1 else None)
    kinds = {name: record["kind"] for sets in records.values() for name, record in sets.items()}
    scores = {
        model: {
            name: cast(ModelScore, {k: v for k, v in record.items() if k != "units"})
            for name, record in sets.items()
        }
        for model, sets in records.items()
    }
    means = {
        model: aggregate({name: record["score"] for name, record in sets.items()}, kinds)
        for model, sets in records.items()
    }
    retention: dict[str, Retention] = {}
    comparisons: list[Comparison] = []
    against: Mapping[str, Record] = records[base] if base is not None else {}
    for model, sets in records.items():
        if base is None or model == base:
            continue
        shared = {name: (record, against[name]) for name, record in sets.items() if name in against}
        ratios = {
            name: a["score"] / b["score"] for name, (a, b) in shared.items() if b["score"] > 0
        }
        retention[model] = {
            "sets": ratios,
            "mean": float(np.mean(list(ratios.values()))) if ratios else None,
        }
        for name, (candidate, reference_units) in shared.items():
            result = paired_difference(units_of(candidate), units_of(reference_units))
            comparisons.append(
                {
                    "set": name,
                    "model": model,
                    "against": base,
                    "difference": result.estimate.to_json(),
                    "p": result.p,
                }
            )
    verdicts = {
        model: verdict(cells) for model, sets in records.items() if (cells := mean_matrix(sets))
    }
    return {
        "reference": base,
        "scores": scores,
        "means": means,
        "retention": retention,
        "comparisons": comparisons,
        "verdicts": verdicts,
    }
