"""The positive control: the teacher's own weights, read as a student is read, must score as the
teacher does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from taskdistill.ablate.context import ExperimentContext
from taskdistill.ablate.measure import TokenEmbedder, dev_scores, macro
from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.models.encoder import TeacherEmbedder
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.model.backbone import resolve
from taskdistill.model.folder import read_model
from taskdistill.tasks import Role
from taskdistill.teacher.store import TeacherStore

FILE = "positive-control.json"
TOLERANCE = 0.01
"""A retention further from 1 than this means that students and teacher are not measured alike."""


def positive_control(context: ExperimentContext) -> dict[str, Any] | None:
    """Score the teacher's weights through the students' path, and the teacher through its store, on
    the dev sets; done once.

    Returns `student`, `teacher` (set to score) and `retention`; None where the teacher's weights
    are not here, or where it is told something after the text, which no prompt can say.
    """
    path, recipe = context.out / FILE, context.experiment.recipe
    if path.is_file():
        result: dict[str, Any] = read_sealed(path, "remove it to score again")
        return result
    prompts = _prompts(context.stores)
    if recipe.teacher.kind != "local" or prompts is None:
        return None
    model = read_model(
        resolve(recipe.teacher.model, recipe.teacher.revision),
        trust_remote_code=recipe.teacher.trust_remote_code,
    )
    model.settings = replace(model.settings, prompts=prompts, max_length=recipe.teacher.max_length)
    model.module.to(context.device)
    as_student = TokenEmbedder(
        Encoder(model, threads=recipe.threads or 1), {}, name="teacher as a student"
    )
    student = dev_scores(as_student, context.sets)
    teacher = dev_scores(TeacherEmbedder(context.teacher, context.stores), context.sets)
    teacher_score = macro(teacher, context.sets.dev)
    result = {
        "student": student,
        "teacher": teacher,
        "retention": (
            macro(student, context.sets.dev) / teacher_score if teacher_score > 0 else None
        ),
    }
    write_sealed(path, result)
    return result


def _prompts(stores: Mapping[Any, TeacherStore]) -> dict[str, str] | None:
    """What stands before a text when the teacher reads it, by role."""
    forms = {role.value: stores[role.value].instruction or "{text}" for role in Role}
    if any(not form.endswith("{text}") for form in forms.values()):
        return None
    return {role: form.removesuffix("{text}") for role, form in forms.items()}


def control_warning(control: Mapping[str, Any] | None) -> list[str]:
    """Say if the positive control failed."""
    retention = None if control is None else control["retention"]
    if retention is None or abs(retention - 1) <= TOLERANCE:
        return []
    return [
        "The positive control failed: the teacher's own weights, read as a student, keep"
        f" {100 * retention:.1f} % of its score instead of 100 %. Students and teacher are not"
        " measured alike."
    ]
