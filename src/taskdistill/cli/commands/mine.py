"""`mine`: hard negatives for training pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import AUTO, Device, Dtype, JsonPath, Quiet
from taskdistill.cli.terminal import Terminal, stopping
from taskdistill.errors import BadInput


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("mine")(mine)


def mine(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe that names the data and the teacher")],
    source: Annotated[str, typer.Option("--source", help="Source of pairs in the recipe")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to make; run the same command again to continue")
    ],
    candidates: Annotated[
        list[str] | None,
        typer.Option("--candidates", help="Further source whose texts are candidates"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Model folder whose vectors decide; default: the recipe's teacher"
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Folder of teacher stores, such as that of a run")
    ] = None,
    negatives: Annotated[int, typer.Option("--negatives", help="Most negatives of a row")] = 7,
    first: Annotated[int, typer.Option("--first", help="First rank of the window, from 1")] = 1,
    last: Annotated[int, typer.Option("--last", help="Last rank of the window")] = 100,
    margin: Annotated[
        float | None, typer.Option("--margin", help="Cosine at most the positive's minus this")
    ] = None,
    relative_margin: Annotated[
        float | None,
        typer.Option(
            "--relative-margin",
            help=(
                "Cosine at most the positive's minus this share of its size; 0.05 unless a --margin"
                " is given"
            ),
        ),
    ] = None,
    no_relative_margin: Annotated[
        bool,
        typer.Option(
            "--no-relative-margin",
            help="No such limit: what scores as the positive or above is taken too",
        ),
    ] = False,
    max_score: Annotated[
        float | None, typer.Option("--max-score", help="Cosine at most this")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Cosine at least this")
    ] = None,
    pick: Annotated[
        str, typer.Option("--pick", help="hardest or random, within the window")
    ] = "hardest",
    data_folder: Annotated[
        Path | None,
        typer.Option("--data-folder", help="Embedded default: the folder of an earlier run's data"),
    ] = None,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the recipe")
    ] = None,
    quiet: Quiet = False,
    json: JsonPath = None,
) -> None:
    """Mine hard negatives: near a query, but no answer to it. Siblings, known positives and
    duplicates are never taken.

    Nor is what scores above 95 % of a query's own positive; how much that left out is counted.

    Example: [bold]taskdistill mine recipes/quickstart.yaml --source docs-pairs --out mined[/bold]
    """
    import os

    from taskdistill.data.mining import RELATIVE_MARGIN, MiningSettings
    from taskdistill.io.outputs import write_result
    from taskdistill.recipe.recipe import load_recipe
    from taskdistill.workflows.mine import mine as run
    from taskdistill.workflows.mine_vectors import MineRequest

    if pick not in ("hardest", "random"):
        raise BadInput(f"--pick is {pick!r}; give hardest or random")
    if model is not None and store is not None:
        raise BadInput(
            "--store has no effect with --model, whose vectors are not the teacher's; remove one of"
            " them"
        )
    if no_relative_margin and relative_margin is not None:
        raise BadInput(
            "--no-relative-margin and --relative-margin exclude each other; give one of them"
        )
    if relative_margin is None and not no_relative_margin and margin is None:
        relative_margin = RELATIVE_MARGIN
    config, terminal = load_recipe(recipe, overrides or ()), Terminal(quiet)
    settings = MiningSettings(
        negatives=negatives,
        first=first,
        last=last,
        margin=margin,
        relative_margin=relative_margin,
        max_score=max_score,
        min_score=min_score,
        pick="random" if pick == "random" else "hardest",
        seed=config.seed,
    )
    request = MineRequest(
        source=source,
        candidates=tuple(candidates or ()),
        model=model,
        store=store,
        settings=settings,
        data_folder=data_folder,
        device=device,
        dtype=dtype,
    )
    key = None if config.teacher.api_key_env is None else os.environ.get(config.teacher.api_key_env)
    with stopping() as stop:
        try:
            counts = run(
                config, recipe.parent, request, out, terminal, should_stop=stop, api_key=key
            )
        finally:
            terminal.end()
    for name, number in counts.items():
        terminal.line(f"{name:<30} {number:,}")
    terminal.line(f"pairs   {out / 'pairs' / f'{source}.train.jsonl.gz'}")
    if json is not None:
        write_result(json, counts)
