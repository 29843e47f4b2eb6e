"""A run from end to end, resumable.

Teacher store, every phase, the model folder, its scores and the report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from taskdistill.device import device_name
from taskdistill.encode.batches import cores
from taskdistill.io.atomic import remove_stale_within, restore
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import write_result
from taskdistill.model.folder import read_model
from taskdistill.model.model import Model
from taskdistill.pipeline.check import check_models, check_recipe, check_sets
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.evaluate_run import assess_run, first_result
from taskdistill.pipeline.pairing import choose_start
from taskdistill.pipeline.phases import train_phases
from taskdistill.pipeline.resume import claim_run_folder, write_recipe
from taskdistill.pipeline.setup import data_root, load_inputs, make_plans, start_student
from taskdistill.pipeline.static_student import train_static
from taskdistill.pipeline.student_vocab import learn_student_vocab, with_student_vocab
from taskdistill.pipeline.teacher_store import fill_stores, make_teachers, open_stores
from taskdistill.progress import Progress, SilentProgress, Stop, never
from taskdistill.recipe.recipe import Recipe
from taskdistill.report.pages import RunMetrics
from taskdistill.teacher.protocol import NamedTeacher, Teacher, release
from taskdistill.train.arithmetic import choose_arithmetic, training_device
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.leading import by_first
from taskdistill.train.log import Log
from taskdistill.train.profile import check_profile

Assess = Callable[[RunContext, Model, Path | None], RunMetrics]
"""Scores a finished model, beside the folder of the instant student if there is one."""


@dataclass(frozen=True)
class Launch:
    """How a run is carried out, which moves none of its numbers."""

    processes: ProcessGroup = SINGLE
    """Those that train together; only the first one writes, and all must see the same folder."""
    profile: bool = False
    """Whether a torch profiler trace of some steps of every phase is written into RUN/profile."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    recipe_folder: Path | None = None,
    progress: Progress | None = None,
    should_stop: Stop = never,
    api_key: str | None = None,
    assess: Assess | None = None,
    launch: Launch = Launch(),
) -> RunMetrics | None:
    """Run a recipe into a folder; run again after any interruption, it continues.

    Args:
        recipe_folder: Where the recipe file is, for relative paths in it.
        should_stop: Asked before every step; true saves and stops.
        assess: Scores the finished model; None for the recipe's evaluation, which scores the
            instant student as soon as it is there too.

    Returns:
        The content of metrics.json; None on any process but the first.

    Raises:
        BadInput: If the recipe, data or folder cannot be used.
        WorkFailed: If the work could not be finished.
    """
    progress, started = progress or SilentProgress(), time.monotonic()
    processes = launch.processes
    recipe = _settle(recipe, out, progress, profile=launch.profile)
    device = training_device(recipe.device, processes)
    arithmetic = choose_arithmetic(recipe.precision, device)
    progress.note(f"device {device} ({device_name(device)}), passes of training in {arithmetic}")
    check_models(recipe)
    with processes.main_process_first():
        root = data_root(recipe, recipe_folder or Path(), out.parent / f"{out.name}-data", progress)
    check_sets(recipe, root)
    inputs = load_inputs(recipe, root, progress)
    plans = make_plans(recipe, inputs)
    # Only the first process embeds, so only it reads the weights of a teacher.
    teachers = make_teachers(recipe, out, api_key) if processes.is_main else []
    named = processes.broadcast([NamedTeacher.of(teacher) for teacher in teachers])
    teachers = teachers or list[Teacher](named)
    student = start_student(recipe)
    begin_run = partial(
        RunContext,
        recipe=recipe,
        out=out,
        inputs=inputs,
        progress=progress,
        should_stop=should_stop,
        threads=recipe.threads or max(1, cores() // processes.on_this_host),
        plans=plans,
        processes=processes,
        profile=launch.profile,
        device=device,
    )
    if not processes.is_main:
        run = begin_run(teachers=(), log=Log(Path(os.devnull)))
        _follow(run, student, teachers)
        return None
    # Claimed before the lock, which is a file of that folder.
    claim_run_folder(out)
    with writer_lock(out / "lock"):
        write_recipe(recipe, out)
        for name in [*remove_stale_within(out), *remove_stale_within(out / "phases")]:
            progress.note(f"removed {name}, left by an interrupted run")
        stores = open_stores(recipe, out, teachers)
        run = begin_run(teachers=stores, log=Log(out / "log.jsonl"))
        try:
            arithmetics = {name: teacher.identity.arithmetic for name, teacher, _ in stores}
            run.log.write({"teachers": arithmetics})
            run.timed("data and models", started)
            metrics = _train_and_assess(run, student, assess)
        finally:
            run.log.close()
        write_result(out / "metrics.json", metrics)
    return metrics


def _settle(recipe: Recipe, out: Path, progress: Progress, *, profile: bool) -> Recipe:
    """Fill in what the recipe leaves open, and check all that needs neither data nor models."""
    recipe, pairing = choose_start(recipe)
    check_recipe(recipe, out)
    for line in pairing.lines() if pairing is not None else ():
        progress.note(line)
    if recipe.stage1 is not None and not recipe.evaluation.dev and recipe.evaluation.during is None:
        progress.note(
            "no development set is named (evaluation.dev), so a phase that harms the student will "
            "not be seen before the end"
        )
    if profile:
        check_profile(out / "profile", list(recipe.phases()))
    return recipe


def _train_and_assess(run: RunContext, student: Model, assess: Assess | None) -> RunMetrics:
    static: Path | None = None

    def prepare() -> set[str]:
        nonlocal static
        static = _before_the_phases(run, student, is_scored=assess is None)
        return run.unusable

    # The other processes wait for it, and learn which texts have no vector: their batches must be
    # the same.
    by_first(run.processes, prepare)
    if run.recipe.student.vocabulary is not None:
        student = with_student_vocab(student, run.out)
    if run.recipe.stage1 is not None or static is None:
        model = train_phases(run, student)
    else:
        model = read_model(static)
    return (assess or assess_run)(run, model, static)


def _before_the_phases(run: RunContext, student: Model, *, is_scored: bool) -> Path | None:
    """Do what needs no other process: static student, teacher stores, the student's vocabulary.

    Returns folder of the static student, if the recipe asks for one.
    """
    static = train_static(run, student) if run.recipe.static is not None else None
    if (
        is_scored
        and static is not None
        and run.recipe.stage1 is not None
        and not restore(run.out / "model")
    ):
        first_result(run, static)
    fill_stores(run, [name for name in run.plans if name != "static"])
    for _, teacher, _ in run.teachers:
        release(teacher)
    if run.recipe.student.vocabulary is not None:
        learn_student_vocab(run, student)
    return static


def _follow(run: RunContext, student: Model, teachers: Sequence[Teacher]) -> None:
    """Train along with the first process once it has filled the teacher stores."""
    if unusable := by_first(run.processes, lambda: run.unusable):
        run.inputs = run.inputs.without(unusable)
        run.plans = make_plans(run.recipe, run.inputs)
    run.teachers = open_stores(run.recipe, run.out, teachers)
    if run.recipe.student.vocabulary is not None:
        student = with_student_vocab(student, run.out)
    if run.recipe.stage1 is not None:
        train_phases(run, student)
