"""`index` and `search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.terminal import Terminal
from taskdistill.vocabulary import Task


def register(app: typer.Typer) -> None:
    """Add the commands.

    Args:
        app: The application.
    """
    app.command("index")(index)
    app.command("search")(search)


def index(
    model: Annotated[str, typer.Argument(help="Model folder, Hub id, or all-MiniLM-L6-v2")],
    corpus: Annotated[Path, typer.Argument(help=".csv, .jsonl (gzip too), .parquet, or a folder of text files")],
    out: Annotated[Path, typer.Option("--out", help="Index folder; run again to continue or to add what is new")],
    task: Annotated[Task | None, typer.Option("--task", help="Adapter; default: retrieval where the model has it")] = None,
    dim: Annotated[int | None, typer.Option("--dim", help="Keep the first K coordinates")] = None,
    rescore: Annotated[str, typer.Option("--rescore", help="Kept beside the binary codes: int8, float16, float32 or none")] = "int8",
    passage_words: Annotated[
        int | None, typer.Option("--passage-words", help="Cut long documents into passages of this many words")
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25", help="Also build the word index for hybrid search")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Embed a corpus into an index folder: binary codes first, rescored by int8 or floats.

    Example: [bold]taskdistill index runs/quickstart/model notes/ --out notes-index[/bold]
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.search.build import build_index
    from taskdistill.search.corpus import Corpus
    from taskdistill.search.passages import Passages

    terminal = Terminal(quiet)
    encoder = Encoder.load(model)
    encoder.model.name = model
    chosen = task.value if task is not None else Task.RETRIEVAL.value if Task.RETRIEVAL in encoder.tasks else None
    terminal.stage(f"indexing {corpus} with {encoder.name}")
    documents = Corpus(corpus)
    passages = None if passage_words is None else Passages(size=passage_words)
    made, report = build_index(
        encoder, documents, out, task=chosen, truncate_dim=dim, rescore=rescore, passages=passages, progress=terminal.count
    )
    terminal.end()
    if bm25:
        made.build_bm25()
    for fault in documents.report.faults:
        terminal.note(f"{fault.file}:{fault.line}: {fault.reason}")
    terminal.line(
        f"{documents.report.rows:,} rows read, {documents.report.rejected:,} rejected; {report.added:,} documents added, "
        f"{report.replaced:,} replaced, {report.unchanged:,} there already; {made.documents:,} documents -> {out}"
    )


def search(
    index: Annotated[Path, typer.Argument(help="Index folder")],
    query: Annotated[str, typer.Argument(help="What to look for")],
    model: Annotated[str | None, typer.Option("--model", help="Model folder; default: the one the index was made with")] = None,
    top_k: Annotated[int, typer.Option("-k", help="Documents returned")] = 10,
    where: Annotated[list[str] | None, typer.Option("--filter", help="Metadata condition, such as year>=2020; may be repeated")] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Join with the word index by reciprocal rank fusion")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the hits as JSON to this file.")] = None,
) -> None:
    """Search an index.

    Example: [bold]taskdistill search notes-index "how to wait for a thread" --model runs/quickstart/model[/bold]
    """
    from dataclasses import asdict

    from taskdistill.encode.encoder import Encoder
    from taskdistill.folders import dump_json, write_file
    from taskdistill.search.index import Index

    terminal = Terminal()
    opened = Index.open(index)
    encoder = Encoder.load(model or opened.settings.model)
    hits = opened.search([query], top_k, encoder=encoder, filter=where or None, hybrid=hybrid)[0]
    for hit in hits:
        terminal.line(f"{hit.score:.3f}  {hit.id}  {' '.join(hit.text.split())[:100]}")
    if json is not None:
        write_file(json, dump_json([asdict(hit) for hit in hits]))
