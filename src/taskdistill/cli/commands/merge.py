"""`merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, EvalSets, JsonPath, MaxQueries, Quiet
from taskdistill.cli.terminal import Terminal
from taskdistill.errors import BadInput


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("merge")(merge)


def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Model folders of one shape, or checkpoints of a finished run"
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Folder of development sets, which decide whether the result is kept."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The new model folder.")],
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help=(
                "uniform, greedy, spherical, or last: the first mixed with the mean of the others."
            ),
        ),
    ] = "uniform",
    last_weight: Annotated[
        float | None,
        typer.Option("--last-weight", min=0.0, max=1.0, help="last: share of the first; 0.5."),
    ] = None,
    sets: EvalSets = None,
    max_queries: MaxQueries = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    json: JsonPath = None,
    quiet: Quiet = False,
) -> None:
    """Merge models that were trained from one start: seeds, checkpoints, adapters (as products of
    their factors).

    The result is written only if it is better than the best single model by its interval on the
    development sets.

    Example: [bold]taskdistill merge runs/a/model runs/b/model --data my-sets --out merged --method
    greedy[/bold]
    """
    from taskdistill.device import RuntimeOptions
    from taskdistill.encode.batches import cores
    from taskdistill.evaluate.datasets import EvalSelection
    from taskdistill.io.outputs import write_result
    from taskdistill.workflows.merge import merge as run

    if last_weight is not None and method != "last":
        raise BadInput(f"--last-weight has no effect with --method {method}; remove it")
    terminal = Terminal(quiet)
    share = 0.5 if last_weight is None else last_weight
    try:
        result = run(
            models,
            EvalSelection(data, sets, max_queries),
            out,
            terminal,
            method=method,
            last_weight=share,
            runtime=RuntimeOptions(device, dtype, cores()),
        )
    finally:
        terminal.end()
    rows = [[name, f"{100 * score:.2f}"] for name, score in result["models"].items()]
    terminal.table(
        "Mean over the development sets x 100",
        ["model", "score"],
        [*rows, ["merged", f"{100 * result['score']:.2f}"]],
    )
    terminal.line(result["told"])
    if result["kept"]:
        terminal.line(f"model   {out}")
    if json is not None:
        write_result(json, result)
