"""Settings that do not fit the data, the student or the teacher, found before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.model.backbone import longest_text
from taskdistill.model.lora import lora_config
from taskdistill.model.rope import rope_theta
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.validation import dev_sets, sets_during
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, StaticConfig
from taskdistill.recipe.recipe import Recipe


def check_fit(
    recipe: Recipe, root: Path, module: TransformerModel, teacher_dim: int | None
) -> None:
    """Check what a recipe alone cannot show.

    Args:
        module: The student before its first step; its weights may be absent.
        teacher_dim: Size of the teacher's vectors; None while that is not known.

    Raises:
        BadInput: On the first setting that does not fit.
    """
    check_student(recipe, module, [teacher_dim])
    check_sets(recipe, root)


def check_student(
    recipe: Recipe, module: TransformerModel, teacher_dims: Sequence[int | None]
) -> None:
    """Check settings against the student and the sizes of the teachers.

    Args:
        module: The student before its first step; its weights may be absent.
        teacher_dims: Size of each teacher's vectors; None while that is not known.

    Raises:
        BadInput: On the first setting that does not fit.
    """
    width = None if None in teacher_dims else sum(dim or 0 for dim in teacher_dims)
    if (
        recipe.stage1 is not None
        and recipe.stage1.projection == "none"
        and width not in (None, module.embedding_dim)
    ):
        raise BadInput(
            f"stage1.projection is none, but the teacher has {width} dimensions and the student {module.embedding_dim}; set it to student"
        )
    for name, settings in recipe.phases().items():
        if not isinstance(settings, StaticConfig):
            _check_phase(name, settings, module)
    if over := [dim for dim in recipe.evaluation.dims or [] if dim > module.embedding_dim]:
        raise BadInput(
            f"evaluation.dims names {over}, the student's vectors have {module.embedding_dim} dimensions"
        )


def evaluation_sets(recipe: Recipe, root: Path) -> list[EvalSet]:
    """Find the sets that a finished model is scored on.

    Args:
        root: The data folder, where the recipe names no other.

    Returns:
        The sets; none if `evaluation.sets` is an empty list.

    Raises:
        BadInput: If a set is not there.
    """
    if recipe.evaluation.sets == []:
        return []
    try:
        return find_eval_sets(Path(recipe.evaluation.root or root), recipe.evaluation.sets)
    except BadInput as error:
        raise BadInput(
            f"evaluation.sets: {error}; give evaluation.root, or set evaluation.sets to [] to do without"
        ) from None


def _check_phase(name: str, settings: PhaseConfig, module: TransformerModel) -> None:
    positions = longest_text(module.backbone, 1 << 30)
    lengths = {f"{name}.max_length": settings.max_length}
    lengths |= {
        f"{name}.long_sources.{source}": length
        for source, (_, length) in settings.long_sources.items()
    }
    for key, length in lengths.items():
        if length > positions:
            raise BadInput(
                f"{key} is {length}, the student's backbone has positions for {positions} tokens; set it to that or less"
            )
    if settings.rope_theta is not None and rope_theta(module.backbone) is None:
        kind = module.backbone.config.model_type
        raise BadInput(
            f"{name}.rope_theta has no effect: a {kind} backbone has no rotary positions; remove it"
        )
    if isinstance(settings, AdapterConfig):
        try:
            lora_config(module.backbone, targets=settings.target_modules)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None


def check_sets(recipe: Recipe, root: Path) -> None:
    """Check the names of evaluation sets, and that every gate has a development set of its task to decide by.

    Args:
        root: The data folder, where the recipe names no other.

    Raises:
        BadInput: On the first name that is not there, or gate without a set.
    """
    evaluation_sets(recipe, root)
    sets_during(recipe, root, "stage1")
    served = {each.task.adapter for each in dev_sets(recipe, root)}
    for task, adapter in recipe.adapters.items():
        if adapter.average is not None and adapter.average.gate and task not in served:
            raise BadInput(
                f"adapters.{task}.average.gate has no development set to decide by: evaluation.dev "
                f"({', '.join(recipe.evaluation.dev) or 'empty'}) holds none for {task}; name one or set gate: false"
            )
