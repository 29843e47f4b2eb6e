"""Everything about a run that can be known to be wrong before it reads a row, asks a teacher or trains: checked for `plan` and `train` alike."""

from __future__ import annotations

from pathlib import Path

from taskdistill.model.model import Model
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.check import check_sets, check_student
from taskdistill.pipeline.plan_remote import sketch_teacher
from taskdistill.pipeline.setup import start_student
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.make import check_teacher, make_teacher


def check_models(recipe: Recipe) -> Model:
    """Check settings, teachers and student against each other; no data are looked at and no weights are read.

    Returns:
        The student before its first step, without weights.

    Raises:
        BadInput: On the first setting that does not fit.
    """
    for settings in recipe.all_teachers().values():
        check_teacher(settings)
    student = start_student(recipe, weights=False)
    assert isinstance(student.module, TransformerModel)
    check_student(
        recipe,
        student.module,
        [teacher_dim(settings) for settings in recipe.all_teachers().values()],
    )
    return student


def check_data(recipe: Recipe, root: Path) -> None:
    """Check every name of an evaluation set, before a row of the training data is read.

    Raises:
        BadInput: On the first name that is not there, or gate that has nothing to decide by.
    """
    check_sets(recipe, root)


def teacher_dim(settings: TeacherConfig) -> int | None:
    """Read the size of a teacher's vectors without its weights, and refuse a teacher that does not fit the recipe.

    Returns:
        Its size; None for an endpoint of which the recipe states none.

    Raises:
        BadInput: If the teacher is not there, or of another length or size than the recipe says.
    """
    if settings.kind == "http":
        return settings.embedding_dim
    here = Path(settings.model)
    if settings.kind == "precomputed" or (here.is_dir() and not (here / "config.json").is_file()):
        return make_teacher(settings).embedding_dim
    return sketch_teacher(settings).width
