"""`encode`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.terminal import Terminal
from taskdistill.vocabulary import Precision, Role, Task


class Backend(StrEnum):
    """What runs the model."""

    TORCH = "torch"


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The application.
    """
    app.command("encode")(encode)


def encode(
    model: Annotated[str, typer.Argument(help="Model folder, Hub id, or all-MiniLM-L6-v2")],
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help=".txt, .jsonl, .csv, .parquet (gzip too), or - for lines on standard input")
    ],
    out: Annotated[Path, typer.Option("--out", help=".npy, .parquet or .jsonl; vectors in input order")],
    task: Annotated[Task | None, typer.Option("--task", help="Adapter to use; none gives the base")] = None,
    prompt: Annotated[Role, typer.Option("--prompt", help="Which of the model's prompts goes before every text")] = Role.DOCUMENT,
    dim: Annotated[int | None, typer.Option("--dim", help="Keep the first K coordinates, then scale to unit length")] = None,
    precision: Annotated[Precision, typer.Option("--precision")] = Precision.FLOAT32,
    backend: Annotated[Backend, typer.Option("--backend")] = Backend.TORCH,
    column: Annotated[str, typer.Option("--column", help="Column or field that holds the text")] = "text",
    max_length: Annotated[int | None, typer.Option("--max-length", help="Most tokens of one text")] = None,
    refuse_truncation: Annotated[bool, typer.Option("--refuse-truncation", help="A text that is too long is an error")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write counts as JSON to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Turn texts into vectors; streams, in input order, and writes the file whole or not at all.

    Example: [bold]taskdistill encode runs/quickstart/model notes.txt --out notes.npy --task retrieval[/bold]
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.encode.files import Reading, encode_file
    from taskdistill.folders import dump_json, write_file

    terminal = Terminal(quiet)
    encoder = Encoder.load(model)
    terminal.stage(f"encoding {source} with {encoder.name}")
    counts = encode_file(
        encoder,
        Reading(source, column),
        out,
        task=task.value if task else None,
        prompt_name=prompt.value,
        truncate_dim=dim,
        precision=precision.value,
        max_length=max_length,
        refuse_truncation=refuse_truncation,
        progress=terminal.count,
    )
    terminal.end()
    for example in counts.examples:
        terminal.note(example)
    terminal.line(
        f"{counts.read:,} rows read, {counts.used:,} encoded, {counts.rejected:,} rejected, {counts.truncated:,} cut at the length limit -> {out}"
    )
    if json is not None:
        write_file(json, dump_json(counts.as_dict()))
