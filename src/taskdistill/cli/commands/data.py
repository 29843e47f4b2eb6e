"""`data`: build and inspect training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import Quiet, Seed
from taskdistill.cli.terminal import Terminal

data = typer.Typer(no_args_is_help=True, help="Build and inspect training data.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(data, name="data")


@data.command("docs")
def docs(
    out: Annotated[Path, typer.Option("--out", help="Data folder to make")],
    seed: Seed = 17,
    limit: Annotated[
        int | None, typer.Option("--max-documents", help="At most this many training documents")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write the documentation of the installed Python packages as a data folder.

    Example: [bold]taskdistill data docs --out docs-data[/bold]
    """
    from taskdistill.demo.folder import build_docs_folder
    from taskdistill.pipeline.setup import counts_lines

    terminal = Terminal(quiet)
    terminal.stage("reading the documentation of the installed packages")
    counts = build_docs_folder(out, seed=seed, limit=limit, progress=terminal.count)
    for line in counts_lines(counts):
        terminal.line(line)


@data.command("inspect")
def inspect(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe")],
    step: Annotated[int, typer.Option("--step", help="Step of the phase, from 0")] = 0,
    phase: Annotated[
        str, typer.Option("--phase", help="stage1, long or adapters.<task>")
    ] = "stage1",
    row: Annotated[
        int | None, typer.Option("--row", help="Show every candidate of this row with its relation")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Folder of teacher stores, such as that of a run")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key")] = None,
    data_folder: Annotated[
        Path | None,
        typer.Option("--data-folder", help="Embedded default: the folder of an earlier run's data"),
    ] = None,
) -> None:
    """Show one batch with its relations: positives, negatives, hard negatives, and which candidates
    are masked why.

    Example: [bold]taskdistill data inspect recipes/quickstart.yaml --phase adapters.retrieval
    --step 3[/bold]
    """
    import os

    from taskdistill.recipe.recipe import load_recipe
    from taskdistill.workflows.inspect_batch import InspectRequest, inspect_batch

    config, terminal = load_recipe(recipe, overrides or ()), Terminal()
    key = None if config.teacher.api_key_env is None else os.environ.get(config.teacher.api_key_env)
    request = InspectRequest(phase=phase, step=step, row=row, data_folder=data_folder, store=store)
    title, columns, rows, notes = inspect_batch(
        config, recipe.parent, request, terminal, api_key=key
    )
    terminal.table(title, columns, rows)
    for note in notes:
        terminal.line(note)
