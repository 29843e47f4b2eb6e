"""`search tune` and `tiers`: how to search, measured on a dev set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskdistill.cli.json_result import is_tiers
from taskdistill.cli.options import AUTO, Device, Dtype, JsonPath, Quiet
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput
from taskdistill.tasks import Task

if TYPE_CHECKING:
    from taskdistill.search.index import Index
    from taskdistill.search.tune_results import Tuning


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("search tune")(tune)
    app.command("tiers")(tiers)


def tune(
    index: Annotated[Path, typer.Argument(help="Index folder")],
    dev: Annotated[
        Path,
        typer.Option(
            "--dev",
            help="Folder with corpus.jsonl, queries.jsonl and qrels.tsv, not used for final scores",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model folder; default: the one the index was made with"),
    ] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            "--dims",
            help="Dimensions to try, such as 64,128,256; default: what the model was trained for",
        ),
    ] = None,
    precisions: Annotated[
        str, typer.Option("--precisions", help="Kept beside the binary codes")
    ] = "none,int8,float16,float32",
    oversample: Annotated[
        str, typer.Option("--oversample", help="Candidates rescored for each passage")
    ] = "2,5,10,20,50,100",
    hybrid: Annotated[
        bool, typer.Option("--hybrid/--no-hybrid", help="Try joining with BM25")
    ] = True,
    refine: Annotated[
        bool, typer.Option("--refine/--no-refine", help="Try query refinement")
    ] = True,
    tolerance: Annotated[
        float,
        typer.Option("--tolerance", help="nDCG@10, times 100, that a cheaper setting may lose"),
    ] = 0.5,
    shrink: Annotated[
        bool,
        typer.Option(
            "--shrink", help="Also cut the index down to the dimension and precision recommended"
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Measure and print, change nothing")
    ] = False,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Decide dimension, precision, oversampling, hybrid search and refinement on a dev set; the
    index remembers the choice.

    What concerns searching is written into the index. Fewer dimensions or a smaller precision need
    --shrink.

    Example: [bold]taskdistill search tune notes-index --dev
    runs/quickstart-data/retrieval/docs-dev[/bold]
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.io.outputs import write_result
    from taskdistill.search.devset import read_dev_set
    from taskdistill.search.index import Index
    from taskdistill.search.storage.folder import check_parts
    from taskdistill.search.tune import REFINEMENTS, TuneGrid
    from taskdistill.search.tune import tune as run
    from taskdistill.search.tune_results import table, verdicts

    if shrink and dry_run:
        raise BadInput(
            "--shrink changes the index and --dry-run changes nothing; give one of the two"
        )
    terminal = Terminal(quiet)
    opened = Index.open(index)
    if not dry_run:
        check_parts(index)
    settings = opened.settings
    encoder = Encoder.load(model or settings.model, device=device, dtype=dtype)
    settings.check_documents(encoder)
    trained = [dim for dim in encoder.matryoshka_dims if dim <= encoder.embedding_dim] or [
        encoder.embedding_dim
    ]
    terminal.stage(f"measuring {index} on {dev}")
    terminal.note(encoder.placement)
    tuning = run(
        encoder,
        read_dev_set(dev),
        TuneGrid(
            dims=trained if dims is None else numbers("--dims", dims),
            rescores=precisions.split(","),
            oversamples=numbers("--oversample", oversample),
            refinements=REFINEMENTS if refine else (),
            hybrid=hybrid,
        ),
        task=settings.task,
        passages=settings.passages,
        stored=(settings.dim, settings.rescore),
        tolerance=tolerance / 100,
        progress=terminal.count,
    )
    terminal.line(
        f"{tuning.queries:,} queries, {tuning.documents:,} documents; nDCG@10 and shares x 100,"
        " with 95 % intervals"
    )
    for line in [*aligned(table(tuning, rows=10)), *verdicts(tuning)]:
        terminal.line(line)
    if json is not None:
        write_result(json, tuning.to_json())
    if not dry_run:
        terminal.line(_apply(opened, tuning, shrink))


def _apply(index: Index, tuning: Tuning, shrink: bool) -> str:
    """Write what was chosen into the index and say so."""
    from taskdistill.search.settings import SearchDefaults

    assert tuning.stored is not None
    best = tuning.recommended.setting
    if shrink:
        index.shrink(best.dim, best.rescore)
    same = (index.settings.dim, index.settings.rescore) == (best.dim, best.rescore)
    chosen = tuning.recommended if same else tuning.stored
    setting = chosen.setting
    index.set_defaults(
        SearchDefaults(
            oversample=setting.oversample, hybrid=setting.hybrid, refinement=setting.refinement
        )
    )
    if setting.hybrid and index.snapshot.manifest.bm25 is None:
        index.build_bm25()
    summary = (
        f"written to {index.path}: oversample {setting.oversample or '-'}, hybrid"
        f" {'on' if setting.hybrid else 'off'}, refinement {'on' if setting.refinement else 'off'};"
        f" {100 * chosen.harmed:.1f} % of queries are harmed against exact float32 search"
    )
    if same:
        return summary
    return (
        summary + f"\nthe recommended {best.dim} dimensions with {best.rescore} take"
        f" {tuning.recommended.bytes:.0f} bytes a passage instead of {tuning.stored.bytes:.0f}:"
        f" run again with --shrink, or build the index with --dim {best.dim} --rescore-precision"
        f" {best.rescore}"
    )


def tiers(
    students: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDENT...",
            help="Folders of models distilled from one teacher, static ones too",
        ),
    ],
    dev: Annotated[
        Path, typer.Option("--dev", help="Folder with corpus.jsonl, queries.jsonl and qrels.tsv")
    ],
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Their teacher; default: the one the first folder names"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="A student's adapter where it searches alone; default: retrieval if it has it",
        ),
    ] = None,
    rescore: Annotated[
        str,
        typer.Option(
            "--rescore-precision", help="Precision of the documents: float32, float16, int8 or none"
        ),
    ] = "float32",
    passage_words: Annotated[
        int | None,
        typer.Option("--passage-words", help="Cut documents into passages of this many words"),
    ] = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Compare every pair of query tier and document tier in one space, and each student alone:
    quality kept and milliseconds.

    Models of another space are refused.

    Example: [bold]taskdistill tiers runs/quickstart/model runs/quickstart/static-model --dev
    runs/quickstart-data/retrieval/docs[/bold]
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.encode.projected import ProjectedEncoder
    from taskdistill.io.outputs import write_result
    from taskdistill.search.asymmetric import measure_tiers
    from taskdistill.search.devset import read_dev_set
    from taskdistill.search.passages import word_passages

    terminal = Terminal(quiet)
    encoders = [Encoder.load(student, device=device, dtype=dtype) for student in students]
    projected = [ProjectedEncoder(encoder) for encoder in encoders]
    passages = word_passages(passage_words)
    usual = [
        (
            None
            if not encoder.tasks
            else encoder.choose_task(
                task or (Task.RETRIEVAL.value if Task.RETRIEVAL in encoder.tasks else None)
            )
        )
        for encoder in encoders
    ]
    named = teacher or projected[0].teacher
    terminal.stage(
        f"measuring {', '.join(encoder.name for encoder in encoders)} and their teacher {named} on"
        f" {dev}"
    )
    loaded = Encoder.load(named, device=device, dtype=dtype)
    terminal.note("; ".join(dict.fromkeys(encoder.placement for encoder in (*encoders, loaded))))
    pairs = measure_tiers(
        projected,
        loaded,
        read_dev_set(dev),
        alone=list(zip(encoders, usual, strict=True)),
        rescore=rescore,
        passages=passages,
        progress=terminal.count,
    )
    columns = [
        "queries",
        "documents",
        "nDCG@10",
        "95 %",
        "of teacher, %",
        "95 %",
        "query, ms",
        "search, ms",
        "end to end, ms",
        "document, ms",
    ]
    rows = [
        [
            each.queries if each.task is None else f"{each.queries}, {each.task}",
            each.documents if each.task is None else f"{each.documents}, {each.task}",
            f"{100 * each.ndcg.value:.2f}",
            f"{100 * each.ndcg.low:.1f} to {100 * each.ndcg.high:.1f}",
            f"{100 * each.retention.value:.1f}",
            f"{100 * each.retention.low:.1f} to {100 * each.retention.high:.1f}",
            f"{each.query_milliseconds:.2f}",
            f"{each.search_milliseconds:.2f}",
            f"{each.end_to_end_milliseconds:.2f}",
            f"{each.document_milliseconds:.2f}",
        ]
        for each in pairs
    ]
    for line in aligned([columns, *rows]):
        terminal.line(line)
    if json is not None:
        write_result(json, [each.to_json() for each in pairs], is_tiers)


def numbers(option: str, text: str) -> list[int]:
    """Read numbers with commas between. Raises BadInput if it is something else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(
            f"{option} {text!r}: needs numbers with commas between, such as 64,128,256"
        ) from None


def aligned(rows: list[list[str]]) -> list[str]:
    """Write a table as lines that no terminal is too narrow for.

    Returns a line a row, numbers under each other.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
