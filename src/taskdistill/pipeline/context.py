"""What the parts of the main job share: the run, its batches, and the teacher store that it fills."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch

from taskdistill.data.batches import BatchPlan
from taskdistill.errors import WorkFailed
from taskdistill.io.atomic import restore
from taskdistill.io.folders import open_folder, require_same
from taskdistill.memory import peak_megabytes, trim_memory
from taskdistill.pipeline.setup import TrainData
from taskdistill.progress import Progress, Stop
from taskdistill.recipe.phases import MICRO_BATCH_TOKENS, PhaseConfig, StaticConfig
from taskdistill.recipe.recipe import FIRST, Recipe, ValidationConfig
from taskdistill.seeding import torch_seed
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.protocol import LookupTeacher, RunsHere, Teacher, View, apply_template
from taskdistill.teacher.store import TeacherStore
from taskdistill.train.context import Interrupted
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.log import Log, read_lines
from taskdistill.train.phases import make_plan, static_phase, teacher_needs

T = TypeVar("T")


@dataclass
class RunContext:
    """What the parts of the job share."""

    recipe: Recipe
    out: Path
    inputs: TrainData
    teacher: Teacher
    stores: Mapping[View, TeacherStore]
    progress: Progress
    should_stop: Stop
    log: Log
    threads: int
    plans: dict[str, BatchPlan]
    facts: dict[str, Any]
    processes: ProcessGroup = SINGLE
    profile: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    unusable: set[str] = field(default_factory=set)
    """Texts of which no teacher makes a vector; their rows are left out."""
    further: Sequence[tuple[str, Teacher, Mapping[View, TeacherStore]]] = ()
    """Name, teacher and stores of each teacher beside the first."""

    def teachers(self) -> list[tuple[str, Teacher, Mapping[View, TeacherStore]]]:
        """List every teacher.

        Returns:
            Name, teacher and stores; the first one first.
        """
        return [(FIRST, self.teacher, self.stores), *self.further]

    def count(self, done: int, total: int) -> None:
        """Tell how far a part has come whose finished items are kept on disk, and stop there if that was asked for.

        Raises:
            Interrupted: If a stop was asked for.
        """
        self.progress.count(done, total)
        if self.should_stop():
            raise Interrupted(
                "stopped; what is finished is kept, run the same command again to continue"
            )

    def timed(self, part: str, start: float) -> None:
        """Add the seconds since `start` to a part, and give back the memory that it leaves free.

        The log keeps the seconds, so that a continued run counts its earlier parts too, and the peak of memory up to here.
        """
        self.log.write(
            {
                "part": part,
                "seconds": time.monotonic() - start,
                "peak_megabytes": round(peak_megabytes()),
            }
        )
        trim_memory()

    def seconds(self) -> dict[str, float]:
        """Sum the seconds of every part over all the processes that worked on the run.

        Returns:
            Part to seconds, in the order in which parts first ended.
        """
        result: dict[str, float] = {}
        for _, record in read_lines(self.log.path):
            if "part" in record:
                result[record["part"]] = result.get(record["part"], 0.0) + record["seconds"]
        return result

    def peak(self) -> float:
        """Return the largest memory of all the processes that worked on the run, as the log has it.

        Returns:
            Megabytes; 0 if no part has ended.
        """
        return max(
            (
                record.get("peak_megabytes", 0.0)
                for _, record in read_lines(self.log.path)
                if "part" in record
            ),
            default=0.0,
        )


def chooses_weights(during: ValidationConfig | None) -> TypeGuard[ValidationConfig]:
    """Say whether scores while training decide which weights a phase ends with.

    Returns:
        Whether the run cannot go on with other settings of it.
    """
    return during is not None and during.keep is not None


def as_phase(settings: PhaseConfig | StaticConfig) -> PhaseConfig:
    """Return a part of the recipe as a phase."""
    return static_phase(settings) if isinstance(settings, StaticConfig) else settings


def deciding_data(recipe: Recipe) -> dict[str, Any]:
    """Write a recipe as plain data without what moves no number by itself: where things run, and what is chosen when they run.

    What such keys say when they are left out is written as before they were there, so that a run begun by an earlier version has the same
    hash and goes on.
    """
    fields: dict[str, Any] = recipe.model_dump(mode="json") | {"device": "auto"}
    if recipe.precision == "auto":
        fields["precision"] = "float32"
    for teacher in (fields["teacher"], *fields["teachers"].values()):
        for key in ("device", "batch_tokens"):
            del teacher[key]
        if teacher["dtype"] == "auto":
            del teacher["dtype"]
    for name, phase in (
        ("stage1", fields["stage1"]),
        ("long", fields["long"]),
        *fields["adapters"].items(),
    ):
        if phase is not None:
            _leave_out_later(
                phase, {**LATER, **({"negatives": 0} if name in ("stage1", "long") else {})}
            )
            if phase["micro_batch_tokens"] is None:
                phase["micro_batch_tokens"] = MICRO_BATCH_TOKENS
    return fields


LATER: Mapping[str, Any] = {
    "projection_warmup": None,
    "projection_weight_decay": None,
    "menu.kl_temperature": 0.05,
}
"""Settings of phases that came after runs had been begun, with the value that changes nothing: a run from before goes on."""


def _leave_out_later(phase: dict[str, Any], later: Mapping[str, Any]) -> None:
    for key, idle in later.items():
        *path, name = key.split(".")
        holder = phase
        for each in path:
            holder = holder.get(each, {})
        if name in holder and holder[name] == idle:
            del holder[name]


def phase_fingerprint(recipe: Recipe, name: str) -> dict[str, Any]:
    """Collect the parts of a recipe that decide the weights of a phase, so that other parts may change when a run is continued.

    Returns:
        Seed, precision, data, teacher and student, the phase's own settings and those of the phases that it builds on, and the scores while
        training where they choose the weights.
    """
    phases = recipe.phases()
    before = (
        ("stage1", "long")
        if name.startswith("adapters.")
        else ("stage1",)
        if name == "long"
        else ()
    )
    result = {each: phases[each] for each in (*before, name) if each in phases}
    used = sources_of(result)
    fields = deciding_data(recipe)
    sources = {
        source: _without_words(value)
        for source, value in fields["data"]["sources"].items()
        if source in used
    }
    return {
        "seed": recipe.seed,
        "precision": fields["precision"],
        "data": {**fields["data"], "sources": sources},
        "teacher": _without_words(
            {
                key: value
                for key, value in fields["teacher"].items()
                if key not in ("store", "api_key_env", "trained_on")
            }
        ),
        **(
            {"teachers": fields["teachers"], "several": fields["several"]}
            if recipe.teachers
            else {}
        ),
        "student": _without_words(fields["student"]),
        **(
            {"during": fields["evaluation"]["during"]}
            if chooses_weights(recipe.evaluation.during)
            else {}
        ),
        **{
            each: fields["adapters"][each.removeprefix("adapters.")]
            if each.startswith("adapters.")
            else fields[each]
            for each in result
        },
    }


def _without_words(part: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what only the model card and plan read."""
    return {
        key: value
        for key, value in part.items()
        if key not in ("licence", "note", "rows", "tokens")
    }


def sources_of(phases: Mapping[str, PhaseConfig | StaticConfig]) -> set[str]:
    """List the sources that some phases draw from.

    Returns:
        Source names with a weight above 0.
    """
    return {source for settings in phases.values() for source in settings.reads()}


def resume_meta(run: RunContext, name: str) -> dict[str, Any]:
    """Say what must be the same where a phase is continued.

    Returns:
        Hashes of the parts of the recipe that decide its weights, and of the rows of its sources.
    """
    parts = phase_fingerprint(run.recipe, name)
    text = json.dumps(parts, sort_keys=True)
    return {
        "recipe": hashlib.sha256(text.encode()).hexdigest(),
        "data": run.inputs.digest(parts["data"]["sources"]),
    }


def made_before(run: RunContext, name: str, folder: Path, kind: str) -> bool:
    """Say whether the run has a folder that a phase makes once, because making it again need not give the same.

    Raises:
        BadInput: If it was made from other data or settings.
    """
    if not restore(folder):
        return False
    require_same(
        folder, open_folder(folder, kind, "delete it to make it again"), resume_meta(run, name)
    )
    return True


def drawn(items: list[T], limit: int, seed: int) -> list[T]:
    """Draw items without replacement.

    Args:
        limit: How many, at most.

    Returns:
        Them, in their order.
    """
    if len(items) <= limit:
        return items
    chosen = torch.randperm(len(items), generator=torch.Generator().manual_seed(torch_seed(seed)))[
        :limit
    ]
    return [items[i] for i in sorted(chosen.tolist())]


def make_plans(recipe: Recipe, inputs: TrainData) -> dict[str, BatchPlan]:
    """Decide which rows every step of every phase sees.

    Returns:
        Phase to batches, in the order in which phases run.
    """
    return {
        name: make_plan(recipe, name, as_phase(settings), inputs.datasets)
        for name, settings in recipe.phases().items()
    }


def fill_stores(run: RunContext, names: Collection[str]) -> None:
    """Embed with the teacher exactly the texts that some step of these phases will compare with it.

    Rows with a text for which the teacher has no usable vector are rejected and counted, and the batches are drawn anew.

    Args:
        run: The run; its inputs and plans change if a text has no vector.

    Raises:
        WorkFailed: If new texts keep turning up without a vector.
    """
    start = time.monotonic()
    for _ in range(FILL_ROUNDS):
        lacking: dict[str, set[str]] = {}
        texts_of: dict[str, set[str]] = {}
        for place, (teacher_name, teacher, stores) in enumerate(run.teachers()):
            sources = (
                {name for name in run.inputs.datasets if place in run.recipe.readers(name)}
                if run.further
                else None
            )
            requested: dict[int, tuple[TeacherStore, dict[str, None]]] = {}
            for name in names:
                for view, texts in teacher_needs(
                    name, as_phase(run.recipe.phases()[name]), run.plans[name], sources
                ).items():
                    requested.setdefault(id(stores[view]), (stores[view], {}))[1].update(
                        dict.fromkeys(texts)
                    )
            missing = {
                text
                for store, result in requested.values()
                for text in _fill_store(run, teacher, store, list(result))
            }
            every = {text for _, result in requested.values() for text in result}
            if run.further and missing:
                run.progress.note(
                    f"{teacher_name}: no vector for {len(missing):,} of {len(every):,} texts; they learn from the other teachers"
                )
                run.facts.setdefault("texts_without_vector", {})[teacher_name] = len(missing)
            for text in every:
                texts_of.setdefault(text, set()).add(teacher_name)
            for text in missing:
                lacking.setdefault(text, set()).add(teacher_name)
        unusable = {text for text, names_of in lacking.items() if names_of == texts_of[text]}
        if not unusable:
            run.timed("teacher", start)
            return
        run.progress.note(
            f"rows with {len(unusable)} texts that have no teacher vector are left out"
        )
        run.inputs = run.inputs.without(unusable)
        run.plans = make_plans(run.recipe, run.inputs)
        run.unusable |= unusable
    raise WorkFailed(
        f"the teacher keeps giving unusable vectors, the last for {sorted(unusable)[0][:60]!r}; look at the teacher"
    )


FILL_ROUNDS = 4
"""Times that batches are drawn anew because the teacher has no usable vector for some text."""


def _fill_store(
    run: RunContext, teacher: Teacher, store: TeacherStore, texts: list[str]
) -> list[str]:
    """Fill a store, tell what was done, and return the texts that stay without a vector."""
    every = texts
    if run.further and isinstance(teacher, LookupTeacher):
        known = teacher.known([apply_template(store.instruction, text) for text in texts])
        texts = [text for text, knows in zip(texts, known, strict=True) if knows]
    missing = len(store.missing(texts))
    if missing:
        run.progress.stage(f"embedding {missing:,} texts with the teacher")
        if isinstance(teacher, RunsHere):
            run.progress.note(f"teacher on {teacher.placement}")
    report = fill_store(store, texts, teacher, progress=run.count)
    instruction = f" under {store.instruction!r}" if store.instruction else ""
    run.progress.note(
        f"teacher store{instruction}: {report.distinct:,} distinct texts, {report.found:,} already there, {report.embedded:,} embedded, "
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
    return store.missing(every)
