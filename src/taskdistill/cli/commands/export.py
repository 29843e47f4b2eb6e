"""`export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import JsonPath, Quiet
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput
from taskdistill.types import MANIFEST


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    model: Annotated[
        str, typer.Argument(help="Model folder or Hub id; for a search engine: index folder")
    ],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            help=(
                "Of a model: sentence-transformers, jina-v5, onnx, openvino, gguf. Of an index:"
                " qdrant, lancedb, pgvector, elasticsearch"
            ),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to make")],
    task: Annotated[
        str | None,
        typer.Option("--task", help="Adapter to merge, by its name; none exports the base"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Table, collection or index in the engine; default: passages"),
    ] = None,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Write a model for other programs, with a certificate of how close it comes; or an index for a
    search engine.

    Examples: [bold]taskdistill export runs/quickstart/model --format onnx --task retrieval --out
    onnx-model[/bold] and [bold]taskdistill export notes-index --format qdrant --out
    notes-qdrant[/bold]
    """
    from taskdistill.export.export import export as run
    from taskdistill.export.parity import COLUMNS, table_rows
    from taskdistill.io.outputs import write_result

    if _is_index(Path(model)):
        if task is not None:
            raise BadInput(
                f"the vectors of an index are of its own task, so --task {task} has no effect;"
                " leave it out"
            )
        _export_index(Path(model), format_name, out, name or "passages", json, Terminal(quiet))
        return
    if name is not None:
        raise BadInput(f"--name {name} is for an index, {model} is none; leave it out")
    terminal = Terminal(quiet)
    terminal.stage(f"exporting {model} as {format_name}")
    certificate = run(model, format_name, out, task=task, progress=terminal.count)
    terminal.end()
    terminal.table(f"Parity: {certificate.verdict}", list(COLUMNS), table_rows(certificate.results))
    for note in certificate.notes:
        terminal.note(note)
    terminal.line(f"export  {out}")
    if json is not None:
        write_result(json, certificate.to_json())


def _is_index(path: Path) -> bool:
    from taskdistill.io.folders import read_manifest

    return (path / MANIFEST).is_file() and read_manifest(path).get("kind") == "search-index"


def _export_index(
    path: Path, format_name: str, out: Path, name: str, json: Path | None, terminal: Terminal
) -> None:
    from taskdistill.export.vector_databases import export_index
    from taskdistill.io.outputs import write_result

    terminal.stage(f"exporting {path} for {format_name}")
    result = export_index(path, format_name, out, name=name, progress=terminal.count)
    measured = (
        "as tuned"
        if result["oversample_is_measured"]
        else "the default; `taskdistill search tune` measures it"
    )
    terminal.line(
        f"{result['passages']:,} passages of {result['dim']} dimensions; {result['oversample']}"
        f" candidates rescored a passage ({measured})"
    )
    terminal.line(f"export  {out}  {', '.join(result['files'])}")
    if json is not None:
        write_result(json, result)
