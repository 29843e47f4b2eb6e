"""What must hold before and after the run, checked by software; and what a reader must know before
trusting a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskdistill.ablate.arms import CORE, arm_of
from taskdistill.ablate.context import ExperimentContext
from taskdistill.ablate.measure import ExperimentSets
from taskdistill.ablate.settings import Experiment
from taskdistill.data.overlap import overlap
from taskdistill.data.rows import row_texts
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.evaluate.set_data import judged_texts
from taskdistill.io.atomic import check_place
from taskdistill.io.folders import read_manifest
from taskdistill.io.outputs import check_output, foreign_names
from taskdistill.io.protection import check_writable
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.model.backbone import resolve
from taskdistill.stats.contrasts import RANDOM_EFFECT
from taskdistill.types import MANIFEST

FROZEN = "experiment.json"


def freeze(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Write down the experiment and what is expected of it, before anything is run; later runs must
    be the same experiment.

    Raises BadInput if the folder is of something else, or of another experiment.
    """
    for name in ("results.json", "report.html"):
        check_output(out / name)
    path = out / FROZEN
    check_place(path)
    check_writable(out)
    frozen = {"digest": experiment.digest(), **json.loads(json.dumps(experiment.frozen()))}
    if path.is_file():
        before = read_sealed(path, "restore it from a copy, or use a new --out")
        if before["digest"] != frozen["digest"]:
            raise BadInput(
                f"{out} was frozen as another experiment ({_difference(before, frozen)}); an"
                " experiment is not changed: use a new --out"
            )
        return frozen
    if os.path.lexists(out) and (not out.is_dir() or foreign_names(out, FROZEN)):
        raise BadInput(f"{out} exists and is no ablation's folder; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_sealed(path, frozen)
    return frozen


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    for key in {**before, **now}:
        a, b = before.get(key), now.get(key)
        if key == "digest" or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            return _difference(a, b, f"{prefix}{key}.")
        return f"{prefix}{key}: {a!r} then, {b!r} now"
    return "other settings"


def check_base(experiment: Experiment) -> None:
    """Refuse a base that was itself distilled: contrast alone would start from the teacher.

    Raises BadInput if the student starts from a model folder that names its teacher.
    """
    init = experiment.recipe.student.init
    if init in ("teacher", "config"):
        return
    folder = resolve(init)
    if not (folder / MANIFEST).is_file():
        return
    if details := read_manifest(folder, "model").get("settings", {}).get("teacher"):
        raise BadInput(
            f"student.init {init!r} was distilled from {details.get('model')!r}: contrast alone on"
            " a distilled base is not contrast alone; start from a checkpoint without a teacher"
        )


def check_negatives(experiment: Experiment, root: Path) -> None:
    """Refuse hard negatives of a mined folder whose manifest says that a teacher chose them.

    Raises BadInput if negatives are used and a source's were mined with a teacher's vectors.
    """
    if not experiment.ablation.negatives:
        return
    for name in experiment.recipe.first_stage().sources:
        for folder in list((root / experiment.recipe.data.sources[name].path).parents)[:3]:
            if not (folder / MANIFEST).is_file():
                continue
            fingerprint = read_manifest(folder).get("fingerprint", {}).get("vectors", {})
            if teacher := fingerprint.get("teacher"):
                raise BadInput(
                    f"the negatives of source {name!r} were mined by the teacher"
                    f" {teacher.get('model')!r}: they are its signal, and C would not be without"
                    " it; mine them with the student (taskdistill mine --model), or set"
                    " ablation.negatives to 0"
                )


def seen_in_training(context: ExperimentContext, sets: ExperimentSets) -> dict[str, dict[str, int]]:
    """Count the test texts that occur in the training rows, exactly or by 13 words in a row.

    Returns set to `texts`, `exact` and `near`.
    """
    train = list(
        dict.fromkeys(
            text
            for dataset in context.datasets.values()
            for row in dataset.rows
            for text in row_texts(row)
        )
    )
    return {
        each.name: overlap(train, judged_texts(sets.data(each))).counts() for each in sets.primary
    }


def check_same(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Hold the finished arms to common random numbers: one checkpoint, and per seed one initial
    projection and one order of rows.

    Returns the checkpoint's hash, and per seed those of batches and projection. Raises WorkFailed
    if two arms differ where they must not.
    """
    outcome: dict[str, Any] = {"checkpoint": None, "seeds": {}}
    for result in results:
        spec, hashes, arm = result["cell"], result["hashes"], arm_of(result["cell"]["arm"])
        _agree(outcome, "checkpoint", hashes["checkpoint"], f"{arm.name} seed {spec['seed']}")
        if not arm.phases:
            continue
        seed_hashes = outcome["seeds"].setdefault(
            str(spec["seed"]), {"batches": None, "projection": None}
        )
        if not arm.large and arm.matched is None:
            _agree(seed_hashes, "batches", hashes["batches"], f"{arm.name} seed {spec['seed']}")
        if hashes["projection"] is not None:
            _agree(
                seed_hashes, "projection", hashes["projection"], f"{arm.name} seed {spec['seed']}"
            )
    return outcome


def _agree(result: dict[str, Any], name: str, value: str, where: str) -> None:
    if result[name] is None:
        result[name] = value
    elif result[name] != value:
        raise WorkFailed(
            f"{where} has other {name} than the arms before it ({value} instead of {result[name]}):"
            " nothing can be compared"
        )


def warnings(
    experiment: Experiment, sets: ExperimentSets, seen: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """List what a reader must know before trusting a number, as far as it is known before
    the run.
    """
    ablation, recipe = experiment.ablation, experiment.recipe
    result = []
    if recipe.student.init == "teacher":
        result.append(
            "The base is made of the teacher's own layers, so every arm starts with something of"
            " the teacher, contrast alone too."
        )
    if ablation.seeds < 5:
        result.append(
            f"{_counted(ablation.seeds, 'seed')} of {', '.join(CORE)}: five are the least from"
            " which chance in training can be told."
        )
    if len(sets.primary) < RANDOM_EFFECT:
        result.append(
            f"{_counted(len(sets.primary), 'test set')} of retrieval: intervals hold for these"
            f" sets, not for sets in general (from {RANDOM_EFFECT} on)."
        )
    sizes = {each.name: len(sets.data(each).queries) for each in sets.primary}  # type: ignore[union-attr]
    if max(sizes.values()) > 3 * min(sizes.values()):
        listed = ", ".join(f"{name} {n:,}" for name, n in sizes.items())
        result.append(
            "The primary metric is the mean over sets of very different size, each counting"
            f" equally ({listed} queries)."
        )
    for name, counts in seen.items():
        if counts["exact"] or counts["near"]:
            share = 100 * (counts["exact"] + counts["near"]) / counts["texts"]
            result.append(
                f"{name}: {counts['exact']:,} texts occur in the training rows and"
                f" {counts['near']:,} share 13 words with them ({share:.1f} %)."
            )
    result.append(
        "What the teacher itself was trained on is not known here: it may have seen the test sets,"
        " and arms with a teacher inherit that."
    )
    if experiment.left_out:
        result.append(
            f"Sources without pairs are left out of every arm: {', '.join(experiment.left_out)}."
        )
    return result


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
