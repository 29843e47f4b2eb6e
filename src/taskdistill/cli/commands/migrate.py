"""`migrate` and `migrate state`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, JsonPath, Quiet, Seed
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.tasks import Task
from taskdistill.types import MANIFEST

if TYPE_CHECKING:
    from taskdistill.search.index import Index
    from taskdistill.search.storage.snapshot import Hit


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("migrate")(migrate)
    app.command("migrate state")(state)


def migrate(
    index: Annotated[Path, typer.Argument(help="Index of the old model")],
    model: Annotated[str, typer.Argument(help="The new model")],
    dev: Annotated[
        Path,
        typer.Option(
            "--dev",
            help="Folder with corpus.jsonl, queries.jsonl and qrels.tsv over the index's documents",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Migration folder: the map, and what answers now")
    ],
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="Index that `taskdistill index` fills with the new model, now or later"
        ),
    ] = None,
    old_model: Annotated[
        str | None, typer.Option("--old-model", help="Default: the one the index names")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The new model's adapter; default: retrieval where it has it"),
    ] = None,
    kind: Annotated[
        str, typer.Option("--map", help="procrustes, low-rank, residual, or best by held-out texts")
    ] = "best",
    sample: Annotated[
        int, typer.Option("--sample", help="Passages of the index embedded with the new model")
    ] = 20_000,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold", help="Share of the old recall@10 below which nothing is written"
        ),
    ] = 0.9,
    seed: Seed = 17,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Let a new model ask an old index, without embedding its documents again: fit a map on a
    sample, measure the recall kept.

    While the documents are embedded again, `taskdistill search DIR` asks both indexes; `taskdistill
    migrate state DIR --to old` goes back.

    Example: [bold]taskdistill migrate notes-index runs/new/model --dev notes-dev --out
    notes-migration --into notes-index-2[/bold]
    """
    from dataclasses import asdict

    from taskdistill.encode.encoder import Encoder
    from taskdistill.io.atomic import check_free
    from taskdistill.io.outputs import write_result
    from taskdistill.search.alignment import migration as m
    from taskdistill.search.alignment.maps import fit_maps
    from taskdistill.search.devset import read_dev_set
    from taskdistill.search.index import Index

    check_free(out)
    terminal, old = Terminal(quiet), Index.open(index)
    new = Encoder.load(model, device=device, dtype=dtype)
    terminal.note(new.placement)
    if old.settings.is_of(new.space_id, new.former_space_ids):
        raise BadInput(f"{model} is of the space of {index} already; search it as it is")
    chosen = task or (Task.RETRIEVAL.value if Task.RETRIEVAL in new.tasks else None)
    dev_set = read_dev_set(dev)
    queries = dev_set.judged_over(old.snapshot)
    terminal.stage(f"embedding a sample of {index} with {new.name}")
    new_vectors, old_vectors = m.sample_pairs(
        old, new, task=chosen, count=sample, seed=seed, progress=terminal.count
    )
    terminal.stage("fitting")
    fitted = fit_maps(new_vectors, old_vectors, kind=kind, seed=seed)
    for each in fitted:
        terminal.note(str(each))
    best = fitted[0].map
    meta = {
        "state": "both",
        "old_index": str(index),
        "new_index": None if into is None else str(into),
        "old_model": old_model or old.settings.model,
        "new_model": model,
        "model_hash": new.model_hash,
        "old_space": old.settings.space_id,
        "task": chosen,
        "sample": len(old_vectors),
        "calibration": list(m.calibrate(best, new_vectors, old_vectors, seed)),
        "cosines": {each.map.kind: each.cosine for each in fitted},
    }
    terminal.stage(f"measuring recall on {dev}")
    before = m.recalls(
        old,
        Encoder.load(old_model or old.settings.model, device=device, dtype=dtype),
        queries,
        dev_set.qrels,
    )
    mapped = m.Migration(out, meta, best).mapped(new)
    retention = m.recall_retention(before, m.recalls(old, mapped, queries, dev_set.qrels), seed)
    result = meta | {"map": best.kind, "recall": asdict(retention)}
    terminal.line(
        f"recall@10 {100 * retention.old:.1f} with the old model, {100 * retention.mapped:.1f} with"
        f" the new one through the {best.kind} map: {100 * retention.share:.1f} % kept (95 %"
        f" {100 * retention.low:.1f} to {100 * retention.high:.1f}; {retention.queries:,} queries)"
    )
    if json is not None:
        write_result(json, result)
    if retention.share < threshold:
        raise WorkFailed(
            f"{100 * retention.share:.1f} % of the recall is kept, --threshold asks for"
            f" {100 * threshold:.1f}: nothing was written; give a larger --sample, or build a new"
            " index with `taskdistill index`"
        )
    m.write_migration(out, best, result)
    terminal.line(f"migration {out}  search it with: taskdistill search {out} QUERY")


def state(
    migration: Annotated[Path, typer.Argument(help="Migration folder")],
    to: Annotated[
        str | None,
        typer.Option("--to", help="old: the way back; both; or new, once every document is there"),
    ] = None,
) -> None:
    """Say how far a migration is, or change what answers. The old index is never touched.

    Example: [bold]taskdistill migrate state notes-migration --to old[/bold]
    """
    from taskdistill.search.alignment import migration as m
    from taskdistill.search.index import Index

    terminal, read = Terminal(), m.read_migration(migration)
    old, new = Index.open(read.meta["old_index"]), _new_index(read.meta["new_index"])
    if to is not None:
        m.set_state(read, to, old, new)
        read = m.read_migration(migration)
    done = old.documents - m.count_to_migrate(old, new)
    retention = read.meta["recall"]
    terminal.line(f"state    {read.state}")
    terminal.line(
        f"map      {read.map.kind}, {100 * retention['share']:.1f} % of recall@10 kept on"
        f" {retention['queries']:,} queries"
    )
    terminal.line(f"moved    {done:,} of {old.documents:,} documents")


def search_migration(
    path: Path, query: str, top_k: int, terminal: Terminal, device: str, dtype: str
) -> list[Hit]:
    """Search by a migration folder. `terminal`: told where the model runs."""
    from taskdistill.encode.encoder import Encoder
    from taskdistill.search.alignment.migration import read_migration
    from taskdistill.search.index import Index

    read = read_migration(path)
    old = None if read.state == "new" else Index.open(read.meta["old_index"])
    new = None if read.state == "old" else _new_index(read.meta["new_index"])
    encoder = Encoder.load(
        read.meta["old_model" if read.state == "old" else "new_model"], device=device, dtype=dtype
    )
    terminal.aside(encoder.placement)
    return read.search(query, top_k, old=old, new=new, encoder=encoder)


def is_migration(path: Path) -> bool:
    """Say whether a folder is a migration."""
    from taskdistill.io.folders import read_manifest
    from taskdistill.search.alignment.migration import KIND

    return (path / MANIFEST).is_file() and read_manifest(path).get("kind") == KIND


def _new_index(path: str | None) -> Index | None:
    from taskdistill.search.index import Index

    return None if path is None or not (Path(path) / MANIFEST).is_file() else Index.open(path)
