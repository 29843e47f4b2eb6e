"""Tuning: the same settings tried for every arm, on the dev sets, with batches that no seed of the
experiment has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import qmc

from taskdistill.ablate.arms import Arm
from taskdistill.ablate.phases import Hyperparameters, untuned
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.ablate.settings import Experiment, trial_steps
from taskdistill.ablate.training_run import TRIAL_SEED
from taskdistill.seeding import later_seed


def trial_points(experiment: Experiment) -> list[Hyperparameters]:
    """Choose the settings that every tuned arm tries: the untuned one, then a Latin hypercube over
    the ranges.

    An arm in which a number does nothing (temperature and weight in distillation alone) tries as
    many learning rates as the others do. Returns `ablation.trials` settings, the same for every
    arm.
    """
    more = experiment.ablation.trials - 1
    first = untuned(experiment)
    if not more:
        return [first]
    ranges = experiment.ablation.ranges
    sampled = qmc.LatinHypercube(d=3, rng=np.random.default_rng(experiment.recipe.seed)).random(
        more
    )
    columns = []
    for (low, high), column in zip(
        (ranges.lr, ranges.temperature, ranges.weight), sampled.T, strict=True
    ):
        columns.append(np.exp(np.log(low) + column * (np.log(high) - np.log(low))))
    return [
        first,
        *(
            Hyperparameters(*(float(f"{value:.4g}") for value in row))
            for row in zip(*columns, strict=True)
        ),
    ]


def trial_specs(
    experiment: Experiment, arm: Arm, first: Hyperparameters | None
) -> list[TrainingRun]:
    """Write an arm's trials as cells.

    `first`: settings of the first of two phases, which are those that D was tuned to.
    """
    steps, seed = (
        trial_steps(experiment.recipe.first_stage().steps, experiment.ablation),
        later_seed(experiment.recipe.seed, TRIAL_SEED),
    )
    if len(arm.phases) > 1:
        steps = max(2, steps)
    return [
        TrainingRun(
            kind="trial",
            arm=arm.name,
            seed=seed,
            steps=steps,
            point=point,
            first=first,
            number=number,
        )
        for number, point in enumerate(trial_points(experiment))
    ]


def best_trial(results: list[dict[str, Any]]) -> int:
    """Choose the trial with the best primary metric on the dev sets; of equals the first.

    `results`: results of an arm's trials, in order.
    """
    scores = [result["curve"][-1]["score"] for result in results]
    return scores.index(max(scores))
