"""`index`, what changes an index, and `search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskdistill.cli.commands.migrate import is_migration, search_migration
from taskdistill.cli.json_result import is_hits
from taskdistill.cli.options import AUTO, Device, Dtype, JsonPath, Quiet
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput
from taskdistill.tasks import Task

if TYPE_CHECKING:
    from taskdistill.search.passages import PassageSettings
    from taskdistill.search.storage.snapshot import Hit


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("index")(index)
    app.command("index delete")(delete)
    app.command("index compact")(compact)
    app.command("search")(search)


def index(
    model: Annotated[str, typer.Argument(help="Model folder, Hub id, or all-MiniLM-L6-v2")],
    corpus: Annotated[
        Path, typer.Argument(help=".csv, .jsonl (gzip too), .parquet, or a folder of text files")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", help="Index folder; run again to continue or to add what is new"),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="Adapter, by its name; default: retrieval where the model has it"
        ),
    ] = None,
    base: Annotated[
        bool,
        typer.Option(
            "--base",
            help="No adapter: base vectors, which a student can query through its projection",
        ),
    ] = False,
    dim: Annotated[int | None, typer.Option("--dim", help="Keep the first K coordinates")] = None,
    rescore: Annotated[
        str,
        typer.Option(
            "--rescore-precision",
            help="Kept beside the binary codes: int8, float16, float32 or none",
        ),
    ] = "int8",
    passage_words: Annotated[
        int | None,
        typer.Option("--passage-words", help="Cut long documents into passages of this many words"),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            "--text-field", help="Field or column of the text; default: text, content, body"
        ),
    ] = None,
    id_field: Annotated[
        str | None,
        typer.Option(
            "--id-field", help="Field or column of the id; default: _id or id, else the place"
        ),
    ] = None,
    bm25: Annotated[
        bool, typer.Option("--bm25", help="Also build the word index for hybrid search")
    ] = False,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Embed a corpus into an index folder: binary codes first, rescored by int8 or floats.

    Documents that are there already are left alone, those whose text changed under the same id are
    replaced.

    Example: [bold]taskdistill index runs/quickstart/model notes/ --out notes-index[/bold]
    """
    from dataclasses import asdict

    from taskdistill.encode.encoder import Encoder
    from taskdistill.io.outputs import write_result
    from taskdistill.search.build import build_index
    from taskdistill.search.corpus import Corpus
    from taskdistill.search.passages import word_passages
    from taskdistill.search.settings import StorageOptions
    from taskdistill.search.storage.folder import check_target

    if base and task is not None:
        raise BadInput(f"--base means no adapter, --task {task} asks for one; give one of the two")
    check_target(out)
    documents = Corpus(corpus, text_field=text_field, id_field=id_field)
    passages = word_passages(passage_words)
    terminal = Terminal(quiet)
    encoder = Encoder.load(model, device=device, dtype=dtype)
    encoder.model.name = model
    usual = Task.RETRIEVAL.value if Task.RETRIEVAL in encoder.tasks and not base else None
    terminal.stage(f"indexing {corpus} with {encoder.name}")
    terminal.note(encoder.placement)
    opened, report = build_index(
        encoder,
        documents,
        out,
        task=usual if task is None else task,
        progress=terminal.count,
        storage=StorageOptions(truncate_dim=dim, rescore=rescore, passages=passages),
    )
    terminal.end()
    if (bm25 or opened.snapshot.manifest.search.hybrid) and opened.snapshot.manifest.bm25 is None:
        opened.build_bm25()
    for example in documents.stats.examples:
        terminal.note(example)
    terminal.line(
        f"{documents.stats.read:,} rows read, {documents.stats.rejected.total():,} rejected;"
        f" {report.added:,} documents added, {report.replaced:,} replaced, {report.unchanged:,}"
        f" there already; {opened.documents:,} documents -> {out}"
    )
    if json is not None:
        counts = {
            "rows": documents.stats.read,
            "rejected": documents.stats.rejected.total(),
            **asdict(report),
            "documents": opened.documents,
        }
        write_result(json, counts)


def delete(
    index: Annotated[Path, typer.Argument(help="Index folder")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of documents")],
) -> None:
    """Delete documents from an index by their ids.

    Example: [bold]taskdistill index delete notes-index old.txt draft.txt[/bold]
    """
    from taskdistill.search.index import Index

    opened = Index.open(index)
    gone = opened.delete(ids)
    Terminal().line(
        f"{gone:,} of {len(set(ids)):,} documents deleted, {opened.documents:,} left -> {index}"
    )


def compact(index: Annotated[Path, typer.Argument(help="Index folder")]) -> None:
    """Write an index again without what was deleted from it, in as few files as can be.

    Example: [bold]taskdistill index compact notes-index[/bold]
    """
    from taskdistill.search.index import Index

    opened = Index.open(index)
    hybrid = opened.snapshot.manifest.bm25 is not None
    opened.compact()
    if hybrid and opened.snapshot.manifest.bm25 is None:
        opened.build_bm25()
    Terminal().line(
        f"{opened.documents:,} documents, {len(opened.snapshot.manifest.segments)} segments,"
        f" {sum(opened.sizes().values()):,} bytes -> {index}"
    )


def search(
    index: Annotated[Path, typer.Argument(help="Index folder")],
    query: Annotated[str, typer.Argument(help="What to look for")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--query-model",
            help="What embeds the query: the index's model (default) or a student of it",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option("-k", help="Passages returned")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Metadata condition, such as year>=2020; may be repeated"),
    ] = None,
    oversample: Annotated[
        int | None,
        typer.Option("--oversample", help="Candidates rescored for each passage returned"),
    ] = None,
    hybrid: Annotated[
        bool | None,
        typer.Option(
            "--hybrid/--no-hybrid", help="Join with the word index by reciprocal rank fusion"
        ),
    ] = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            "--refine/--no-refine", help="Move the query towards its best passages, search again"
        ),
    ] = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
) -> None:
    """Search an index; what is not said is as [bold]taskdistill search tune[/bold] has set it.

    Example: [bold]taskdistill search notes-index "how to wait for a thread" --model
    runs/quickstart/model[/bold]
    """
    from dataclasses import asdict

    from taskdistill.encode.encoder import Encoder
    from taskdistill.encode.projected import in_space
    from taskdistill.io.outputs import write_result
    from taskdistill.search.index import Index

    terminal = Terminal()
    if is_migration(index):
        if model is not None or where or oversample is not None or hybrid or refine:
            raise BadInput(
                f"{index} is a migration, which is searched with -k alone; give one of its two"
                " indexes for other options"
            )
        hits = search_migration(index, query, top_k, terminal, device, dtype)
        _show(hits, terminal, None)
        if json is not None:
            write_result(json, [asdict(hit) for hit in hits], is_hits)
        return
    opened = Index.open(index)
    encoder = Encoder.load(model or opened.settings.model, device=device, dtype=dtype)
    hits = opened.search(
        [query],
        top_k,
        encoder=in_space(encoder, opened.settings.space_id, *opened.settings.former_space_ids),
        filter=where or None,
        oversample=oversample,
        hybrid=hybrid,
        refinement=refine,
    )[0]
    terminal.aside(encoder.placement)
    _show(hits, terminal, opened.settings.passages)
    if json is not None:
        write_result(json, [asdict(hit) for hit in hits], is_hits)


def _show(hits: list[Hit], terminal: Terminal, passages: PassageSettings | None) -> None:
    for hit in hits:
        place = "" if passages is None else f"[{hit.start}:{hit.end}]"
        terminal.line(f"{hit.score:.3f}  {hit.id}{place}  {' '.join(hit.text.split())[:100]}")
