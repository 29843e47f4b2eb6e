"""Settings that do not fit the data, the student or the teacher, found before the first step."""

from __future__ import annotations

from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.evaluate.kinds import TASK
from taskdistill.evaluate.sets import EvalSet, find_sets
from taskdistill.job.during import sets_during
from taskdistill.model.adapters import lora_config
from taskdistill.model.backbone import longest_text, rope_theta
from taskdistill.model.student import TransformerModel
from taskdistill.recipe import Adapter, Phase, Recipe, StaticSettings


def check_fit(recipe: Recipe, root: Path, module: TransformerModel, teacher_dim: int | None) -> None:
    """Check what a recipe alone cannot show.

    Args:
        recipe: The recipe.
        root: The data folder.
        module: The student before its first step; its weights may be absent.
        teacher_dim: Size of the teacher's vectors; None while that is not known.

    Raises:
        BadInput: On the first setting that does not fit.
    """
    if recipe.stage1 is not None and recipe.stage1.projection == "none" and teacher_dim not in (None, module.embedding_dim):
        raise BadInput(
            f"stage1.projection is none, but the teacher has {teacher_dim} dimensions and the student {module.embedding_dim}; "
            f"set it to student"
        )
    for name, settings in recipe.phases().items():
        if not isinstance(settings, StaticSettings):
            _check_phase(name, settings, module)
    _check_evaluation(recipe, root, module.embedding_dim)


def evaluation_sets(recipe: Recipe, root: Path) -> list[EvalSet]:
    """Find the sets that a finished model is scored on.

    Args:
        recipe: The recipe.
        root: The data folder, where the recipe names no other.

    Returns:
        The sets; none if `evaluation.sets` is an empty list.

    Raises:
        BadInput: If a set is not there.
    """
    if recipe.evaluation.sets == []:
        return []
    try:
        return find_sets(Path(recipe.evaluation.root or root), recipe.evaluation.sets)
    except BadInput as error:
        raise BadInput(f"evaluation.sets: {error}; give evaluation.root, or set evaluation.sets to [] to do without") from None


def _check_phase(name: str, settings: Phase, module: TransformerModel) -> None:
    most = longest_text(module.backbone, 1 << 30)
    lengths = {f"{name}.max_length": settings.max_length}
    lengths |= {f"{name}.long_sources.{source}": length for source, (_, length) in settings.long_sources.items()}
    for key, length in lengths.items():
        if length > most:
            raise BadInput(f"{key} is {length}, the student's backbone has positions for {most} tokens; set it to that or less")
    if settings.rope_theta is not None and rope_theta(module.backbone) is None:
        kind = module.backbone.config.model_type
        raise BadInput(f"{name}.rope_theta has no effect: a {kind} backbone has no rotary positions; remove it")
    if isinstance(settings, Adapter):
        try:
            lora_config(module.backbone, targets=settings.target_modules)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None


def _check_evaluation(recipe: Recipe, root: Path, width: int) -> None:
    settings = recipe.evaluation
    evaluation_sets(recipe, root)
    sets_during(recipe, root, "stage1")
    if over := [dim for dim in settings.dims or [] if dim > width]:
        raise BadInput(f"evaluation.dims names {over}, the student's vectors have {width} dimensions")
    gated = [task for task, adapter in recipe.adapters.items() if adapter.average is not None and adapter.average.gate]
    if not settings.dev:
        if gated:
            raise BadInput(f"adapters.{gated[0]}.average.gate needs evaluation.dev sets to decide by; name some or set gate: false")
        return
    try:
        served = {TASK[each.kind] for each in find_sets(Path(settings.root or root), settings.dev, split="dev")}
    except BadInput as error:
        raise BadInput(f"evaluation.dev: {error}") from None
    for task in gated:
        if task not in served:
            raise BadInput(
                f"adapters.{task}.average.gate has no development set to decide by: evaluation.dev ({', '.join(settings.dev)}) holds none "
                f"for {task}; name one or set gate: false"
            )
