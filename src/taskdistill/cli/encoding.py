"""`encode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput
from taskdistill.vocabulary import Backend, Precision, Role, Task

if TYPE_CHECKING:
    from taskdistill.encode.encoder import Encoder


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
    backend: Annotated[
        Backend, typer.Option("--backend", help="What runs the model; int8 changes the vectors and says by how much")
    ] = Backend.TORCH,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:N or mps; cpu if left out")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32, or bfloat16 or float16 where the hardware has it")] = None,
    column: Annotated[str, typer.Option("--column", help="Column or field that holds the text")] = "text",
    max_length: Annotated[int | None, typer.Option("--max-length", help="Most tokens of one text")] = None,
    windows: Annotated[
        bool, typer.Option("--windows", help="Long texts whole: one vector, the mean of windows of at most --max-length tokens")
    ] = False,
    chunks: Annotated[
        int | None,
        typer.Option("--chunks", help="Long texts whole: a vector for each N tokens with its place, after one pass over the text"),
    ] = None,
    overlap: Annotated[int | None, typer.Option("--overlap", help="Tokens that a window or pass reads again")] = None,
    refuse_truncation: Annotated[bool, typer.Option("--refuse-truncation", help="A text that is too long is an error")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write counts as JSON to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Turn texts into vectors; streams, in input order, and writes the file whole or not at all.

    A text longer than the model reads is cut at its end, and counted; --refuse-truncation makes it an error, --windows and
    --chunks leave nothing out.

    Example: [bold]taskdistill encode runs/quickstart/model notes.txt --out notes.npy --task retrieval[/bold]

    Example: [bold]taskdistill encode runs/quickstart/model books.jsonl --out books.parquet --chunks 256[/bold]
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.encode.files import Reading, encode_file
    from taskdistill.encode.long_files import Long
    from taskdistill.folders import dump_json, write_file

    terminal = Terminal(quiet)
    if windows and chunks is not None:
        raise BadInput("--windows gives one vector a text and --chunks many; give one of them")
    if overlap is not None and not windows and chunks is None:
        raise BadInput("--overlap has no effect without --windows or --chunks; remove it")
    long = Long(chunks, overlap) if windows or chunks is not None else None
    encoder = Encoder.load(model, backend=backend.value, device=device, dtype=dtype)
    terminal.stage(f"encoding {source} with {encoder.name}")
    if backend is not Backend.TORCH:
        _tell_backend(terminal, encoder, backend, task)
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
        long=long,
        progress=terminal.count,
    )
    terminal.end()
    for example in counts.examples:
        terminal.note(example)
    told = f"{counts.truncated:,} cut at the length limit"
    if long is not None:
        told = f"none cut: {counts.vectors:,} vectors from {counts.windows:,} passes"
    terminal.line(f"{counts.read:,} rows read, {counts.used:,} encoded, {counts.rejected:,} rejected, {told} -> {out}")
    if json is not None:
        write_file(json, dump_json(counts.as_dict()))


def _tell_backend(terminal: Terminal, encoder: Encoder, backend: Backend, task: Task | None) -> None:
    from taskdistill.encode.check import golden_cosine, int8_cosines

    name = task.value if task else None
    if found := int8_cosines(encoder, name):
        terminal.line(f"int8: cosine to float32 on {found.texts} calibration texts: mean {found.mean:.4f}, smallest {found.smallest:.4f}")
    if (smallest := golden_cosine(encoder, name)) is not None:
        terminal.note(f"back end {backend.value}: smallest cosine to the model's golden vectors {smallest:.6f}")
