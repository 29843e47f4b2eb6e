"""Scores while a phase trains: a few small development sets of every type of task, in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.placement import on_device
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.dev import DevScorer
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.set_data import RankingData, SetData
from taskdistill.evaluate.task_type import EvalSet, EvaluationTask
from taskdistill.model.model import Model
from taskdistill.pipeline.context import RunContext
from taskdistill.recipe.recipe import Recipe, ValidationConfig
from taskdistill.tasks import Task
from taskdistill.train.course import MEAN
from taskdistill.train.phases import phase_task
from taskdistill.train.validation import Validation

Inference = Callable[[], AbstractContextManager[None]]
"""Lets a model in training compute as at inference, for as long as a block runs."""


def dev_sets(recipe: Recipe, root: Path) -> list[EvalSet]:
    """Find the development sets of a recipe; none if `evaluation.dev` is empty.

    `root`: the data folder, where the recipe names no other.
    """
    return _find_dev_sets(recipe, root, recipe.evaluation.dev, "dev")


def validation_sets(recipe: Recipe, root: Path, phase: str) -> list[EvalSet]:
    """Find the sets that are scored while a phase trains.

    All for the base, an adapter's own for an adapter.
    """
    settings = recipe.evaluation.during or ValidationConfig(every=1)
    names = recipe.evaluation.dev if settings.sets is None else settings.sets
    if phase == "static" or not names:
        return []
    sets = _find_dev_sets(recipe, root, names, "dev" if settings.sets is None else "during.sets")
    selected_by, _, metric = (settings.keep or MEAN).partition(":")
    types = {each.name: each.task for each in sets}
    if selected_by not in (MEAN, *types):
        raise BadInput(
            f"evaluation.during.keep names {selected_by!r}"
            f"{did_you_mean(selected_by, [MEAN, *types])}"
        )
    known = types[selected_by].metrics if selected_by in types else ()
    if metric and metric not in known:
        advice = did_you_mean(metric, known) if known else "; remove it"
        raise BadInput(
            f"evaluation.during.keep is {settings.keep!r}, but {selected_by} has no metric "
            f"{metric!r}{advice}"
        )
    task = phase_task(phase)
    return [each for each in sets if task is None or each.task.adapter is task]


def _find_dev_sets(recipe: Recipe, root: Path, names: Sequence[str], key: str) -> list[EvalSet]:
    if not names:
        return []
    try:
        return find_eval_sets(Path(recipe.evaluation.root or root), names, split="dev")
    except BadInput as error:
        raise BadInput(f"evaluation.{key}: {error}") from None


def dev_score(run: RunContext, student: Model, task: Task) -> float:
    """Score the student on the development sets of a task.

    The mean of their main metrics, between 0 and 1.
    """
    recipe = run.recipe
    sets = [each for each in dev_sets(recipe, run.inputs.root) if each.task.adapter is task]
    if not sets:
        raise BadInput(f"evaluation.dev holds no set for {task}; name one")
    scorer = DevScorer(sets, limit=recipe.evaluation.max_queries, seed=recipe.seed)
    with on_device(student.module, run.device):
        return scorer(EncoderEmbedder(Encoder(student, threads=run.threads))).mean


def make_validation(
    run: RunContext, student: Model, phase: str, inference: Inference
) -> Validation | None:
    """Make the callback that scores the student in memory as it would be if shipped then.

    Returns None if this phase scores nothing.
    """
    # Without `during` the first and the last state are scored all the same: a phase that harms a
    # student must not end unnoticed.
    settings = run.recipe.evaluation.during or ValidationConfig(
        every=run.recipe.phases()[phase].steps
    )
    sets = validation_sets(run.recipe, run.inputs.root, phase)
    if not sets:
        return None
    seed = run.recipe.seed

    @cache
    def scorer() -> DevScorer:
        return DevScorer(
            sets,
            limit=settings.max_queries,
            seed=seed,
            prepare=lambda data: _cut(data, settings.max_documents, seed),
        )

    @cache
    def embedder() -> EncoderEmbedder:
        # One for the whole phase: its token budget decides the batches, so that every score is
        # taken of the same ones.
        encoder = Encoder(student, threads=run.threads)
        return EncoderEmbedder(encoder, adapters=phase_task(phase) is not None)

    def score() -> dict[str, float]:
        dev_data = scorer()
        # Weights that are divided among processes leave the whole model on the CPU.
        with on_device(student.module, run.device), inference():
            scores = dev_data(embedder())
        values = {
            f"{name}:{metric}": value
            for name, each in scores.by_set.items()
            for metric, value in each.scores.items()
        }
        return values | {MEAN: scores.mean}

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
    judged = {document for relevance in data.qrels.values() for document in relevance}
    others = [document for document in data.documents if document not in judged]
    chosen = np.random.default_rng(seed).permutation(len(others))[: max(0, limit - len(judged))]
    document_ids = judged | {others[i] for i in chosen}
    return replace(
        data,
        documents={name: text for name, text in data.documents.items() if name in document_ids},
    )
