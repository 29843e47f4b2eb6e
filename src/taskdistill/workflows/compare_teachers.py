"""Which teacher to take: its own scores, and those of the static student it makes in a minute."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from taskdistill.device import RuntimeOptions
from taskdistill.encode.batches import cores
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import EvalSelection
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.models.external import ModelSpec
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.records import Results
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.evaluate.set_data import RankingData, all_texts
from taskdistill.evaluate.set_runner import EvalOptions
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.io.outputs import check_claim, claim, write_result
from taskdistill.model.backbone import EMBEDDED, resolve
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.progress import Progress
from taskdistill.workflows.evaluate import open_models, placements
from taskdistill.workflows.student_maker import STUDENT, StudentBudget, StudentMaker
from taskdistill.workflows.training_texts import training_texts

KIND = "probe"
_CLAIM: dict[str, Any] = {
    "earlier": lambda path: False,
    "files": ("probe.json",),
    "parts": ("students", "endpoints", "cache"),
}
"""Of the folder that it writes."""


@dataclass(frozen=True)
class StudentOptions:
    """How the static student of every teacher is made."""

    texts: Path | None = None
    """Training texts, see `training_texts`; None takes those of the data folder, or the documents
    of its retrieval sets where it has none.
    """
    tokenizer: str | None = None
    """Model whose tokenizer all students take; None takes each local teacher's, and the embedded
    model's else.
    """
    budget: StudentBudget = field(default_factory=StudentBudget)


class TeacherRow(TypedDict):
    """A candidate and its student: means over types of sets, and by type."""

    teacher: str
    dim: int
    score: float
    by_type: dict[str, float]
    student: float
    student_by_type: dict[str, float]
    seconds: float
    """For the student."""


class TeacherComparison(TypedDict):
    """What probe.json holds."""

    teachers: list[TeacherRow]
    """The best student first."""
    advice: str
    effort: dict[str, int]
    results: Results
    """Of teachers and students."""


def compare_teachers(
    specs: Sequence[ModelSpec],
    data: EvalSelection,
    out: Path,
    progress: Progress,
    *,
    students: StudentOptions = StudentOptions(),
    environment: Mapping[str, str] | None = None,
    runtime: RuntimeOptions = RuntimeOptions(threads=1),
) -> TeacherComparison:
    """Score candidate teachers and the static student that each would make.

    Students, the teachers' vectors and all scores are kept in `out`; run again, it continues.
    `out`: where everything is kept and probe.json is written. `environment`: where keys of
    endpoints are looked up. `runtime`: of the candidates that are local.
    """
    budget = students.budget
    for spec in specs:
        if spec.kind == "vectors":
            raise BadInput(
                f"{spec.place} holds vectors of some texts, but a student needs those of its "
                "vocabulary too; give the model itself"
            )
    check_claim(out, KIND, **_CLAIM)
    options = EvalOptions(max_queries=data.max_queries, seed=budget.seed)
    eval_sets = data.find("test")
    teachers = open_models(specs, out / "endpoints", environment or {}, runtime)
    if where := placements(teachers):
        progress.note(where)
    sample = _sample(students, data.root, eval_sets, options, progress)
    vocabulary = [
        *sample,
        *(
            text
            for each in eval_sets
            for text in all_texts(each.load(data.max_queries, budget.seed))
        ),
    ]
    claim(out, KIND, **_CLAIM)
    maker = StudentMaker(
        out=out,
        texts=sample,
        vocabulary=vocabulary,
        budget=budget,
        threads=runtime.threads or cores(),
        progress=progress,
    )
    models: list[Embedder] = []
    seconds = {}
    for spec, teacher in zip(specs, teachers, strict=True):
        start = time.monotonic()
        folder = resolve(students.tokenizer or (spec.place if spec.kind == "folder" else EMBEDDED))
        student = maker.make(teacher, TextTokenizer.load(folder, special=False))
        seconds[teacher.name] = time.monotonic() - start
        models += [
            teacher,
            EncoderEmbedder(
                Encoder.load(student, threads=runtime.threads), name=f"{teacher.name}{STUDENT}"
            ),
        ]
    progress.stage(f"scoring {len(teachers)} teachers and their students on {len(eval_sets)} sets")
    results = evaluate_models(
        models, eval_sets, out, options, progress=progress.count, note=progress.note
    )
    rows = [_row(teacher, results, seconds[teacher.name]) for teacher in teachers]
    rows.sort(key=lambda row: -row["student"])
    names = [f"{row['teacher']}{STUDENT}" for row in rows]
    results = evaluate_models(
        models, eval_sets, out, options, reference=names[0]
    )  # from the cache by now; only the comparison is new
    behind = [row for row in results["comparisons"] if len(names) > 1 and row["model"] == names[1]]
    beyond = (
        (sum(row["p"] < 0.05 and row["difference"][2] < 0 for row in behind), len(behind))
        if behind
        else None
    )
    outcome: TeacherComparison = {
        "teachers": rows,
        "advice": advice(rows, beyond),
        "effort": vars(budget),
        "results": results,
    }
    write_result(out / "probe.json", outcome)
    return outcome


def _row(teacher: Embedder, results: Results, seconds: float) -> TeacherRow:
    teacher_score, student = (
        results["means"][teacher.name],
        results["means"][f"{teacher.name}{STUDENT}"],
    )
    assert teacher_score["types"] is not None and student["types"] is not None  # sets were found
    return {
        "teacher": teacher.name,
        "dim": next(iter(results["scores"][teacher.name].values()))["dim"],
        "score": teacher_score["types"],
        "by_type": teacher_score["by_type"],
        "student": student["types"],
        "student_by_type": student["by_type"],
        "seconds": round(seconds, 1),
    }


def advice(rows: Sequence[TeacherRow], beyond: tuple[int, int] | None = None) -> str:
    """Say which teacher to take.

    `rows`: of the candidates, the one with the best student first. `beyond`: on how many sets, of
    how many, the best student is ahead of the next one beyond chance.
    """
    best, strongest = rows[0], max(rows, key=lambda row: row["score"])
    warning = "A stronger teacher is not always the better one"
    if len(rows) == 1:
        return (
            f"One candidate: its student keeps {100 * best['student'] / best['score']:.1f} % of "
            f"it. {warning}, so compare several."
        )
    if best["teacher"] == strongest["teacher"]:
        sentence = (
            f"{best['teacher']} scores best itself and makes the best student here. {warning}; "
            "here it is."
        )
    else:
        sentence = (
            f"{warning}: {strongest['teacher']} scores best itself "
            f"({100 * strongest['score']:.1f} against {100 * best['score']:.1f}), but "
            f"{best['teacher']} makes the better student ({100 * best['student']:.1f} against "
            f"{100 * strongest['student']:.1f})."
        )
    if beyond is not None:
        sentence += (
            " Its student is ahead of the next one beyond chance on "
            f"{beyond[0]} of {beyond[1]} sets."
        )
    return (
        sentence
        + " A static student is a minute’s stand-in for the one that a recipe trains: it ranks "
        "teachers, its score is not the final one."
    )


def _sample(
    students: StudentOptions,
    root: Path,
    sets: Sequence[EvalSet],
    options: EvalOptions,
    progress: Progress,
) -> list[str]:
    """Draw the students' training texts."""
    place, budget = students.texts or root, students.budget
    try:
        texts = training_texts(place)
        source = place.name
    except BadInput:
        if students.texts is not None:
            raise
        data = [each.load(options.max_queries, options.seed) for each in sets]
        texts = [
            text
            for each in data
            if isinstance(each, RankingData)
            for text in each.documents.values()
        ]
        source = "the documents of the retrieval sets, since there is no train split"
        if not texts:
            raise BadInput(
                f"{place} has no train split, no texts and no retrieval set to train students "
                "on; give --texts"
            ) from None
    distinct = sorted(dict.fromkeys(text for text in texts if text.strip()))
    rng = np.random.default_rng(budget.seed)
    chosen = rng.choice(len(distinct), size=min(budget.texts, len(distinct)), replace=False)
    progress.note(f"students learn from {len(chosen):,} of {len(distinct):,} texts of {source}")
    return [distinct[i] for i in sorted(chosen.tolist())]
