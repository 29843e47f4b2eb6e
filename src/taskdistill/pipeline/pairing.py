"""How stage 1 begins, chosen by what student and teacher are to each other.

Every choice is a setting that a recipe may make itself.

The paper starts from a language model that was never trained to embed, and regresses onto the
teacher through a projection drawn at random. A student that already embeds well in a space of its
own has something to lose: a regression onto a foreign space pulls it apart before it lifts it,
while losses that see only the similarities among texts improve it from the first step
(docs/method.md has figures).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from taskdistill.errors import BadInput
from taskdistill.io.atomic import sha256_file
from taskdistill.model import jina
from taskdistill.model.backbone import resolve
from taskdistill.recipe.phases import Stage1Config
from taskdistill.recipe.recipe import Recipe
from taskdistill.types import MANIFEST


class Origin(StrEnum):
    """Where a student comes from, as its teacher sees it."""

    TEACHER = "its teacher"
    EMBEDDING_MODEL = "a trained embedding model of another space"
    LANGUAGE_MODEL = "a model that was not trained to embed"
    RANDOM = "random weights"


@dataclass(frozen=True, kw_only=True)
class Start:
    """What stage 1 takes where the recipe says nothing."""

    weights: Mapping[str, float]
    projection_init: Literal["default", "identity", "least_squares", "rotation"]
    why: str
    menu: Mapping[str, float] = field(default_factory=dict)


STARTS: Mapping[Origin, Start] = {
    Origin.TEACHER: Start(
        weights={"distill": 1.0},
        projection_init="identity",
        why=(
            "it shares the teacher's space, so it regresses onto the teacher's vectors, from "
            "the identity"
        ),
    ),
    Origin.EMBEDDING_MODEL: Start(
        weights={"similarity": 1.0},
        projection_init="least_squares",
        why=(
            "it has a space of its own, so it learns the similarities among texts, which no "
            "rotation of that space changes"
        ),
    ),
    Origin.LANGUAGE_MODEL: Start(
        weights={"distill": 1.0},
        projection_init="least_squares",
        why=(
            "its vectors are not yet worth keeping, so it regresses onto the teacher's "
            "vectors, as the paper does"
        ),
    ),
    Origin.RANDOM: Start(
        weights={"distill": 1.0},
        projection_init="default",
        why=(
            "it knows nothing yet, so it regresses onto the teacher's vectors through a "
            "projection drawn at random, as the paper does"
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What was chosen for a run."""

    origin: Origin
    chosen: Mapping[str, str]
    """Setting of stage 1 to its value, of those that the recipe left open."""

    def lines(self) -> list[str]:
        """Say what was chosen and why.

        Returns one or two sentences; none where the recipe left nothing open.
        """
        if not self.chosen:
            return []
        settings = ", ".join(f"{name} {value}" for name, value in self.chosen.items())
        return [
            f"stage 1: the student starts from {self.origin.value}: {STARTS[self.origin].why}",
            f"  chosen: {settings}",
        ]


def choose_start(recipe: Recipe) -> tuple[Recipe, Pairing | None]:
    """Fill in what stage 1 takes where the recipe leaves it open.

    Returns the recipe with nothing left open, and what was chosen; None without stage 1.
    """
    if recipe.stage1 is None:
        return recipe, None
    origin = student_origin(recipe)
    stage1, chosen = _fill_in(recipe.stage1, origin, recipe)
    long = None if recipe.long is None else _like_stage1(recipe.long, stage1)
    return recipe.model_copy(update={"stage1": stage1, "long": long}), Pairing(
        origin=origin, chosen=chosen
    )


def student_origin(recipe: Recipe) -> Origin:
    """Say where a student comes from.

    Returns the teacher, where the initial model is the teacher's folder or has its weights; a
    trained embedding model, where the folder says how its tokens are pooled; a language model where
    it does not.
    """
    init = recipe.student.init
    if init == "config":
        return Origin.RANDOM
    if init == "teacher":
        return Origin.TEACHER
    try:
        folder = resolve(init)
    except BadInput:
        # `plan` goes on without the files of a model on the Hub, as the paper has; training
        # refuses.
        return Origin.LANGUAGE_MODEL
    if recipe.teacher.kind == "local" and _same_weights(
        folder, recipe.teacher.model, recipe.teacher.revision
    ):
        return Origin.TEACHER
    pooled = (
        (folder / "modules.json").is_file()
        or (folder / MANIFEST).is_file()
        or jina.recognises(folder)
    )
    return Origin.EMBEDDING_MODEL if pooled else Origin.LANGUAGE_MODEL


def _same_weights(folder: Path, teacher: str, revision: str | None) -> bool:
    try:
        other = resolve(teacher, revision)
    except BadInput:
        return False
    if other.resolve() == folder.resolve():
        return True
    weights, other_weights = folder / "model.safetensors", other / "model.safetensors"
    if (
        not (weights.is_file() and other_weights.is_file())
        or weights.stat().st_size != other_weights.stat().st_size
    ):
        return False
    return sha256_file(weights) == sha256_file(other_weights)


def _fill_in(
    stage1: Stage1Config, origin: Origin, recipe: Recipe
) -> tuple[Stage1Config, dict[str, str]]:
    start, update, chosen = STARTS[origin], dict[str, object](), dict[str, str]()
    weights = dict(stage1.weights)
    if not weights:
        weights = (
            {"distill": 1.0}
            if recipe.teachers and origin is Origin.TEACHER
            else dict(start.weights)
        )
        update["weights"] = weights
        chosen["weights"] = ", ".join(f"{term} {weight:g}" for term, weight in weights.items())
        if start.menu:
            update["menu"] = stage1.menu.model_copy(update=dict(start.menu))
    if stage1.projection == "student" and stage1.projection_init == "auto":
        update["projection_init"] = start.projection_init
        chosen["projection_init"] = start.projection_init
    return stage1.model_copy(update=update), chosen


def _like_stage1(long: Stage1Config, stage1: Stage1Config) -> Stage1Config:
    return (
        long
        if long.weights
        else long.model_copy(update={"weights": dict(stage1.weights), "menu": stage1.menu})
    )
