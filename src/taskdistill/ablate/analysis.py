"""From finished runs to results: findings, verdict, curves, secondary scores, budgets and examples,
as plain data.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.ablate.arms import CORE, arm_of
from taskdistill.ablate.context import ExperimentContext
from taskdistill.ablate.contrasts import CLAIM, Contrast, contrasts, values
from taskdistill.ablate.controls import control_warning
from taskdistill.ablate.curves import all_crossings, at_equal_distance, mean_curve, still_changing
from taskdistill.ablate.measure import WHOLE
from taskdistill.ablate.query_results import example_queries, length_results
from taskdistill.ablate.sensitivity import on_fewer_sets, sensitivity_warning
from taskdistill.ablate.verdict import deciding_sentence, judge
from taskdistill.encode.batches import cores
from taskdistill.stats.contrasts import ContrastResult, analyze_contrasts, holm
from taskdistill.stats.intervals import student_interval
from taskdistill.versions import versions

Run = Mapping[str, Any]
Runs = Sequence[Run]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an experiment has measured when all its runs are done."""

    frozen: Mapping[str, Any]
    """What was fixed before the first step."""
    runs: Runs
    trials: Mapping[str, Runs]
    """Arm to its runs of tuning."""
    pilot: Mapping[str, Any]
    """What `detectable` said before the runs."""
    matched: Mapping[str, Any]
    """Arms of equal cost, and their factors."""
    teacher: Mapping[str, Any]
    """Its own scores on the sets."""
    control: Mapping[str, Any] | None
    teacher_cost: Mapping[str, Any]
    same: Mapping[str, Any]
    """What the arms shared, as hashes."""
    seen: Mapping[str, Any]
    """How much of each set was trained on."""
    warnings: Sequence[str]


def analyze(context: ExperimentContext, evidence: Evidence) -> dict[str, Any]:
    """Put everything together that results.json holds."""
    experiment = context.experiment
    names = [
        arm.name
        for arm in experiment.arms()
        if any(run["cell"]["arm"] == arm.name for run in evidence.runs)
    ]
    by_arm = {name: [run for run in evidence.runs if run["cell"]["arm"] == name] for name in names}
    units = units_of(by_arm)
    dims = [variant for variant in units["DC"] if variant.startswith("dim-")]
    request = contrasts(names, dims)
    differences = {each.name: values(units, each.weights) for each in request}
    means = {f"arm {name}": values(units, {(name, WHOLE): 1.0}) for name in names}
    findings = analyze_contrasts(differences | means)
    verdict = judge(
        findings,
        [each.name for each in request if each.family == CLAIM],
        experiment.ablation.margin / 100,
        experiment.ablation.seeds,
    )
    fewer = on_fewer_sets(
        units, evidence.seen, experiment.ablation.margin / 100, experiment.ablation.seeds
    )
    curves = _curves(by_arm, evidence.teacher_cost)
    late = [
        f"Ranking still changing: {text}. A longer run could end in another order."
        for text in curves["still_changing"]
    ]
    return {
        "name": experiment.recipe.name,
        "frozen": dict(evidence.frozen),
        "verdict": {
            **verdict.to_json(),
            "would_decide": [
                deciding_sentence(name, each) for name, each in verdict.deciding.items()
            ],
        },
        "on_fewer_sets": fewer,
        "smallest_detectable": dict(evidence.pilot),
        "warnings": [
            *evidence.warnings,
            *late,
            *control_warning(evidence.control),
            *_after(findings, by_arm, evidence.matched),
            *sensitivity_warning(fewer, verdict.state),
        ],
        "arms": {
            name: {
                "about": _about(name, evidence.matched),
                **_arm(by_arm[name], findings[f"arm {name}"], evidence.teacher, context),
            }
            for name in names
        },
        "contrasts": _contrasts(request, findings, experiment.ablation.margin / 100),
        "teacher": {
            name: {k: v for k, v in record.items() if k != "units"}
            for name, record in evidence.teacher.items()
        },
        "positive_control": None if evidence.control is None else dict(evidence.control),
        "teacher_cost": dict(evidence.teacher_cost),
        "curves": curves,
        "matched": dict(evidence.matched),
        "tuning": {
            name: [_trial(run) for run in arm_trials]
            for name, arm_trials in evidence.trials.items()
        },
        "lengths": length_results(context, units),
        "examples": example_queries(context, units),
        "same": dict(evidence.same),
        "seen_in_training": dict(evidence.seen),
        "sets": [
            {
                "name": each.name,
                "kind": each.kind,
                "split": each.split,
                "dev": each in context.sets.dev,
            }
            for each in _sets(context)
        ],
        "set_hashes": context.sets.digests(),
        "data": context.counts,
        "machine": {"cores": cores(), "processor": platform.machine(), "system": platform.system()},
        "versions": versions(),
    }


def _sets(context: ExperimentContext) -> list[Any]:
    return [*context.sets.primary, *context.sets.secondary, *context.sets.dev]


def units_of(by_arm: Mapping[str, Runs]) -> dict[str, dict[str, dict[str, NDArray[np.float64]]]]:
    """Stack the results of every query.

    `by_arm`: arm to its runs, in the order of seeds. Returns arm to variant to set to (seeds,
    queries).
    """
    result: dict[str, dict[str, dict[str, NDArray[np.float64]]]] = {}
    for name, runs in by_arm.items():
        sets = {
            each: record["units"]
            for each, record in runs[0]["test"]["sets"].items()
            if "units" in record
        }
        variants = next(iter(sets.values()))
        result[name] = {
            variant: {
                each: np.array(
                    [run["test"]["sets"][each]["units"][variant] for run in runs], dtype=np.float64
                )
                for each in sets
            }
            for variant in variants
        }
    return result


def _about(name: str, matched: Mapping[str, Any]) -> str:
    """Say what an arm is; one that may not have as many steps as equal cost would give it is not
    called equal.
    """
    arm = arm_of(name)
    factor = matched.get(arm.matched or "")
    if not factor or factor["run"] is None or factor["run"] >= factor["factor"]:
        return arm.about
    return (
        f"C with {factor['run']:.1f} times the steps; as much as DC with its teacher would be"
        f" {factor['factor']:,.0f} times"
    )


def _arm(
    runs: Runs, finding: ContrastResult, teacher: Mapping[str, Any], context: ExperimentContext
) -> dict[str, Any]:
    sets = runs[0]["test"]["sets"]
    primary = [each.name for each in context.sets.primary]
    reference = float(np.mean([teacher[each]["score"] for each in primary]))
    recall = [
        float(np.mean([run["test"]["sets"][each]["scores"]["Recall@100"] for each in primary]))
        for run in runs
    ]
    return {
        "score": finding.to_json(),
        "retention": finding.all.value / reference if reference > 0 else None,
        "recall_at_100": _seeds(recall),
        "variants": {
            variant: _seeds(
                [
                    float(
                        np.mean(
                            [
                                np.mean(run["test"]["sets"][each]["units"][variant])
                                for each in primary
                            ]
                        )
                    )
                    for run in runs
                ]
            )
            for variant in sets[primary[0]]["units"]
        },
        "sets": {
            each: {
                "metric": record["metric"],
                **_seeds([run["test"]["sets"][each]["score"] for run in runs]),
            }
            for each, record in sets.items()
        },
        "runs": [
            {
                "seed": run["cell"]["seed"],
                "score": float(np.mean([run["test"]["sets"][each]["score"] for each in primary])),
                "settings": run["cell"]["point"],
                "first_settings": run["cell"]["first"],
                "steps": run["cell"]["steps"],
                "hashes": run["hashes"],
                "budget": run["budget"],
                "curve": run["curve"],
                "threads": run["threads"],
            }
            for run in runs
        ],
    }


def _seeds(values: Sequence[float]) -> dict[str, Any]:
    interval = student_interval(values)
    return {
        "mean": float(np.mean(values)),
        "interval": None if interval is None else list(interval),
        "seeds": list(values),
    }


def _contrasts(
    request: Sequence[Contrast], findings: Mapping[str, ContrastResult], margin: float
) -> list[dict[str, Any]]:
    adjusted: dict[str, float] = {}
    for family in dict.fromkeys(each.family for each in request if each.family != CLAIM):
        adjusted |= holm(
            {
                each.name: findings[each.name].p_two_sided
                for each in request
                if each.family == family
            }
        )
    return [
        {
            "name": each.name,
            "family": each.family,
            "asks": each.asks,
            **findings[each.name].to_json(),
            "p_equivalent": findings[each.name].p_equivalent(margin),
            "p_holm": adjusted.get(each.name),
            "exploratory": each.family != CLAIM,
        }
        for each in request
    ]


def _curves(by_arm: Mapping[str, Runs], cost: Mapping[str, Any]) -> dict[str, Any]:
    start = by_arm["A0"][0]["curve"][-1]["score"]
    shown = [name for name in by_arm if arm_of(name).phases and arm_of(name).like is None]
    points = {name: [run["curve"] for run in by_arm[name]] for name in shown}
    on_steps = {name: mean_curve(points[name], "step", start) for name in shown}
    on_seconds = {name: mean_curve(points[name], "cpu_seconds", start) for name in shown}
    core = {name: points[name] for name in CORE}
    result: dict[str, Any] = {
        "start": start,
        "steps": {name: curve.tolist() for name, curve in on_steps.items()},
        "cpu_seconds": {name: curve.tolist() for name, curve in on_seconds.items()},
        "crossings_on_steps": all_crossings(on_steps),
        "crossings_on_cpu_seconds": all_crossings(on_seconds),
        "still_changing": still_changing({name: on_steps[name] for name in CORE}),
    }
    if cost["cpu_seconds"] is not None:
        paid = {
            name: (
                float(cost["cpu_seconds"])
                if any("distill" in t for t in arm_of(name).phases)
                else 0.0
            )
            for name in shown
        }
        with_teacher = {
            name: mean_curve(points[name], "cpu_seconds", start, paid[name]) for name in shown
        }
        result["cpu_seconds_with_teacher"] = {
            name: curve.tolist() for name, curve in with_teacher.items()
        }
        result["crossings_on_cpu_seconds_with_teacher"] = all_crossings(with_teacher)
    reach, scores = at_equal_distance(
        {name: mean_curve(seed_curves, "distance", start) for name, seed_curves in core.items()}
    )
    result["at_equal_distance"] = {"distance": reach, "scores": scores}
    return result


def _trial(run: Run) -> dict[str, Any]:
    point = run["curve"][-1]
    return {
        "number": run["cell"]["number"],
        **run["cell"]["point"],
        "score": point["score"],
        "scores": point["scores"],
        "steps": run["cell"]["steps"],
    }


def _after(
    findings: Mapping[str, ContrastResult], by_arm: Mapping[str, Runs], matched: Mapping[str, Any]
) -> list[str]:
    """Warnings that only the results give."""
    result = []
    control = findings.get("D-shuffled - A0")
    if control is not None and control.bounds[0] > 0:
        result.append(
            "The negative control beats the untrained base: permuted targets help, so part of what"
            " distillation gains is no knowledge of the teacher's."
        )
    clipped = {
        name: np.mean(
            [run["budget"]["clipped_steps"] / run["budget"]["steps"] for run in by_arm[name]]
        )
        for name in CORE
    }
    if max(clipped.values()) - min(clipped.values()) > 0.1:
        listed = ", ".join(f"{name} {100 * share:.0f} %" for name, share in clipped.items())
        result.append(
            f"Gradients were clipped in different shares of the steps ({listed}): the arms' steps"
            " differ in length for that reason too."
        )
    for kind, message in (("flops", "floating-point work"), ("seconds", "CPU-seconds")):
        each = matched.get(kind) or {}
        if each.get("factor") is None:
            result.append(
                f"What the teacher costs in {message} is not known here, so contrast alone was not"
                f" run at equal {message}."
            )
        elif f"C-{kind}" in by_arm and each["factor"] > each["run"]:
            result.append(
                f"Equal {message} would give contrast alone {each['factor']:,.0f} times the steps;"
                f" it got {each['run']:.1f} times, the most allowed."
            )
    skipped = sum(run["budget"]["skipped_steps"] for runs in by_arm.values() for run in runs)
    if skipped:
        result.append(f"{skipped} steps with a loss or gradient that was not finite were skipped.")
    return result
