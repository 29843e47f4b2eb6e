"""`plan` and `train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import (
    JsonPath,
    Overrides,
    Quiet,
    RecipeDevice,
    RecipeDtype,
    RecipePath,
    with_placement,
)
from taskdistill.cli.terminal import Terminal, stopping
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.memory import limit_malloc_arenas
from taskdistill.recipe.recipe import Recipe, load_recipe


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("plan")(plan)
    app.command("train")(train)


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    device: RecipeDevice = None,
    dtype: RecipeDtype = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            help=(
                "Where data or models are on the Hub: the card whose hours are counted (h100, h200,"
                " a100, l40s, a10); default: h100"
            ),
        ),
    ] = None,
    quiet: Quiet = False,
    json: JsonPath = None,
) -> None:
    """Say what a run will cost, and find every bad setting before the first step. Writes nothing.

    Example: [bold]taskdistill plan recipes/quickstart.yaml[/bold]
    """
    from taskdistill.io.outputs import write_result
    from taskdistill.pipeline.plan import plan_run
    from taskdistill.pipeline.plan_tables import plan_tables

    terminal = Terminal(quiet)
    result = plan_run(
        load_recipe(recipe, with_placement(overrides, device, dtype)),
        recipe.parent,
        terminal,
        card=gpu,
    )
    for title, columns, rows in plan_tables(result):
        terminal.table(title, columns, rows)
    if json is not None:
        write_result(json, result)


def train(
    recipe: RecipePath,
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; run the same command again to continue.")
    ],
    overrides: Overrides = None,
    device: RecipeDevice = None,
    dtype: RecipeDtype = None,
    quiet: Quiet = False,
    json: JsonPath = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Write a profiler trace of some steps of every phase to RUN/profile."
        ),
    ] = False,
) -> None:
    """Teacher store, then every phase, then the model folder, its scores and a report.

    Under torchrun the same command trains on all its processes.

    Example: [bold]taskdistill train recipes/quickstart.yaml --out runs/quickstart[/bold]
    """
    import os
    from datetime import timedelta

    from taskdistill.io.outputs import copy_result
    from taskdistill.pipeline.train import Launch
    from taskdistill.pipeline.train import train as run
    from taskdistill.train.context import Interrupted
    from taskdistill.train.distributed import init_distributed

    limit_malloc_arenas()
    config = load_recipe(recipe, with_placement(overrides, device, dtype))
    world, rank, on_this_host = (int(os.environ.get(name, alone)) for name, alone in LAUNCHED)
    terminal = Terminal(quiet or rank > 0)
    with (
        stopping() as stop,
        init_distributed(
            world, on_this_host, timedelta(minutes=config.process_timeout)
        ) as processes,
    ):
        try:
            run(
                config,
                out,
                recipe_folder=recipe.parent,
                progress=terminal,
                should_stop=stop,
                api_key=api_key(config),
                launch=Launch(processes, profile),
            )
        except Interrupted as error:
            raise WorkFailed(str(error)) from None
        finally:
            terminal.end()
    if not processes.is_main:
        return
    _examples(config, out, recipe.parent, terminal)
    terminal.line(f"model   {out / 'model'}")
    terminal.line(f"scores  {out / 'metrics.json'}")
    terminal.line(f"report  {out / 'report.html'}")
    if json is not None:
        copy_result(out / "metrics.json", json)


LAUNCHED = (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_WORLD_SIZE", 1))
"""What torchrun tells each process it starts, and what holds without it."""


def api_key(recipe: Recipe) -> str | None:
    """Read the teacher's key from the environment variable that a recipe names.

    Returns the key, or None where none is named. Raises BadInput if the variable is not set.
    """
    import os

    name = recipe.teacher.api_key_env
    if name is None:
        return None
    if name not in os.environ:
        raise BadInput(
            f"teacher.api_key_env names {name}, which is not set in the environment; set it or"
            " remove the key"
        )
    return os.environ[name]


def _examples(recipe: Recipe, out: Path, recipe_folder: Path, terminal: Terminal) -> None:
    """Show what a few queries find in the first retrieval set of the run."""
    if not recipe.evaluation.examples:
        return
    from taskdistill.workflows.search_examples import search_examples

    for query, result in search_examples(recipe, out, recipe_folder):
        terminal.line()
        terminal.line(f"? {query}")
        for score, title in result:
            terminal.line(f"  {score:.3f}  {title}")
    terminal.line()
    if (out / "index").is_dir():
        terminal.line(f"try it  taskdistill serve {out}")
