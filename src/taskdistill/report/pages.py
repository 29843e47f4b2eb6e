"""A run's metrics as its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from taskdistill.evaluate.contamination import warnings_of
from taskdistill.evaluate.records import Results
from taskdistill.io.outputs import write_output
from taskdistill.recipe.recipe import Recipe, dump_recipe
from taskdistill.report.page import ReportData, render_report
from taskdistill.report.tables import Section, SourceRow, SpeedRow, Table, duration
from taskdistill.train.course import Course
from taskdistill.train.log import read_lines

TEACHER, STATIC, UNTRAINED, BASE, ADAPTERS = (
    "teacher",
    "instant student",
    "untrained student",
    "base",
    "adapters",
)
ABOUT = {
    TEACHER: "what the student learns from",
    STATIC: "one vector per token, no transformer",
    UNTRAINED: "the student before its first step, raw texts",
    BASE: "after stage 1, no adapter",
    ADAPTERS: "each set with its task's adapter",
}
"""The models of a run, by their names in its results."""


class ModelSpeed(TypedDict):
    """What a model of the run costs to use and to keep."""

    texts_per_second: float
    parameters: int | None
    megabytes: float | None


class Reached(TypedDict):
    """Shares of the machine's matrix rate; None where nothing was multiplied."""

    passes: float | None
    """In forward and backward passes."""
    steps: float | None
    """Over whole steps."""


class PhaseTime(Reached):
    """Where the time of one phase went."""

    step_seconds: float
    gflop: float


class TrainingTime(TypedDict):
    """Where the time of training went."""

    seconds: dict[str, float]
    """By part."""
    matrix_gflops: float
    """What this machine multiplies, in GF/s."""
    reached: Reached
    phases: dict[str, PhaseTime]


class RunMetrics(TypedDict):
    """What metrics.json of a run holds."""

    name: str
    results: Results
    speed: dict[str, ModelSpeed]
    data: dict[str, Any]
    """Source to the counts of its rows, see `data.rows.Counts`."""
    facts: dict[str, Any]
    """What else the run told of itself; `teacher_texts` always."""
    course: dict[str, dict[str, Any]]
    """Phase to its course, see `train.course.Course`."""
    time: TrainingTime
    seconds: dict[str, float]
    peak_megabytes: float
    recipe: dict[str, Any]
    """With every default."""
    versions: dict[str, str]


def write_page(out: Path, metrics: RunMetrics, recipe: Recipe) -> None:
    """Write RUN/report.html from the same numbers as metrics.json."""
    data = ReportData(
        title=metrics["name"],
        facts=_facts(metrics),
        results=metrics["results"],
        models=ABOUT,
        log=[record for _, record in read_lines(out / "log.jsonl") if "terms" in record],
        speeds=[
            SpeedRow(name, each["texts_per_second"], each["parameters"], each["megabytes"])
            for name, each in metrics["speed"].items()
        ],
        data=[
            SourceRow(
                name=name,
                kind=recipe.data.sources[name].kind,
                read=counts["read"],
                used=counts["used"],
                repaired=sum(counts["repaired"].values()),
                rejected=sum(counts["rejected"].values()),
            )
            for name, counts in metrics["data"].items()
        ],
        times=list(metrics["seconds"].items()),
        sections=_training(metrics, out),
        settings=dump_recipe(recipe),
        commands=[f"taskdistill train recipe.yaml --out {out.name}"],
        warnings=_warnings(metrics, recipe),
        versions=metrics["versions"],
    )
    write_output(out / "report.html", render_report(data))


def _facts(metrics: RunMetrics) -> list[tuple[str, str]]:
    facts = []
    means = {name: each["mean"] for name, each in metrics["results"]["retention"].items()}
    if known := {name: mean for name, mean in means.items() if mean}:
        best = max(known, key=known.__getitem__)
        facts.append((f"{100 * known[best]:.1f} %", f"of the teacher kept by {best}"))
    speed = metrics["speed"]
    if "teacher" in speed:
        student = speed.get("base") or speed["instant student"]
        ratio = student["texts_per_second"] / speed["teacher"]["texts_per_second"]
        facts.append((f"{ratio:.1f}×", "the teacher's speed"))
    facts.append((f"{metrics['facts']['teacher_texts']:,}", "texts in the teacher store"))
    facts.append((f"{sum(metrics['seconds'].values()) / 60:.0f} min", "from texts to report"))
    facts.append((f"{metrics['peak_megabytes'] / 1000:.1f} GB", "of memory at most"))
    return facts


def _training(metrics: RunMetrics, out: Path) -> list[Section]:
    """Show where the steps' time went and the scores while training."""
    time, result = metrics["time"], []
    columns, rows, lines = profile_table(time)
    phases = [
        [
            name,
            duration(phase["step_seconds"]),
            f"{phase['gflop']:,.0f}",
            _percent(phase["passes"]),
            _percent(phase["steps"]),
        ]
        for name, phase in time["phases"].items()
    ]
    tables = [
        Table(title="By part", columns=columns, rows=rows),
        Table(
            title="By phase",
            columns=[
                "phase",
                "time",
                "GF of work",
                "of the matrix rate, passes",
                "of the matrix rate, steps",
            ],
            rows=phases,
        ),
    ]
    result.append(Section("Where the training time went", "; ".join(lines) + ".", tables))
    scored = [record for _, record in read_lines(out / "log.jsonl") if "evaluated" in record]
    if scored:
        names = list(dict.fromkeys(name for record in scored for name in record["scores"]))
        best_records = {
            record["phase"]: record for record in scored if record.get("best")
        }  # the last of those that were best so far
        rows = [
            [
                f"{record['phase']}, step {record['evaluated']:,}"
                + (" (kept)" if record is best_records.get(record["phase"]) else ""),
                *map(record["scores"].get, names),
            ]
            for record in scored
        ]
        result.append(
            Section(
                "Scores while training",
                "Development sets, cut to a few seconds' work.",
                [Table(title="", columns=["after", *names], rows=rows)],
            )
        )
    return result


def profile_table(profile: TrainingTime) -> tuple[list[str], list[list[str]], list[str]]:
    """Lay out where the time of training went: columns, rows, and what is said beside them."""
    total = sum(profile["seconds"].values()) or 1.0
    rows = [
        [part, f"{seconds:,.1f}", f"{100 * seconds / total:.1f} %"]
        for part, seconds in profile["seconds"].items()
    ]
    lines = [f"this machine multiplies matrices at {profile['matrix_gflops']:,} GF/s"]
    passes, steps = profile["reached"]["passes"], profile["reached"]["steps"]
    if passes is not None and steps is not None:
        lines.append(
            f"training reached {100 * passes:.0f} % of that in its forward and backward passes, "
            f"{100 * steps:.0f} % over whole steps"
        )
    return ["part", "seconds", "share"], rows, lines


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"


def _warnings(metrics: RunMetrics, recipe: Recipe) -> list[str]:
    result = []
    if recipe.teacher.instructions is None:
        result.append(
            "This teacher knows no instruction, so every text was embedded as it is, in every"
            " phase."
        )
    for phase, course in metrics["course"].items():
        result += [
            line for line in Course(phase=phase, **course).lines() if line.startswith("warning: ")
        ]
    return result


def write_evaluation(out: Path, results: Results, commands: list[str]) -> None:
    """Write DIR/report.html of what `evaluate_models` returned, with suites and seen texts."""
    seen, warnings = results.get("seen", ()), list[str]()
    for each in seen:
        warnings += warnings_of(each["training"], each["sets"])
    for suite in results.get("suites", ()):
        if suite["missing"]:
            run, lost = len(suite["tasks"]) - len(suite["missing"]), len(suite["missing"])
            warnings.append(
                f"{suite['suite']}: the data of {lost} task{'s' * (lost > 1)} was out of reach;"
                f" means are over the other {run}."
            )
    data = ReportData(
        title="Evaluation",
        results=results,
        seen={
            name if len(seen) == 1 else f"{name} ({each['training']})": counts
            for each in seen
            for name, counts in each["sets"].items()
        },
        commands=commands,
        warnings=warnings,
        versions=results["versions"],
    )
    write_output(out / "report.html", render_report(data))
