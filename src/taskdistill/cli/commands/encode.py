"""`encode`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, JsonPath, Quiet
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput
from taskdistill.tasks import Role
from taskdistill.types import Backend, Precision

if TYPE_CHECKING:
    from taskdistill.encode.encoder import Encoder
    from taskdistill.encode.long_text_files import LongTextOptions
    from taskdistill.encode.runner import EncodeOptions
    from taskdistill.encode.texts import EncodeStats
    from taskdistill.io.records import TextSource

ENDINGS = (".npy", ".parquet", ".jsonl")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What runs the model, and where."""

    backend: Backend
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class ShardOptions:
    """What was said of a folder of shards."""

    processes: int | None = None
    shard_rows: int | None = None
    merge: Path | None = None
    ray: bool = False


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("encode")(encode)


def encode(
    model: Annotated[str, typer.Argument(help="Model folder, Hub id, or all-MiniLM-L6-v2")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help=".txt, .jsonl, .csv, .parquet (gzip too), or - for lines on standard input",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help=(
                ".npy, .parquet or .jsonl: one file, in input order; a name without ending: a"
                " folder of shards"
            ),
        ),
    ],
    task: Annotated[
        str | None, typer.Option("--task", help="Adapter to use, by its name; none gives the base")
    ] = None,
    prompt: Annotated[
        Role, typer.Option("--prompt", help="Which of the model's prompts goes before every text")
    ] = Role.DOCUMENT,
    dim: Annotated[
        int | None,
        typer.Option("--dim", help="Keep the first K coordinates, then scale to unit length"),
    ] = None,
    precision: Annotated[Precision, typer.Option("--precision")] = Precision.FLOAT32,
    backend: Annotated[
        Backend,
        typer.Option(
            "--backend", help="What runs the model; int8 changes the vectors and says by how much"
        ),
    ] = Backend.TORCH,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    column: Annotated[
        str, typer.Option("--column", help="Column or field that holds the text")
    ] = "text",
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Most tokens of one text")
    ] = None,
    windows: Annotated[
        bool,
        typer.Option(
            "--windows",
            help="Long texts whole: one vector, the mean of windows of at most --max-length tokens",
        ),
    ] = False,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            help=(
                "Long texts whole: a vector for each N tokens with its place, after one pass over"
                " the text"
            ),
        ),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option("--overlap", help="Tokens that a window or pass reads again")
    ] = None,
    refuse_truncation: Annotated[
        bool, typer.Option("--refuse-truncation", help="A text that is too long is an error")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            help=(
                "Folder: workers, each with the model, on the devices in turn; --device takes"
                " several: cuda:0,cuda:1"
            ),
        ),
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option("--shard-rows", help="Folder: rows of a shard, which is done wholly or again"),
    ] = None,
    merge: Annotated[
        Path | None,
        typer.Option("--merge", help="Folder: copy all shards into this one file at the end"),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Folder: workers on a Ray cluster that shares this file system"),
    ] = False,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Turn texts into vectors; streams, in input order, and writes the file whole or not at all.

    A text longer than the model reads is cut at its end, and counted; --refuse-truncation makes it
    an error, --windows and --chunks leave nothing out. A folder of shards goes on where it was
    interrupted when the command is run again.

    Example: [bold]taskdistill encode runs/quickstart/model notes.txt --out notes.npy --task
    retrieval[/bold]

    Example: [bold]taskdistill encode runs/quickstart/model books.jsonl --out books.parquet --chunks
    256[/bold]

    Example: [bold]taskdistill encode runs/quickstart/model corpus.parquet --out vectors --processes
    4[/bold]
    """
    from taskdistill.encode.long_text_files import LongTextOptions
    from taskdistill.io.outputs import write_result
    from taskdistill.io.records import TextSource

    terminal = Terminal(quiet)
    if windows and chunks is not None:
        raise BadInput("--windows gives one vector a text and --chunks many; give one of them")
    if overlap is not None and not windows and chunks is None:
        raise BadInput("--overlap has no effect without --windows or --chunks; remove it")
    long = LongTextOptions(chunks, overlap) if windows or chunks is not None else None
    options: EncodeOptions = {
        "task": task,
        "prompt_name": prompt.value,
        "truncate_dim": dim,
        "precision": precision.value,
        "max_length": max_length,
        "refuse_truncation": refuse_truncation,
    }
    texts, running = TextSource(source, column), RuntimeOptions(backend, device, dtype)
    sharded = ShardOptions(processes, shard_rows, merge, ray)
    if out.suffix in ENDINGS or (out.suffix and sharded == ShardOptions() and not out.is_dir()):
        if sharded != ShardOptions():
            raise BadInput(
                f"{out}: --processes, --shard-rows, --merge and --ray have no effect on one file;"
                " give --out a name without ending"
            )
        counts = _to_file(terminal, model, texts, out, options, running, long)
    else:
        if long is not None:
            raise BadInput(
                "--windows and --chunks write one file; give --out an ending: .parquet or .jsonl"
            )
        counts = _to_folder(terminal, model, texts, out, options, running, sharded)
    terminal.end()
    for example in counts.examples:
        terminal.note(example)
    cut = f"{counts.truncated:,} cut at the length limit"
    if long is not None:
        cut = f"none cut: {counts.vectors:,} vectors from {counts.windows:,} passes"
    terminal.line(
        f"{counts.read:,} rows read, {counts.used:,} encoded, {counts.rejected:,} rejected, {cut}"
        f" -> {out}"
    )
    if merge is not None:
        terminal.line(f"all shards -> {merge}")
    if json is not None:
        write_result(json, counts.as_dict())


def _to_file(
    terminal: Terminal,
    model: str,
    source: TextSource,
    out: Path,
    options: EncodeOptions,
    running: RuntimeOptions,
    long: LongTextOptions | None,
) -> EncodeStats:
    from taskdistill.encode.encoder import Encoder
    from taskdistill.encode.files import encode_file
    from taskdistill.io.outputs import check_output
    from taskdistill.io.vector_files import REPLACEABLE

    if out.suffix in REPLACEABLE:
        check_output(out, REPLACEABLE[out.suffix])
    encoder = Encoder.load(
        model, backend=running.backend.value, device=running.device, dtype=running.dtype
    )
    terminal.stage(f"encoding {source.path} with {encoder.name}")
    _tell_backend(terminal, encoder, options)
    return encode_file(encoder, source, out, options, long=long, progress=terminal.count)


def _to_folder(
    terminal: Terminal,
    model: str,
    source: TextSource,
    out: Path,
    options: EncodeOptions,
    running: RuntimeOptions,
    sharded: ShardOptions,
) -> EncodeStats:
    from taskdistill.encode.corpus import SHARD_ROWS, ShardWorkers, encode_corpus
    from taskdistill.encode.ray_executor import run_ray
    from taskdistill.encode.vectors import merge_vectors
    from taskdistill.errors import require_extra
    from taskdistill.io.outputs import check_output, check_parent
    from taskdistill.io.vector_files import REPLACEABLE

    if sharded.merge is not None and sharded.merge.suffix not in ENDINGS:
        raise BadInput(
            f"{sharded.merge}: vectors are written as {', '.join(ENDINGS)}; give --merge one of"
            " these endings"
        )
    if sharded.merge is not None:
        check_output(sharded.merge, REPLACEABLE[sharded.merge.suffix])
        check_parent(sharded.merge)
    if sharded.ray:
        require_extra("ray", "ray", "--ray")
    terminal.stage(f"encoding {source.path} with {model}")
    counts = encode_corpus(
        model,
        source,
        out,
        options,
        ShardWorkers(
            processes=1 if sharded.processes is None else sharded.processes,
            devices=running.device.split(","),
            backend=running.backend.value,
            dtype=running.dtype,
            execute=run_ray if sharded.ray else None,
        ),
        shard_rows=SHARD_ROWS if sharded.shard_rows is None else sharded.shard_rows,
        opened=lambda encoder: _tell_backend(terminal, encoder, options),
        progress=terminal.count,
    )
    if sharded.merge is not None:
        merge_vectors(out, sharded.merge)
    return counts


def _tell_backend(terminal: Terminal, encoder: Encoder, options: EncodeOptions) -> None:
    from taskdistill.encode.check import golden_cosine, int8_cosines

    terminal.note(encoder.placement)
    if encoder.backend is encoder.model.module:
        return
    task = options["task"]
    assert task is None or isinstance(task, str)
    if scores := int8_cosines(encoder, task):
        terminal.line(
            f"int8: cosine to float32 on {scores.texts} calibration texts: mean {scores.mean:.4f},"
            f" smallest {scores.smallest:.4f}"
        )
    if (smallest := golden_cosine(encoder, task)) is not None:
        terminal.note(f"smallest cosine to the model's golden vectors: {smallest:.6f}")
