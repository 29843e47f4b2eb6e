"""`adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import AUTO, Device, JsonPath, Quiet, Seed, TrainingDtype
from taskdistill.cli.terminal import Terminal, stopping
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.tasks import Task
from taskdistill.types import RowKind


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("adapt")(adapt)


def adapt(
    model: Annotated[
        Path,
        typer.Argument(
            help="Model folder that `taskdistill train` wrote; the adapter is added to it"
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            help=(
                "Rows as JSONL, CSV or Parquet (gzip too): text and label, query and positive, or"
                " scored pairs"
            )
        ),
    ],
    task: Annotated[Task, typer.Option("--task", help="What the adapter serves")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the adapter; default: the task's")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Train an adapter anew that the folder has")
    ] = False,
    dev: Annotated[
        Path | None,
        typer.Option(
            "--dev", help="Rows to score base and adapter on; a worse adapter is not written"
        ),
    ] = None,
    kind: Annotated[
        RowKind | None,
        typer.Option(
            "--kind",
            help="Kind of the rows where a task takes several: text-matching scored or pairs",
        ),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="FIELD=COLUMN, such as label=intent")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="A field of a recipe's adapter: --set steps=200"),
    ] = None,
    seed: Seed = 17,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            help=(
                "Share of the trained change that is kept, above 0 to 1; default: 0.7 for labelled"
                " rows, else 1"
            ),
        ),
    ] = None,
    device: Device = AUTO,
    dtype: TrainingDtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Add one adapter to a model folder, from a few hundred rows, in minutes; no other adapter and
    no base weight changes.

    No teacher is needed. Interrupted, the same command continues. Retrieval learns from pairs,
    text-matching from scored pairs or pairs, clustering and classification from labelled rows.

    Example: [bold]taskdistill adapt runs/quickstart/model intents.csv --task classification --name
    intents --dev intents-dev.csv[/bold]
    """
    from taskdistill.io.outputs import write_result
    from taskdistill.recipe.load import overridden
    from taskdistill.train.context import Interrupted
    from taskdistill.workflows.adapt import adapt as run
    from taskdistill.workflows.adapt_settings import AdaptRequest

    terminal = Terminal(quiet)
    request = AdaptRequest(
        data=data,
        task=task,
        name=name,
        kind=kind,
        replace=replace,
        dev=dev,
        columns=_columns(column or []),
        settings=overridden(overrides or []),
        seed=seed,
        strength=strength,
    )
    with stopping() as stop:
        try:
            result = run(
                model, request, progress=terminal, should_stop=stop, device=device, precision=dtype
            )
        except Interrupted as error:
            raise WorkFailed(str(error)) from None
        finally:
            terminal.end()
    terminal.line(
        f"adapter {model / 'adapters' / request.adapter}  {result['rows']:,} rows,"
        f" {result['seconds']:.0f} s"
    )
    terminal.line(f"use it  taskdistill encode {model} INPUT --task {request.adapter} --out FILE")
    if json is not None:
        write_result(json, result)


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for each in pairs:
        field, sign, column = each.partition("=")
        if not sign or not field or not column:
            raise BadInput(f"--column {each!r}: needs the form FIELD=COLUMN, such as label=intent")
        columns[field] = column
    return columns
