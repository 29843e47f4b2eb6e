"""The smallest difference that the experiment will probably show, said before its arms are
compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from taskdistill.ablate.measure import WHOLE, ExperimentSets
from taskdistill.ablate.settings import Experiment
from taskdistill.evaluate.set_data import RankingData
from taskdistill.stats.contrasts import (
    RANDOM_EFFECT,
    effective_queries,
    seed_variance,
    smallest_effect,
)


def detectable(
    experiment: Experiment, sets: ExperimentSets, pilot: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Compute the smallest detectable effect from the stated spread over queries and, with a pilot,
    that over seeds.

    `pilot`: results of DC with the first seeds; nothing of them is looked at but how much they
    differ. Returns `sets`, `queries`, `effective_queries`, `query_sd`, `seeds`, `seed_sd` (of one
    arm; None without a pilot), `query_sd_between_seeds` and `smallest_effect`, 0 to 1.
    """
    ablation = experiment.ablation
    queries = [
        len(data.queries)
        for each in sets.primary
        if isinstance(data := sets.data(each), RankingData)
    ]
    counted = effective_queries(queries)
    seed_sd = between = None
    if len(pilot) > 1:
        units = [
            {name: np.array(record["units"][WHOLE]) for name, record in _primary(result).items()}
            for result in pilot
        ]
        seed_sd = float(
            np.std([np.mean([u.mean() for u in each.values()]) for each in units], ddof=1)
        )
        stacked = [np.stack([each[name] for each in units]) for name in units[0]]
        between = float(np.mean([np.sqrt(2 * each.var(axis=0, ddof=1).mean()) for each in stacked]))
    return {
        "sets": len(queries),
        "queries": sum(queries),
        "effective_queries": counted,
        "query_sd": ablation.query_sd,
        "seeds": ablation.seeds,
        "seed_sd": seed_sd,
        "query_sd_between_seeds": between,
        "smallest_effect": (
            smallest_effect(
                ablation.query_sd,
                1,
                seed_sd=math.sqrt(2 * counted * seed_variance(seed_sd or 0.0, ablation.seeds)),
            )
            / math.sqrt(counted)
        ),
    }


def _primary(result: dict[str, Any]) -> dict[str, Any]:
    return {name: record for name, record in result["test"]["sets"].items() if "units" in record}


def detectable_sentence(pilot: dict[str, Any]) -> str:
    """Say what `detectable` found."""
    spread = f"a stated spread of {pilot['query_sd']:.2f} over queries"
    if pilot["seed_sd"] is not None:
        spread += f" and {100 * pilot['seed_sd']:.2f} points over training seeds (pilot)"
    if pilot["sets"] >= RANDOM_EFFECT:
        spread += (
            "; how much the difference varies from set to set is not known before the run and comes"
            " on top"
        )
    return (
        f"smallest effect that {pilot['seeds']} seeds and {pilot['queries']:,} queries (worth"
        f" {pilot['effective_queries']:,.0f} in a macro mean) will probably show:"
        f" {100 * pilot['smallest_effect']:.2f} points, at {spread}"
    )
