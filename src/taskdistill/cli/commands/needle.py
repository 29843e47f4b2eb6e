"""`needle`: how far into a long text a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, JsonPath, Quiet, Seed
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput

LENGTHS = "256,512,1024,2048,4096,8192,16384,32768"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("needle")(needle)


def needle(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Model folders, Hub ids, or all-MiniLM-L6-v2; several side by side",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder for results.json and report.html; finished scores are kept there"
        ),
    ],
    lengths: Annotated[
        str, typer.Option("--lengths", help="Tokens of a document, by the first model's tokenizer")
    ] = LENGTHS,
    kinds: Annotated[
        str, typer.Option("--kinds", help="needle (a fact about a person), passkey (a number)")
    ] = "needle,passkey",
    documents: Annotated[
        int, typer.Option("--documents", help="Documents of each length, 2 to 224")
    ] = 50,
    seed: Seed = 17,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Hide one sentence in long documents, ask for it, and report nDCG@1 by length; run again to
    continue.

    Example: [bold]taskdistill needle runs/my/model --lengths 256,2048,8192 --out needle[/bold]
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.evaluate.needle import NeedleOptions
    from taskdistill.io.outputs import copy_result
    from taskdistill.workflows.needle import check_needles, evaluate_needles, needle_tables

    terminal = Terminal(quiet)
    try:
        sizes = [int(part) for part in lengths.split(",")]
    except ValueError:
        raise BadInput(
            f"--lengths {lengths!r}: needs numbers with commas between, such as {LENGTHS}"
        ) from None
    names = [_name(model, models) for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(
            f"two models are called {twice[0]!r}; name each model once, or copy one to a folder of"
            " another name"
        )
    check_needles(out)
    encoders = {
        name: Encoder.load(model, device=device, dtype=dtype)
        for name, model in zip(names, models, strict=True)
    }
    terminal.stage(f"{len(encoders)} models, {len(sizes)} lengths")
    terminal.note("; ".join(dict.fromkeys(encoder.placement for encoder in encoders.values())))
    results = evaluate_needles(
        encoders,
        out,
        NeedleOptions(kinds.split(","), sizes, documents, seed),
        commands=[
            f"taskdistill needle {' '.join(models)} --lengths {lengths} --kinds {kinds} --documents"
            f" {documents} --out {out.name}"
        ],
        progress=terminal.count,
        note=None if quiet else terminal.note,
    )
    for table in needle_tables(results):
        terminal.table(
            table.title, list(table.columns), [[cell.main for cell in row] for row in table.cells()]
        )
    terminal.line(f"results  {out / 'results.json'}")
    terminal.line(f"report   {out / 'report.html'}")
    if json is not None:
        copy_result(out / "results.json", json)


def _name(model: str, models: list[str]) -> str:
    """Return the shortest name that tells a model apart: its own, or its path where two
    share one.
    """
    short = Path(model).name if Path(model).name != "model" else f"{Path(model).parent.name}/model"
    same = [
        other
        for other in models
        if other != model and Path(other).name == Path(model).name and Path(model).name != "model"
    ]
    return model if same else short
