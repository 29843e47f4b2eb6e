"""`compare-teachers`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, EvalSets, JsonPath, MaxQueries, Quiet, Seed
from taskdistill.cli.terminal import Terminal

if TYPE_CHECKING:
    from taskdistill.workflows.compare_teachers import TeacherRow


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare-teachers")(compare_teachers)


def compare_teachers(
    teachers: Annotated[
        list[str],
        typer.Argument(
            metavar="TEACHER...",
            help="Candidates: model folders, Hub ids, all-MiniLM-L6-v2, http://HOST/v1#model=NAME",
        ),
    ],
    data: Annotated[
        Path,
        typer.Option("--data", help="Folder of evaluation sets in the layout of docs/data.md."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help=(
                "Folder for probe.json, students, teacher vectors and scores; run again to"
                " continue."
            ),
        ),
    ],
    sets: EvalSets = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            "--texts",
            help=(
                "Data folder or file of rows that students learn from; default: the train splits of"
                " --data."
            ),
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Model whose tokenizer all students take; default: each local teacher's own.",
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--max-texts", min=2, help="Texts that each teacher embeds for its student."),
    ] = 4000,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Updates of each student.")] = 400,
    max_queries: MaxQueries = None,
    seed: Seed = 17,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Score candidate teachers, and the static student that each makes in about a minute, on your
    evaluation sets.

    A stronger teacher is not always the better one; this tells before a long run.

    Example: [bold]taskdistill compare-teachers all-MiniLM-L6-v2 models/big-teacher --data my-sets
    --out probe[/bold]
    """
    import os

    from taskdistill.device import RuntimeOptions
    from taskdistill.encode.batches import cores
    from taskdistill.evaluate.datasets import EvalSelection
    from taskdistill.evaluate.models.external import parse_spec
    from taskdistill.io.outputs import copy_result
    from taskdistill.workflows.compare_teachers import StudentOptions
    from taskdistill.workflows.compare_teachers import compare_teachers as run
    from taskdistill.workflows.student_maker import StudentBudget

    terminal = Terminal(quiet)
    try:
        result = run(
            [parse_spec(teacher) for teacher in teachers],
            EvalSelection(data, sets, max_queries),
            out,
            terminal,
            students=StudentOptions(texts, tokenizer, StudentBudget(limit, steps, seed=seed)),
            environment=os.environ,
            runtime=RuntimeOptions(device, dtype, cores()),
        )
    finally:
        terminal.end()
    rows = [
        [
            row["teacher"],
            f"{row['dim']}",
            f"{100 * row['score']:.1f}",
            f"{100 * row['student']:.1f}",
            _share(row),
            f"{row['seconds']:.0f}",
        ]
        for row in result["teachers"]
    ]
    columns = [
        "teacher",
        "dimensions",
        "teacher's score",
        "its student's score",
        "kept",
        "seconds for the student",
    ]
    terminal.table("Mean over the types of sets x 100, the best student first", columns, rows)
    terminal.line(result["advice"])
    terminal.line(f"result  {out / 'probe.json'}")
    if json is not None:
        copy_result(out / "probe.json", json)


def _share(row: TeacherRow) -> str:
    return f"{100 * row['student'] / row['score']:.1f} %" if row["score"] > 0 else "-"
