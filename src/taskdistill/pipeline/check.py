"""Every rule that needs data or models, checked before the first step for plan and train alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.io.atomic import check_place
from taskdistill.io.protection import check_writable
from taskdistill.model.backbone import longest_text
from taskdistill.model.flops import ModelSize, size_of
from taskdistill.model.layout import longest_input
from taskdistill.model.lora import lora_config
from taskdistill.model.model import Model
from taskdistill.model.rope import rope_theta
from taskdistill.model.sketch import ModelSketch, sketch
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.resume import check_run_folder
from taskdistill.pipeline.setup import start_student
from taskdistill.pipeline.teacher_store import store_root
from taskdistill.pipeline.validation import dev_sets, validation_sets
from taskdistill.progress import Progress
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, StaticConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.local import check_dim, check_length, check_teacher, make_teacher


def check_recipe(recipe: Recipe, out: Path) -> None:
    """Refuse settings that cannot work, and a folder that cannot take the run."""
    check_run_folder(out)
    check_writable(out / "recipe.yaml", *(out / "checkpoints" / name for name in recipe.phases()))
    check_place(store_root(recipe, out))
    for task, settings in recipe.adapters.items():
        if settings.average is not None and settings.average.gate and not recipe.evaluation.dev:
            raise BadInput(
                f"adapters.{task.value}.average.gate needs evaluation.dev sets to decide by; "
                "name some or set gate: false"
            )
    if (
        recipe.stage1 is not None
        and recipe.stage1.projection == "none"
        and recipe.long is not None
        and recipe.long.projection != "none"
    ):
        raise BadInput(
            "long.projection wants a projection that stage1 did not train; set both to the same"
        )


def check_models(recipe: Recipe) -> Model:
    """Check settings, teachers and student against each other.

    No data are looked at and no weights are read.

    Returns the student before its first step, without weights.
    """
    for settings in recipe.all_teachers().values():
        check_teacher(settings)
    student = start_student(recipe, weights=False)
    assert isinstance(student.module, TransformerModel)
    widths = [_teacher_dim(settings) for settings in recipe.all_teachers().values()]
    check_student(recipe, student.module, widths)
    return student


def check_student(
    recipe: Recipe, module: TransformerModel, teacher_dims: Sequence[int | None]
) -> None:
    """Check settings against the student, whose weights may be absent.

    `teacher_dims`: size of each teacher's vectors; None while that is not known.
    """
    width = None if None in teacher_dims else sum(dim or 0 for dim in teacher_dims)
    if (
        recipe.stage1 is not None
        and recipe.stage1.projection == "none"
        and width not in (None, module.embedding_dim)
    ):
        raise BadInput(
            f"stage1.projection is none, but the teacher has {width} dimensions and the student "
            f"{module.embedding_dim}; set it to student"
        )
    for name, settings in recipe.phases().items():
        if not isinstance(settings, StaticConfig):
            _check_phase(name, settings, module)
    if over := [dim for dim in recipe.evaluation.dims or [] if dim > module.embedding_dim]:
        raise BadInput(
            f"evaluation.dims names {over}, the student's vectors have {module.embedding_dim} "
            "dimensions"
        )


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
                f"{key} is {length}, the student's backbone has positions for {positions} tokens; "
                "set it to that or less"
            )
    if settings.rope_theta is not None and rope_theta(module.backbone) is None:
        family = module.backbone.config.model_type
        raise BadInput(
            f"{name}.rope_theta has no effect: a {family} backbone has no rotary positions; "
            "remove it"
        )
    if isinstance(settings, AdapterConfig):
        try:
            lora_config(module.backbone, targets=settings.target_modules)
        except BadInput as error:
            raise BadInput(f"{name}: {error}") from None


def check_sets(recipe: Recipe, root: Path) -> None:
    """Check the names of evaluation sets, and that every gate has a set of its task to decide by.

    `root`: the data folder, where the recipe names no other.
    """
    evaluation_sets(recipe, root)
    validation_sets(recipe, root, "stage1")
    tasks = {dev_set.task.adapter for dev_set in dev_sets(recipe, root)}
    for task, adapter in recipe.adapters.items():
        if adapter.average is not None and adapter.average.gate and task not in tasks:
            raise BadInput(
                f"adapters.{task}.average.gate has no development set to decide by: evaluation.dev "
                f"({', '.join(recipe.evaluation.dev) or 'empty'}) holds none for {task}; "
                "name one or set gate: false"
            )


def evaluation_sets(recipe: Recipe, root: Path) -> list[EvalSet]:
    """Find the sets that a finished model is scored on; none if `evaluation.sets` is empty."""
    if recipe.evaluation.sets == []:
        return []
    try:
        return find_eval_sets(Path(recipe.evaluation.root or root), recipe.evaluation.sets)
    except BadInput as error:
        raise BadInput(
            f"evaluation.sets: {error}; give evaluation.root, or set evaluation.sets to [] "
            "to do without"
        ) from None


def _teacher_dim(settings: TeacherConfig) -> int | None:
    """Read the size of a teacher's vectors without its weights.

    None for an endpoint of which the recipe states none.
    """
    if settings.kind == "http":
        return settings.embedding_dim
    folder = Path(settings.model)
    if settings.kind == "precomputed" or (
        folder.is_dir() and not (folder / "config.json").is_file()
    ):
        return make_teacher(settings).embedding_dim
    return sketch_teacher(settings).width


def sketch_teacher(settings: TeacherConfig, progress: Progress | None = None) -> ModelSize:
    """Find the size of a local teacher without its weights."""
    model = sketch(settings.model, settings.revision, trust_remote_code=settings.trust_remote_code)
    if progress is not None:
        progress.note(f"teacher {settings.model}: {sketch_origin(model)}")
    size, positions = size_of(model.backbone), longest_text(model.backbone, settings.max_length)
    positions = positions if model.folder is None else longest_input(model.folder, positions)
    check_length(settings.max_length, settings.model, positions)
    check_dim(settings, size.width)
    return size


def sketch_origin(model: ModelSketch) -> str:
    """Say where an architecture without weights is from."""
    return (
        "the known architecture, for its files are not at hand"
        if model.folder is None
        else "from its files, weights not read"
    )
