"""The main job, end to end and resumable: teacher store, every phase, the model folder, its scores and the report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from taskdistill.device import AUTO, device_name
from taskdistill.encode.batches import cores
from taskdistill.errors import BadInput
from taskdistill.io.atomic import check_place, remove_stale_within, restore, write_file
from taskdistill.io.json import open_regular
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import check_claim, claim, is_log, write_result
from taskdistill.io.protection import check_writable
from taskdistill.model.model import Model
from taskdistill.pipeline.context import RunContext, fill_stores, make_plans, phase_fingerprint
from taskdistill.pipeline.pairing import choose_start
from taskdistill.pipeline.phases import train_phases
from taskdistill.pipeline.preflight import check_data, check_models
from taskdistill.pipeline.setup import data_root, load_inputs, start_student
from taskdistill.pipeline.static_student import load_static, train_static
from taskdistill.pipeline.student_vocab import learn_own_vocabulary, with_own_vocabulary
from taskdistill.progress import Progress, SilentProgress, Stop, never
from taskdistill.recipe.recipe import FIRST, Recipe, dump_recipe, parse_recipe
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.make import make_teacher
from taskdistill.teacher.protocol import NamedTeacher, Teacher, View, release
from taskdistill.teacher.store import TeacherStore, open_views
from taskdistill.train.arithmetic import choose_arithmetic, training_device
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.leading import by_first
from taskdistill.train.log import Log, read_lines
from taskdistill.train.profile import check_profile

KIND = "run"
FREE_KEYS = (
    "threads",
    "process_timeout",
    "device",
    "evaluation",
    "name",
    "teacher.store",
    "teacher.api_key_env",
    "teacher.device",
    "teacher.batch_tokens",
)
"""Parts of a recipe that may always differ when a run is continued: they move no weight."""
FREE = tuple(f"{key}." for key in FREE_KEYS)


def train(
    recipe: Recipe,
    out: Path,
    *,
    recipe_folder: Path | None = None,
    progress: Progress | None = None,
    should_stop: Stop = never,
    api_key: str | None = None,
    assess: Callable[[RunContext, Model, Path | None], dict[str, Any]] | None = None,
    processes: ProcessGroup = SINGLE,
    profile: bool = False,
) -> dict[str, Any]:
    """Run a recipe into a folder; run again after any interruption, it continues.

    Args:
        recipe_folder: Where the recipe file is, for relative paths in it.
        should_stop: Asked before every step; true saves and stops.
        assess: Scores the finished model; None for the recipe's evaluation, which scores the instant student as soon as it is there too.
        processes: Those that train together; only the first one writes, and all must see the same `out`.
        profile: Whether a torch profiler trace of some steps of every phase is written into RUN/profile.

    Returns:
        The content of metrics.json; nothing on any process but the first.

    Raises:
        BadInput: If the recipe, data or folder cannot be used.
        WorkFailed: If the work could not be finished.
    """
    from taskdistill.pipeline.evaluate_run import assess_run

    progress = progress or SilentProgress()
    started = time.monotonic()
    recipe, pairing = choose_start(recipe)
    check_recipe(recipe, out)
    for line in pairing.lines() if pairing is not None else ():
        progress.note(line)
    if recipe.stage1 is not None and not recipe.evaluation.dev and recipe.evaluation.during is None:
        progress.note(
            "no development set is named (evaluation.dev), so a phase that harms the student will not be seen before the end"
        )
    if profile:
        check_profile(out / "profile", list(recipe.phases()))
    device = training_device(recipe.device, processes)
    arithmetic = choose_arithmetic(recipe.precision, device)
    progress.note(f"device {device} ({device_name(device)}), passes of training in {arithmetic}")
    check_models(recipe)
    with processes.main_process_first():
        root = data_root(recipe, recipe_folder or Path(), out.parent / f"{out.name}-data", progress)
    check_data(recipe, root)
    inputs = load_inputs(recipe, root, progress)
    plans = make_plans(recipe, inputs)
    all_teachers = make_teachers(recipe, out, api_key) if processes.is_main else []
    named = processes.broadcast([NamedTeacher.of(each) for each in all_teachers])
    teachers = (
        all_teachers or named
    )  # only the first process embeds, so only it reads a teacher's weights
    student = start_student(recipe)
    threads = recipe.threads or max(1, cores() // processes.on_this_host)
    if not processes.is_main:
        run = RunContext(
            recipe,
            out,
            inputs,
            teachers[0],
            {},
            progress,
            should_stop,
            Log(Path(os.devnull)),
            threads,
            plans,
            {},
            processes,
            device=device,
        )
        _follow(run, student, teachers[1:])
        return {}
    claim(out, KIND, **_CLAIM)
    with writer_lock(out / "lock"):
        _same_recipe(recipe, out)
        for name in [*remove_stale_within(out), *remove_stale_within(out / "phases")]:
            progress.note(f"removed {name}, left by an interrupted run")
        stores = open_views(store_root(recipe, out), teachers[0], recipe.teacher.instructions)
        log = Log(out / "log.jsonl")
        log.write(
            {
                "teachers": {
                    name: _arithmetic(each)
                    for name, each in zip(recipe.all_teachers(), teachers, strict=True)
                }
            }
        )
        run = RunContext(
            recipe,
            out,
            inputs,
            teachers[0],
            stores,
            progress,
            should_stop,
            log,
            threads,
            plans,
            {},
            processes,
            profile,
            device,
        )
        run.further = open_further(recipe, out, teachers[1:])
        run.timed("data and models", started)
        try:
            static: Path | None = None

            def begin() -> set[str]:
                nonlocal static
                static = _before_the_phases(run, student, scored=assess is None)
                return run.unusable

            by_first(processes, begin)
            if recipe.student.vocabulary is not None:
                student = with_own_vocabulary(student, out)
            model = (
                train_phases(run, student)
                if recipe.stage1 is not None or static is None
                else load_static(run, static)
            )
            metrics = (assess or assess_run)(run, model, static)
        finally:
            log.close()
        write_result(out / "metrics.json", metrics)
    return metrics


def _before_the_phases(run: RunContext, student: Model, *, scored: bool) -> Path | None:
    """Do what needs no other process: the static student, whose folder is returned, the teacher stores, the student's own vocabulary."""
    from taskdistill.pipeline.evaluate_run import first_result

    static = train_static(run, student) if run.recipe.static is not None else None
    if (
        scored
        and static is not None
        and run.recipe.stage1 is not None
        and not restore(run.out / "model")
    ):
        first_result(run, static)
    fill_stores(run, [name for name in run.plans if name != "static"])
    for _, teacher, _ in run.teachers():
        release(teacher)
    if run.recipe.student.vocabulary is not None:
        learn_own_vocabulary(run, student)
    return static


def _follow(run: RunContext, student: Model, further: Sequence[Teacher]) -> None:
    """Train along with the first process once it has filled the teacher store."""
    if unusable := by_first(run.processes, lambda: run.unusable):
        run.inputs = run.inputs.without(unusable)
        run.plans = make_plans(run.recipe, run.inputs)
    run.stores = open_views(
        store_root(run.recipe, run.out), run.teacher, run.recipe.teacher.instructions
    )
    run.further = open_further(run.recipe, run.out, further)
    if run.recipe.student.vocabulary is not None:
        student = with_own_vocabulary(student, run.out)
    if run.recipe.stage1 is not None:
        train_phases(run, student)


def make_teachers(recipe: Recipe, out: Path, api_key: str | None = None) -> list[Teacher]:
    """Make every teacher of a run; a continued run goes on in the arithmetic in which it began.

    Args:
        api_key: Key of the first one, if it is an endpoint.
    """
    begun: dict[str, str | None] = {}
    if (out / "log.jsonl").is_file():
        begun = next(
            (
                record["teachers"]
                for _, record in read_lines(out / "log.jsonl")
                if "teachers" in record
            ),
            {},
        )
    teachers = list[Teacher]()
    for name, settings in recipe.all_teachers().items():
        if settings.kind == "local" and settings.dtype == AUTO and name in begun:
            settings = settings.model_copy(update={"dtype": begun[name] or "float32"})
        root, key = _root_of(settings, recipe, out), api_key if name == FIRST else None
        teachers.append(make_teacher(settings, api_key=key, threads=recipe.threads, root=root))
    return teachers


def _arithmetic(teacher: Teacher) -> str | None:
    return teacher.identity.arithmetic


def _root_of(settings: TeacherConfig, recipe: Recipe, out: Path) -> Path:
    return Path(settings.store) if settings.store else store_root(recipe, out)


def open_further(
    recipe: Recipe, out: Path, teachers: Sequence[Teacher]
) -> list[tuple[str, Teacher, dict[View, TeacherStore]]]:
    """Open the stores of the teachers beside the first.

    Args:
        teachers: They, in its order.
    """
    return [
        (name, teacher, open_views(_root_of(settings, recipe, out), teacher, settings.instructions))
        for (name, settings), teacher in zip(recipe.teachers.items(), teachers, strict=True)
    ]


def store_root(recipe: Recipe, out: Path) -> Path:
    """Say where the teacher's vectors are kept.

    Args:
        recipe: May name a folder.

    Returns:
        That folder, or `teacher-store` beside the run folder, which runs share.
    """
    return Path(recipe.teacher.store) if recipe.teacher.store else out.parent / "teacher-store"


def check_recipe(recipe: Recipe, out: Path) -> None:
    """Find settings that cannot work before anything is read or written.

    Raises:
        BadInput: If the run folder is something else, or settings contradict each other.
    """
    check_claim(out, KIND, **_CLAIM)
    check_writable(out / "recipe.yaml", *(out / "checkpoints" / name for name in recipe.phases()))
    check_place(store_root(recipe, out))
    for task, settings in recipe.adapters.items():
        if settings.average is not None and settings.average.gate and not recipe.evaluation.dev:
            raise BadInput(
                f"adapters.{task.value}.average.gate needs evaluation.dev sets to decide by; name some or set gate: false"
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


def _is_earlier_run(path: Path) -> bool:
    """Whether a folder without a manifest is a run of a version that gave it none."""
    try:
        with open_regular(path / "log.jsonl") as file:
            return is_log(file) and (path / "recipe.yaml").is_file()
    except (OSError, BadInput):
        return False


_CLAIM: dict[str, Any] = {
    "earlier": _is_earlier_run,
    "files": {"metrics.json": None, "report.html": None, "log.jsonl": is_log},
    "parts": ("phases", "checkpoints"),
    "folders": {
        "model": "model",
        "static-model": "model",
        "tokenizer": "tokenizer",
        "student-tokenizer": "tokenizer",
    },
}


def _same_recipe(recipe: Recipe, out: Path) -> None:
    """Refuse a recipe under which a phase that this run has begun would have other weights."""
    path, text = out / "recipe.yaml", dump_recipe(recipe)
    if path.is_file():
        then = yaml.safe_load(path.read_text("utf-8"))
        before, now = _flat(then), _flat(yaml.safe_load(text))
        changed = [
            key
            for key in {**before, **now}
            if before.get(key) != now.get(key) and not _is_free(key)
        ]
        begun = _begun(out) if changed else []
        stale = [name for name in begun if name in recipe.phases() and _other(then, recipe, name)]
        if stale:
            shown = "; ".join(
                f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed[:5]
            )
            raise BadInput(
                f"{out} was begun with another recipe ({shown}); use a new --out, or the recipe in {path}, or delete what was trained by it "
                f"({', '.join(stale)} in its phases and checkpoints) to train that again"
            )
        if _was_edited(then, path.read_text("utf-8")):
            raise BadInput(
                f"{path} is not as this program wrote it, and would be written anew; move it away, or use a new --out"
            )
    write_file(path, text)


def _was_edited(then: Any, text: str) -> bool:
    """Whether somebody has changed a run's recipe; of a version that knew other keys nothing can be said."""
    try:
        return dump_recipe(parse_recipe(then)) != text
    except BadInput:
        return False


def _is_free(key: str) -> bool:
    return f"{key}.".startswith(FREE) and not key.startswith("evaluation.during")


def _begun(out: Path) -> list[str]:
    result = {
        path.name
        for part in ("phases", "checkpoints")
        for path in (out / part).glob("[!.]*")
        if path.is_dir()
    }
    return sorted(result | ({"static"} if (out / "static-model").is_dir() else set()))


def _other(then: dict[str, Any], recipe: Recipe, name: str) -> bool:
    try:
        before = parse_recipe(then)
    except BadInput:  # written by a version that knew other keys
        return True
    return name not in before.phases() or phase_fingerprint(before, name) != phase_fingerprint(
        recipe, name
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    out: dict[str, Any] = {}
    for key, item in value.items():
        out |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return out
