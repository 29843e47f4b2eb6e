"""Scores while a phase trains: a few small development sets of every type of task, in seconds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.placement import on_device
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.score import evaluate_set
from taskdistill.evaluate.set_data import RankingData, SetData
from taskdistill.evaluate.task_type import EvalSet, EvaluationTask
from taskdistill.model.model import Model
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.recipe import ValidationConfig as Settings
from taskdistill.tasks import Task
from taskdistill.train.course import MEAN
from taskdistill.train.phases import phase_task
from taskdistill.train.validation import Validation

if TYPE_CHECKING:
    from taskdistill.pipeline.context import RunContext

View = Callable[[], AbstractContextManager[None]]
"""Lets a model in training compute as at inference, for as long as a block runs."""


def sets_during(recipe: Recipe, root: Path, phase: str) -> list[EvalSet]:
    """Find the sets that are scored while a phase trains.

    Args:
        root: The data folder, where the recipe names no other.

    Returns:
        Every set for a phase that trains the base, an adapter's own for an adapter; none where the recipe names no development set.

    Raises:
        BadInput: If a set is not there, or `keep` names none of them nor one of their metrics.
    """
    settings = recipe.evaluation.during or Settings(every=1)
    names = recipe.evaluation.dev if settings.sets is None else settings.sets
    if phase == "static" or not names:
        return []
    try:
        result = find_eval_sets(Path(recipe.evaluation.root or root), names, split="dev")
    except BadInput as error:
        raise BadInput(
            f"evaluation.{'dev' if settings.sets is None else 'during.sets'}: {error}"
        ) from None
    selected_by, _, metric = (settings.keep or MEAN).partition(":")
    types = {each.name: each.task for each in result}
    if selected_by not in (MEAN, *types):
        raise BadInput(
            f"evaluation.during.keep names {selected_by!r}{did_you_mean(selected_by, [MEAN, *types])}"
        )
    known = types[selected_by].metrics if selected_by in types else ()
    if metric and metric not in known:
        raise BadInput(
            f"evaluation.during.keep is {settings.keep!r}, but {selected_by} has no metric {metric!r}{did_you_mean(metric, known) if known else '; remove it'}"
        )
    task = phase_task(phase)
    return [each for each in result if task is None or each.task.adapter is task]


def dev_score(run: RunContext, student: Model, task: Task) -> float:
    """Score the student on the development sets of a task.

    Returns:
        Mean main score over the development sets of the task's kinds, between 0 and 1.

    Raises:
        BadInput: If there is no such set; `check_fit` finds that before the first step.
    """
    recipe = run.recipe
    result = [each for each in dev_sets(recipe, run.inputs.root) if each.task.adapter is task]
    if not result:
        raise BadInput(f"evaluation.dev holds no set for {task}; name one")
    limit, seed = recipe.evaluation.max_queries, recipe.seed
    with on_device(student.module, run.device):
        embedder = EncoderEmbedder(Encoder(student, threads=run.threads))
        return float(
            np.mean(
                [
                    evaluate_set(embedder, each.name, each.task, each.load(limit, seed)).score.score
                    for each in result
                ]
            )
        )


def dev_sets(recipe: Recipe, root: Path) -> list[EvalSet]:
    """Find the development sets of a recipe.

    Args:
        root: The data folder, where the recipe names no other.

    Returns:
        The sets; none if `evaluation.dev` is empty.

    Raises:
        BadInput: If a set is not there.
    """
    if not recipe.evaluation.dev:
        return []
    try:
        return find_eval_sets(
            Path(recipe.evaluation.root or root), recipe.evaluation.dev, split="dev"
        )
    except BadInput as error:
        raise BadInput(f"evaluation.dev: {error}") from None


def make_during(run: RunContext, student: Model, phase: str, view: View) -> Validation | None:
    """Make the callback of a phase.

    Args:
        student: The student in memory, scored as it would be if it were shipped when asked.

    Returns:
        The callback; None if this phase scores nothing.
    """
    # Without `during` the first and the last state are scored all the same: a phase that harms a student must not end unnoticed.
    settings = run.recipe.evaluation.during or Settings(every=run.recipe.phases()[phase].steps)
    sets = sets_during(run.recipe, run.inputs.root, phase)
    if not sets:
        return None
    seed, data, held = run.recipe.seed, list[SetData](), list[EncoderEmbedder]()

    def score() -> dict[str, float]:
        if not data:
            loaded = (each.load(settings.max_queries, seed) for each in sets)
            data.extend(_cut(each, settings.max_documents, seed) for each in loaded)
        scores, mains = dict[str, float](), list[float]()
        # Weights that are divided among processes leave the whole model on the CPU.
        with on_device(student.module, run.device), view():
            if not held:  # its budget holds for the whole phase, so that every score is taken of the same batches
                held.append(
                    EncoderEmbedder(
                        Encoder(student, threads=run.threads),
                        adapters=phase_task(phase) is not None,
                    )
                )
            for each, rows in zip(sets, data, strict=True):
                result = evaluate_set(held[0], each.name, each.task, rows).score
                scores |= {f"{each.name}:{name}": value for name, value in result.scores.items()}
                mains.append(result.score)
        return scores | {MEAN: float(np.mean(mains))}

    types = {each.name: each.task for each in sets}
    main = {name: f"{name}:{task.metric}" for name, task in types.items()}
    return Validation(settings.every, score, _metric(settings.keep, types), main | {MEAN: MEAN})


def _metric(keep: str | None, types: dict[str, EvaluationTask[Any]]) -> str | None:
    """Complete the name of a set with its main metric; None where this phase does not score it."""
    if keep is None or keep == MEAN:
        return keep
    name, _, metric = keep.partition(":")
    return None if name not in types else f"{name}:{metric or types[name].metric}"


def _cut(data: SetData, limit: int | None, seed: int) -> SetData:
    """Cut a corpus to the judged documents and some others."""
    if (
        not isinstance(data, RankingData)
        or data.candidates is not None
        or limit is None
        or len(data.documents) <= limit
    ):
        return data
    judged = {document for result in data.qrels.values() for document in result}
    others = [document for document in data.documents if document not in judged]
    chosen = np.random.default_rng(seed).permutation(len(others))[: max(0, limit - len(judged))]
    document_ids = judged | {others[i] for i in chosen}
    return replace(
        data,
        documents={name: text for name, text in data.documents.items() if name in document_ids},
    )
