"""`evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput


def register(app: typer.Typer) -> None:
    """Add the command.

    Args:
        app: The application.
    """
    app.command("evaluate")(evaluate)


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Model folders, Hub ids, or all-MiniLM-L6-v2; several side by side")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for results.json and report.html; finished scores are kept there")],
    data: Annotated[Path, typer.Option("--data", help="Folder of evaluation sets in the layout of docs/data.md")],
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Only this set, such as retrieval/scifact or sts/*; may be repeated")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="test or dev")] = "test",
    dims: Annotated[str | None, typer.Option("--dims", help="Truncations for the compression matrix, such as 64,128,256")] = None,
    precisions: Annotated[str | None, typer.Option("--precisions", help="float32,float16,int8,binary")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="The model that the others are compared with; default: the first")
    ] = None,
    max_queries: Annotated[int | None, typer.Option("--max-queries", help="Cut large sets to this many queries")] = None,
    full_train: Annotated[
        bool, typer.Option("--full-train", help="Classification: also a linear probe on the whole training split")
    ] = False,
    languages: Annotated[
        bool, typer.Option("--languages/--no-languages", help="Sets that differ only in language: also crosswise and in one pool")
    ] = True,
    json: Annotated[Path | None, typer.Option("--json", help="Write the results to this file too.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Score models on local evaluation sets, side by side, with intervals; run again to continue.

    Example: [bold]taskdistill evaluate runs/quickstart/model all-MiniLM-L6-v2 --data runs/quickstart-data --out eval[/bold]
    """
    import shutil

    from taskdistill.encode.encoder import Encoder
    from taskdistill.evaluate.language_report import pool_tables
    from taskdistill.evaluate.run import Options, evaluate_models
    from taskdistill.evaluate.sets import find_sets
    from taskdistill.job.embedders import EncoderEmbedder
    from taskdistill.job.page import write_evaluation

    terminal = Terminal(quiet)
    found = find_sets(data, sets, split)
    options = Options(
        max_queries,
        17,
        full_train,
        _numbers(dims),
        tuple((precisions or ("float32,int8,binary" if dims else "")).split(",")) if dims or precisions else (),
        languages=languages,
    )
    embedders = [EncoderEmbedder(Encoder.load(model), name=model_name(model, models)) for model in models]
    terminal.stage(f"{len(embedders)} models on {len(found)} sets")
    results = evaluate_models(
        embedders,
        found,
        out,
        options,
        reference=reference,
        progress=terminal.count,
        note=None if quiet else terminal.note,
    )
    write_evaluation(out, results, [f"taskdistill evaluate {' '.join(models)} --data {data.name} --out {out.name}"])
    names = [model["name"] for model in results["models"]]
    rows = [
        [
            each["name"],
            results["scores"][names[0]][each["name"]]["metric"],
            *(_cell(results["scores"][name][each["name"]]) for name in names),
        ]
        for each in results["sets"]
    ]
    terminal.table("Scores x 100, with 95 % intervals", ["set", "metric", *names], rows)
    for table in pool_tables(results):
        terminal.table(table.title, list(table.columns), [[cell.main for cell in row] for row in table.cells()])
    terminal.line(f"results  {out / 'results.json'}")
    terminal.line(f"report   {out / 'report.html'}")
    if json is not None:
        shutil.copyfile(out / "results.json", json)


def _cell(score: dict[str, object]) -> str:
    low, high = score["interval"]  # type: ignore[misc]
    return f"{100 * float(score['score']):.1f} [{100 * low:.1f}, {100 * high:.1f}]"  # type: ignore[arg-type,has-type]


def _numbers(text: str | None) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"--dims {text!r}: needs numbers with commas between, such as 64,128,256") from None


def model_name(model: str, models: list[str]) -> str:
    """Choose the shortest name that tells a model apart.

    Args:
        model: Folder or Hub id.
        models: All of them.

    Returns:
        Its own name, or its path where two share one.
    """
    short = Path(model).name if Path(model).name != "model" else f"{Path(model).parent.name}/model"
    same = [other for other in models if other != model and Path(other).name == Path(model).name and Path(model).name != "model"]
    return model if same else short
