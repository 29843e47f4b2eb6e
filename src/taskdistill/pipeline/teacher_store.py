"""The teachers of a run and the stores of their vectors, filled until no text is missing."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from taskdistill.device import AUTO
from taskdistill.errors import WorkFailed
from taskdistill.pipeline.context import NamedStores, RunContext
from taskdistill.pipeline.setup import as_phase, make_plans
from taskdistill.recipe.recipe import FIRST, Recipe
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.local import make_teacher
from taskdistill.teacher.protocol import LookupTeacher, RunsHere, Teacher, View, apply_template
from taskdistill.teacher.store import TeacherStore, open_views
from taskdistill.train.log import read_lines
from taskdistill.train.phases import teacher_needs

FILL_ROUNDS = 4
"""Times that batches are drawn anew because the teacher has no usable vector for some text."""


def store_root(recipe: Recipe, out: Path) -> Path:
    """Return `teacher.store`, or `teacher-store` beside the run folder, which runs share."""
    return Path(recipe.teacher.store) if recipe.teacher.store else out.parent / "teacher-store"


def _root_of(settings: TeacherConfig, recipe: Recipe, out: Path) -> Path:
    return Path(settings.store) if settings.store else store_root(recipe, out)


def make_teachers(recipe: Recipe, out: Path, api_key: str | None = None) -> list[Teacher]:
    """Make every teacher of a run; the key is that of the first one, if it is an endpoint."""
    # Vectors of one store come from one arithmetic: a run continued on another device goes on in
    # the number type that `auto` chose when it began.
    begun: dict[str, str | None] = {}
    if (out / "log.jsonl").is_file():
        records = (record for _, record in read_lines(out / "log.jsonl"))
        begun = next((record["teachers"] for record in records if "teachers" in record), {})
    teachers = list[Teacher]()
    for name, settings in recipe.all_teachers().items():
        if settings.kind == "local" and settings.dtype == AUTO and name in begun:
            settings = settings.model_copy(update={"dtype": begun[name] or "float32"})
        root, key = _root_of(settings, recipe, out), api_key if name == FIRST else None
        teachers.append(make_teacher(settings, api_key=key, threads=recipe.threads, root=root))
    return teachers


def open_stores(recipe: Recipe, out: Path, teachers: Sequence[Teacher]) -> list[NamedStores]:
    """Open the stores of every teacher of a recipe, in its order."""
    return [
        (
            name,
            teacher,
            open_views(_root_of(settings, recipe, out), teacher, settings.instructions),
        )
        for (name, settings), teacher in zip(recipe.all_teachers().items(), teachers, strict=True)
    ]


def fill_stores(run: RunContext, phases: Collection[str]) -> None:
    """Embed with the teachers exactly the texts that some step of these phases compares with them.

    Rows with a text for which no teacher has a usable vector are rejected and counted, and the
    batches are drawn anew: inputs and plans of the run change.
    """
    start = time.monotonic()
    for _ in range(FILL_ROUNDS):
        unusable = _fill_once(run, phases)
        if not unusable:
            run.timed("teacher", start)
            return
        run.progress.note(
            f"rows with {len(unusable)} texts that have no teacher vector are left out"
        )
        run.inputs = run.inputs.without(unusable)
        # Other rows come into the batches now, and with them texts that no store has yet.
        run.plans = make_plans(run.recipe, run.inputs)
        run.unusable |= unusable
    raise WorkFailed(
        f"the teacher keeps giving unusable vectors, the last for {sorted(unusable)[0][:60]!r}; "
        "look at the teacher"
    )


def _fill_once(run: RunContext, phases: Collection[str]) -> set[str]:
    """Fill every store; return the texts for which all teachers that read them lack a vector."""
    readers: dict[str, set[str]] = {}
    lacking: dict[str, set[str]] = {}
    for place, (teacher_name, teacher, stores) in enumerate(run.teachers):
        requested, missing = _requested_texts(run, phases, place, stores), set[str]()
        for store, texts in requested:
            missing.update(_fill_store(run, teacher, store, texts))
        every = {text for _, texts in requested for text in texts}
        if run.further and missing:
            run.progress.note(
                f"{teacher_name}: no vector for {len(missing):,} of {len(every):,} texts; "
                "they learn from the other teachers"
            )
            run.facts.setdefault("texts_without_vector", {})[teacher_name] = len(missing)
        for names_of, texts_of in ((readers, every), (lacking, missing)):
            for text in texts_of:
                names_of.setdefault(text, set()).add(teacher_name)
    return {text for text, names in lacking.items() if names == readers[text]}


def _requested_texts(
    run: RunContext, phases: Collection[str], place: int, stores: Mapping[View, TeacherStore]
) -> list[tuple[TeacherStore, list[str]]]:
    """List the distinct texts for each store of a teacher, which several prompts may share."""
    sources = None
    if run.further:
        sources = {name for name in run.inputs.datasets if place in run.recipe.readers(name)}
    requested: dict[int, tuple[TeacherStore, dict[str, None]]] = {}
    for name in phases:
        settings = as_phase(run.recipe.phases()[name])
        for prompt, texts in teacher_needs(name, settings, run.plans[name], sources).items():
            store = stores[prompt]
            requested.setdefault(id(store), (store, {}))[1].update(dict.fromkeys(texts))
    return [(store, list(texts)) for store, texts in requested.values()]


def _fill_store(
    run: RunContext, teacher: Teacher, store: TeacherStore, texts: list[str]
) -> list[str]:
    """Fill a store, and return the texts that stay without a vector."""
    readable = texts
    if run.further and isinstance(teacher, LookupTeacher):
        known = teacher.known([apply_template(store.instruction, text) for text in texts])
        readable = [text for text, is_known in zip(texts, known, strict=True) if is_known]
    if missing := len(store.missing(readable)):
        run.progress.stage(f"embedding {missing:,} texts with the teacher")
        if isinstance(teacher, RunsHere):
            run.progress.note(f"teacher on {teacher.placement}")
    report = fill_store(store, readable, teacher, progress=run.count)
    instruction = f" under {store.instruction!r}" if store.instruction else ""
    run.progress.note(
        f"teacher store{instruction}: {report.distinct:,} distinct texts, "
        f"{report.found:,} already there, {report.embedded:,} embedded, "
        f"{len(report.quarantined):,} set aside"
    )
    for note in report.notes:
        run.progress.note(f"  {note}")
    run.log.write(
        {
            "teacher": store.instruction or "raw text",
            "texts": report.distinct,
            "embedded": report.embedded,
        }
    )
    return store.missing(texts)
