"""The whole experiment, resumable: freeze, tune, pilot, every arm and seed, costs matched, teacher,
analysis and report.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.ablate.analysis import Evidence, analyze
from taskdistill.ablate.arms import CORE, Arm, arm_of
from taskdistill.ablate.checks import (
    check_base,
    check_negatives,
    check_same,
    freeze,
    seen_in_training,
    warnings,
)
from taskdistill.ablate.context import ExperimentContext, fill_teacher_store, open_context
from taskdistill.ablate.controls import positive_control
from taskdistill.ablate.costs import SAME, matched_factor, teacher_cost
from taskdistill.ablate.measure import test_scores
from taskdistill.ablate.phases import Hyperparameters, untuned
from taskdistill.ablate.pilot import detectable, detectable_sentence
from taskdistill.ablate.report import write_report
from taskdistill.ablate.run_pool import RunPool
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.ablate.settings import Experiment, trial_steps
from taskdistill.ablate.static import is_static
from taskdistill.ablate.training_run import TRIAL_SEED
from taskdistill.ablate.tuning import best_trial, trial_specs
from taskdistill.device import device_name
from taskdistill.errors import BadInput
from taskdistill.evaluate.models.encoder import TeacherEmbedder
from taskdistill.io.atomic import remove_stale_within, write_file
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import write_result
from taskdistill.io.sealed import dump_json, read_sealed, write_sealed
from taskdistill.progress import Progress, SilentProgress, Stop, never
from taskdistill.seeding import later_seed
from taskdistill.train.arithmetic import choose_arithmetic, training_device

TEACHER = "teacher-scores.json"
MATCHED = "matched-steps.json"
PILOT = "pilot.json"


def ablate(
    experiment: Experiment,
    out: Path,
    *,
    recipe_folder: Path | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
    should_stop: Stop = never,
    api_key: str | None = None,
    command: str = "taskdistill ablate recipe.yaml --out ablation",
) -> dict[str, Any]:
    """Run an experiment into a folder; run again after any interruption, it continues.

    `recipe_folder`: where the recipe file is, for relative paths in it. `jobs`: arms trained at
    once, each in a process of its own. `should_stop`: asked before every step; true saves and
    stops. Raises BadInput if the experiment cannot be run as it is, or the folder is another one's.
    """
    if jobs < 1:
        raise BadInput(f"--jobs {jobs}: needs 1 or more")
    progress = progress or SilentProgress()
    check_base(experiment)
    if not is_static(experiment):
        choose_arithmetic(experiment.recipe.precision, training_device(experiment.recipe.device))
    frozen = freeze(experiment, out)
    progress.note(f"frozen as {frozen['digest'][:16]}; expected: {experiment.ablation.expectation}")
    with writer_lock(out / "lock"):
        for name in remove_stale_within(out):
            progress.note(f"removed {name}, left by an interrupted run")
        reopen: dict[str, Any] = {
            "experiment": experiment,
            "out": out,
            "recipe_folder": recipe_folder or Path(),
            "api_key": api_key,
        }
        context = fill_teacher_store(
            open_context(**reopen, progress=progress),
            _distilled(experiment),
            progress,
            partial(open_context, **reopen),
        )
        progress.note(
            f"device {context.device} ({device_name(context.device)}), passes of training in"
            f" {context.arithmetic}"
        )
        check_negatives(experiment, context.root)
        seen = seen_in_training(context, context.sets)
        result = warnings(experiment, context.sets, seen)
        for warning in result:
            progress.note(f"note: {warning}")
        progress.note(detectable_sentence(detectable(experiment, context.sets)))
        with RunPool(
            context=context, jobs=jobs, progress=progress, should_stop=should_stop, reopen=reopen
        ) as pool:
            points, trials = _tune(pool)
            pilot = _pilot(pool, points)
            runs = _run_arms(pool, points)
            matched, more = _match_costs(pool, points, runs)
            runs += more
        evidence = Evidence(
            frozen=frozen,
            runs=runs,
            trials=trials,
            pilot=pilot,
            matched=matched,
            teacher=_score_teacher(context, progress),
            control=positive_control(context),
            teacher_cost=teacher_cost(context, experiment.recipe.first_stage().steps),
            same=check_same(runs),
            seen=seen,
            warnings=result,
        )
        results = analyze(context, evidence)
        write_result(out / "results.json", results)
        write_report(out, results, command)
    return results


def _distilled(experiment: Experiment) -> dict[int, int]:
    """Seed to the most steps for which some arm distils."""
    steps, trial = (
        experiment.recipe.first_stage().steps,
        max(2, trial_steps(experiment.recipe.first_stage().steps, experiment.ablation)),
    )
    result = {
        seed: steps
        for arm in experiment.arms()
        if arm.phases and arm.name in CORE
        for seed in experiment.seeds_of(arm)
    }
    return {**result, later_seed(experiment.recipe.seed, TRIAL_SEED): trial}


def _tune(pool: RunPool) -> tuple[dict[str, Hyperparameters], dict[str, list[dict[str, Any]]]]:
    """Try the same settings for every tuned arm; D comes first, since second phases start from its
    best.
    """
    experiment = pool.context.experiment
    points: dict[str, Hyperparameters] = {}
    trials: dict[str, list[dict[str, Any]]] = {}
    tuned = [arm for arm in experiment.arms() if arm.tuned]
    if experiment.ablation.trials == 1:
        return {arm.name: untuned(experiment) for arm in tuned}, trials
    for wave in (
        [arm for arm in tuned if len(arm.phases) == 1],
        [arm for arm in tuned if len(arm.phases) > 1],
    ):
        if not wave:
            continue
        pool.progress.stage(
            f"tuning {', '.join(arm.name for arm in wave)}: {experiment.ablation.trials} settings"
            " each, on the dev sets"
        )
        specs = {
            arm.name: trial_specs(experiment, arm, points["D"] if len(arm.phases) > 1 else None)
            for arm in wave
        }
        results = pool.run([spec for arm_specs in specs.values() for spec in arm_specs])
        for arm in wave:
            trials[arm.name] = [result for result in results if result["cell"]["arm"] == arm.name]
            points[arm.name] = specs[arm.name][best_trial(trials[arm.name])].point
            pool.progress.note(f"{arm.name}: {_in_words(arm, points[arm.name])}")
    return points, trials


def _in_words(arm: Arm, point: Hyperparameters) -> str:
    words = [f"learning rate {point.lr:g}"]
    if "info_nce" in arm.phases[-1]:
        words.append(f"temperature {point.temperature:g}")
    if len(arm.phases[-1]) > 1:
        words.append(f"weight of distillation {point.weight:g}")
    return ", ".join(words)


def run_training_of(
    experiment: Experiment,
    arm: Arm,
    seed: int,
    points: dict[str, Hyperparameters],
    steps: int | None = None,
) -> TrainingRun:
    """Write one run of an arm as a cell."""
    point = points[arm.like or arm.name] if arm.phases else untuned(experiment)
    first = points["D"] if len(arm.phases) > 1 else None
    return TrainingRun(
        kind="run",
        arm=arm.name,
        seed=seed,
        steps=steps or experiment.recipe.first_stage().steps,
        point=point,
        first=first,
    )


def _pilot(pool: RunPool, points: dict[str, Hyperparameters]) -> dict[str, Any]:
    """Run DC with the first seeds and say the smallest detectable effect before any arm is compared
    with another.
    """
    experiment, path = pool.context.experiment, pool.context.out / PILOT
    arm = arm_of("DC")
    seeds = experiment.seeds_of(arm)[: experiment.ablation.pilot_seeds]
    pool.progress.stage(f"pilot: DC with {len(seeds)} seeds")
    done = pool.run([run_training_of(experiment, arm, seed, points) for seed in seeds])
    result = detectable(experiment, pool.context.sets, done)
    pool.progress.note(detectable_sentence(result))
    write_file(path, dump_json(result))
    return result


def _run_arms(pool: RunPool, points: dict[str, Hyperparameters]) -> list[dict[str, Any]]:
    experiment = pool.context.experiment
    specs = [
        run_training_of(experiment, arm, seed, points)
        for arm in experiment.arms()
        if arm.matched is None
        for seed in experiment.seeds_of(arm)
    ]
    pool.progress.stage(
        f"{len(specs)} runs of {len({spec.arm for spec in specs})} arms,"
        f" {experiment.recipe.first_stage().steps:,} steps each"
    )
    return pool.run(specs)


def _match_costs(
    pool: RunPool, points: dict[str, Hyperparameters], runs: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run contrast alone for as long as it costs what DC and its teacher cost; the factors are
    kept, since seconds vary.
    """
    experiment, path = pool.context.experiment, pool.context.out / MATCHED
    steps = experiment.recipe.first_stage().steps
    factors: dict[str, Any] = (
        read_sealed(path, "remove it to match costs again") if path.is_file() else {}
    )
    if not factors:
        cost = teacher_cost(pool.context, steps)
        budgets = {
            name: [run["budget"] for run in runs if run["cell"]["arm"] == name]
            for name in ("DC", "C")
        }
        means = {
            name: {
                key: float(np.mean([each[key] for each in arm_budgets]))
                for key in ("student_flops", "cpu_seconds")
            }
            for name, arm_budgets in budgets.items()
        }
        for kind in ("flops", "seconds"):
            full = matched_factor(kind, cost, means["DC"], means["C"])
            run = None if full is None else min(full, experiment.ablation.longest)
            factors[kind] = {
                "factor": full,
                "run": run,
                "steps": None if run is None else round(run * steps),
            }
        factors["seconds_cached"] = {
            "factor": means["DC"]["cpu_seconds"] / means["C"]["cpu_seconds"],
            "run": None,
            "steps": None,
        }
        write_sealed(path, factors)
    specs = []
    for arm in experiment.arms():
        if (
            arm.matched is None
            or factors[arm.matched]["run"] is None
            or factors[arm.matched]["run"] <= SAME
        ):
            continue
        specs += [
            run_training_of(experiment, arm, seed, points, factors[arm.matched]["steps"])
            for seed in experiment.seeds_of(arm)
        ]
    if specs:
        pool.progress.stage(f"{len(specs)} runs of contrast alone at equal cost")
    return factors, pool.run(specs) if specs else []


def _score_teacher(context: ExperimentContext, progress: Progress) -> dict[str, Any]:
    """Score the teacher on the test sets and on the dev sets, once."""
    path = context.out / TEACHER
    if path.is_file():
        result: dict[str, Any] = read_sealed(path, "remove it to score the teacher again")
        return result
    progress.stage("scoring the teacher")
    scored = test_scores(TeacherEmbedder(context.teacher, context.stores), context.sets, ())
    write_sealed(path, scored)
    return scored
