"""`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.terminal import Terminal
from taskdistill.vocabulary import Task


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The application.
    """
    app.command("export")(export)


def export(
    model: Annotated[str, typer.Argument(help="Model folder or Hub id")],
    format_name: Annotated[str, typer.Option("--format", help="sentence-transformers, jina-v5, onnx, openvino or gguf")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make")],
    task: Annotated[Task | None, typer.Option("--task", help="Adapter to merge; none exports the base")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the certificate to this file too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Write a model for other programs, with a certificate of how close it comes.

    Example: [bold]taskdistill export runs/quickstart/model --format onnx --task retrieval --out onnx-model[/bold]
    """
    from taskdistill.export.make import export as run
    from taskdistill.folders import dump_json, write_file

    terminal = Terminal(quiet)
    terminal.stage(f"exporting {model} as {format_name}")
    certificate = run(model, format_name, task.value if task else None, out, progress=terminal.count)
    terminal.end()
    for result in certificate["results"]:
        terminal.line("  ".join(f"{key} {value}" for key, value in result.items()))
    for note in certificate.get("notes", []):
        terminal.note(note)
    terminal.line(f"export  {out}")
    if json is not None:
        write_file(json, dump_json(certificate))
