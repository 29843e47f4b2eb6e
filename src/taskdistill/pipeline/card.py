"""The model card of a run, with the command that gives each score."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.languages import name_and_language
from taskdistill.evaluate.records import Results
from taskdistill.model.backbone import EMBEDDED
from taskdistill.model.model import Model
from taskdistill.model.student import StaticModel
from taskdistill.pipeline.context import RunContext
from taskdistill.recipe.recipe import Recipe
from taskdistill.report.model_card import CardRun, CardScore, make_card
from taskdistill.report.pages import ADAPTERS, BASE, STATIC, TEACHER
from taskdistill.train.course import courses
from taskdistill.versions import versions

EMBEDDED_LICENCE = "Apache-2.0"
TRAIN = "taskdistill train recipe.yaml --out {run}"


def run_card(run: RunContext, model: Model, results: Results | None) -> str:
    """Write the card of a run's model. `results`: scores, or None while there are none."""
    recipe = run.recipe
    base, base_licence = _base(recipe)
    facts = CardRun(
        recipe=recipe,
        command=TRAIN.format(run=run.out.name),
        base_model=None if isinstance(model.module, StaticModel) else base,
        base_licence=base_licence,
        teacher_licence=_teacher_licence(recipe),
        rows={name: len(dataset.rows) for name, dataset in run.inputs.datasets.items()},
        languages=_languages(run),
        hashes={"recipe": recipe.digest()[:16], "data": run.inputs.digest()[:16]},
        versions=versions(),
        warnings=[
            line.removeprefix("warning: ")
            for course in courses(run.log)
            for line in course.lines()[:1]
            if course.change < 0
        ],
        scores=[] if results is None else _scores(run, model, results),
    )
    return make_card(model, model.module.tasks, facts)


def _teacher_licence(recipe: Recipe) -> str | None:
    """Say under which licence the teacher is.

    Returns what the recipe states, or the embedded teacher's own; None if it is not stated.
    """
    return recipe.teacher.licence or (
        EMBEDDED_LICENCE if recipe.teacher.model == EMBEDDED else None
    )


def _base(recipe: Recipe) -> tuple[str | None, str | None]:
    student = recipe.student
    if student.init == "config":
        return None, None
    if student.init in ("teacher", recipe.teacher.model):
        return _shown(recipe.teacher.model), student.licence or _teacher_licence(recipe)
    return _shown(student.init), student.licence


def _shown(model: str) -> str:
    """Name a model without the place where its folder is."""
    return Path(model).name if Path(model).is_dir() else model


def _languages(run: RunContext) -> dict[str, list[str]]:
    """Name the languages of each source.

    Those of its rows, most rows first, or else what the recipe states.
    """
    languages = {}
    for name, dataset in run.inputs.datasets.items():
        counted = Counter(row.lang for row in dataset.rows if row.lang)
        stated = run.recipe.data.sources[name].languages or []
        languages[name] = [language for language, _ in counted.most_common()] or list(stated)
    return languages


def _scores(run: RunContext, model: Model, results: Results) -> list[CardScore]:
    """One row a set for the base, and one for the adapter of its task; the teacher beside."""
    records = results["scores"]
    teacher = records.get(TEACHER, {})
    data = run.recipe.evaluation.root or run.recipe.data.root
    where = f"{run.out.name}-data" if data == "docstrings" else Path(data).name
    largest = (
        f" --max-queries {run.recipe.evaluation.max_queries}"
        if run.recipe.evaluation.max_queries
        else ""
    )
    probe = " --full-train" if run.recipe.evaluation.full_train else ""
    rows = []
    for each in results["sets"]:
        name, kind = each["name"], each["kind"]
        for shown, task in (
            (BASE if run.recipe.stage1 is not None else STATIC, None),
            (ADAPTERS, TASK_TYPES[kind].adapter.value),
        ):
            record = records.get(shown, {}).get(name)
            if record is None or (task is not None and task not in model.module.tasks):
                continue
            low, high = record["interval"]
            again = (
                f"taskdistill evaluate {run.out.name}/model --data {where} --set "
                f"{name}{largest}{probe} --out scores"
            )
            rows.append(
                CardScore(
                    set=name,
                    task=task,
                    metric=record["metric"],
                    score=record["score"],
                    interval=(low, high),
                    teacher=teacher[name]["score"] if name in teacher else None,
                    language=name_and_language(name)[1] or None,
                    command=(
                        TRAIN.format(run=run.out.name)
                        if task is None and model.module.tasks
                        else again
                    ),
                )
            )
    return rows
