"""What single queries and lengths of documents say about the arms."""

from __future__ import annotations

from typing import Any

import numpy as np

from taskdistill.ablate.arms import CORE
from taskdistill.ablate.context import ExperimentContext
from taskdistill.ablate.contrasts import Units
from taskdistill.ablate.measure import WHOLE
from taskdistill.evaluate.breakdowns import by_length
from taskdistill.evaluate.set_data import RankingData
from taskdistill.evaluate.task_type import Score

EXAMPLES = 10
"""Queries shown that the combination helps most, and as many that it harms."""


def length_results(context: ExperimentContext, units: Units) -> dict[str, list[dict[str, Any]]]:
    """Score by length of the relevant document, of the core arms, mean over seeds."""
    result: dict[str, list[dict[str, Any]]] = {}
    for each in context.sets.primary:
        data = context.sets.data(each)
        rows: dict[str, dict[str, Any]] = {}
        for name in ("A0", *CORE):
            mean = units[name][WHOLE][each.name].mean(axis=0)
            for bucket in by_length(each.task, data, Score(float(mean.mean()), {}, {"": mean})):
                rows.setdefault(bucket.label, {"characters": bucket.label, "queries": bucket.n})[
                    name
                ] = bucket.score
        result[each.name] = list(rows.values())
    return result


def example_queries(context: ExperimentContext, units: Units) -> dict[str, Any]:
    """The queries that DC helps and harms most against the better single arm, mean over seeds."""
    primary = [each.name for each in context.sets.primary]
    overall = {
        name: float(np.mean([units[name][WHOLE][each].mean() for each in primary]))
        for name in ("D", "C")
    }
    against = max(overall, key=lambda name: overall[name])
    rows: list[dict[str, Any]] = []
    for each in context.sets.primary:
        data = context.sets.data(each)
        assert isinstance(data, RankingData)
        scores = {name: units[name][WHOLE][each.name].mean(axis=0) for name in CORE}
        gain = scores["DC"] - scores[against]
        for place, (query, text) in enumerate(data.queries.items()):
            rows.append(
                {
                    "set": each.name,
                    "id": query,
                    "query": text[:160],
                    "gain": float(gain[place]),
                    **{n: float(s[place]) for n, s in scores.items()},
                }
            )
    ordered = sorted(rows, key=lambda row: float(row["gain"]))
    return {
        "against": against,
        "helped": [row for row in ordered[::-1][:EXAMPLES] if row["gain"] > 0],
        "harmed": [row for row in ordered[:EXAMPLES] if row["gain"] < 0],
        "counts": {
            "helped": sum(r["gain"] > 0 for r in rows),
            "harmed": sum(r["gain"] < 0 for r in rows),
            "queries": len(rows),
        },
    }
