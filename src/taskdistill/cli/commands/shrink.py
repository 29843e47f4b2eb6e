"""`shrink`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, EvalSets, JsonPath, Quiet, Seed
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput

if TYPE_CHECKING:
    from taskdistill.workflows.shrink import ShrinkStep


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("shrink")(shrink)


def shrink(
    model: Annotated[str, typer.Argument(help="Model folder, Hub id, or all-MiniLM-L6-v2")],
    texts: Annotated[
        Path,
        typer.Option(
            "--texts",
            help="File or folder of rows whose texts the model is for; any text field counts.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The new model folder.")],
    vocabulary: Annotated[
        bool, typer.Option("--vocabulary", help="Drop the tokens that occur in none of the texts.")
    ] = False,
    languages: Annotated[
        list[str] | None,
        typer.Option("--language", help="Use only texts of this lang; repeatable."),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option("--layers", min=1, help="Keep this many layers, chosen by a short search."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option("--width", min=1, help="Keep this many neurons of each feed-forward part."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Score each step on the development sets of this folder."),
    ] = None,
    sets: EvalSets = None,
    sample: Annotated[
        int, typer.Option("--sample", min=2, help="Texts that decide about layers and neurons.")
    ] = 400,
    seed: Seed = 17,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Make a model smaller without training: fewer layers, narrower layers, fewer tokens; quality
    and size after each step.

    With --vocabulary alone, the vector of a text whose tokens all stay is the same to the last bit.
    The result of --layers and --width is a start for training: name the folder as student.init.

    Example: [bold]taskdistill shrink all-MiniLM-L6-v2 --texts my-texts.jsonl --vocabulary --layers
    3 --out small[/bold]
    """
    from taskdistill.device import RuntimeOptions
    from taskdistill.encode.batches import cores
    from taskdistill.evaluate.datasets import EvalSelection
    from taskdistill.io.outputs import write_result
    from taskdistill.workflows.shrink import ShrinkRequest
    from taskdistill.workflows.shrink import shrink as run

    if sets and data is None:
        raise BadInput("--eval-set has no effect without --data; give the folder of the sets")
    terminal = Terminal(quiet)
    request = ShrinkRequest(
        vocabulary=vocabulary,
        layers=layers,
        width=width,
        languages=tuple(languages) if languages else None,
        sample=sample,
        seed=seed,
    )
    try:
        result = run(
            model,
            texts,
            out,
            terminal,
            request=request,
            data=None if data is None else EvalSelection(data, sets),
            runtime=RuntimeOptions(device, dtype, cores()),
        )
    finally:
        terminal.end()
    names = list(result["rows"][0]["scores"])
    rows = [
        [
            row["step"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['megabytes']}",
            f"{row['tokens']:,}",
            f"{row['cosine']:.4f}",
            *(_score(row, name) for name in names),
        ]
        for row in result["rows"]
    ]
    terminal.table(
        "After each step; in brackets the difference to the model as it was",
        ["step", "parameters", "MB", "tokens", "cosine to the model as it was", *names],
        rows,
    )
    terminal.line(f"model   {out}")
    if json is not None:
        write_result(json, result)


def _score(row: ShrinkStep, name: str) -> str:
    value, low, high = (100 * number for number in row["differences"][name])
    return (
        f"{100 * row['scores'][name]:.1f} ({value:+.1f}, {low:+.1f} to {high:+.1f})"
        if value or low or high
        else f"{100 * row['scores'][name]:.1f}"
    )
