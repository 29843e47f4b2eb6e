"""`ablate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from taskdistill.cli.options import JsonPath, Quiet, RecipeDevice, RecipeDtype, with_placement
from taskdistill.cli.terminal import Terminal, stopping
from taskdistill.errors import WorkFailed


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ablate")(ablate)


def ablate(
    recipe: Annotated[
        Path, typer.Argument(help="YAML recipe with pairs, such as recipes/ablation-demo.yaml")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Folder of the experiment; run the same command again to continue."
        ),
    ],
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms",
            help="Arms with commas between, such as D,C,DC,DC+gor; A0, D, C and DC are always run",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds of D, C and DC")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="smoke (minutes), demo (about 90 minutes on two cores) or full (GPU)"
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", help="Arms trained at once, in a process of one thread each")
    ] = 1,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a key: --set stage1.steps=100, --set ablation.trials=4"
        ),
    ] = None,
    device: RecipeDevice = None,
    dtype: RecipeDtype = None,
    quiet: Quiet = False,
    json: JsonPath = None,
) -> None:
    """Distillation, contrast, or both? Train every arm from one checkpoint on the same batches, and
    say what the numbers can bear.

    Example: [bold]taskdistill ablate recipes/ablation-demo.yaml --preset demo --jobs 2 --out
    ablation[/bold]
    """
    from taskdistill.ablate.experiment import ablate as run
    from taskdistill.ablate.settings import load_experiment
    from taskdistill.cli.commands.train import api_key
    from taskdistill.io.outputs import copy_result
    from taskdistill.train.context import Interrupted

    names = [name.strip() for name in arms.split(",") if name.strip()] if arms else []
    overrides = with_placement(overrides, device, dtype)
    experiment = load_experiment(recipe, overrides, preset=preset, arms=names, seeds=seeds)
    terminal = Terminal(quiet)
    with stopping() as stop:
        try:
            results = run(
                experiment,
                out,
                recipe_folder=recipe.parent,
                jobs=jobs,
                progress=terminal,
                should_stop=stop,
                api_key=api_key(experiment.recipe),
                command=_command(recipe, out, preset, arms, seeds, jobs, overrides),
            )
        except Interrupted as error:
            raise WorkFailed(str(error)) from None
        finally:
            terminal.end()
    terminal.table("nDCG@10 x 100, mean over test sets and seeds", *_arms(results))
    terminal.line(f"{results['verdict']['state']}: combining beats both single regimes")
    for sentence in (*results["verdict"]["why"], *results["verdict"]["would_decide"]):
        terminal.line(f"  {sentence}")
    terminal.line(f"results  {out / 'results.json'}")
    terminal.line(f"report   {out / 'report.html'}")
    if json is not None:
        copy_result(out / "results.json", json)


def _command(
    recipe: Path,
    out: Path,
    preset: str | None,
    arms: str | None,
    seeds: int | None,
    jobs: int,
    overrides: Sequence[str],
) -> str:
    """Write the command as the report shows it: without folders, which are another machine's
    affair.
    """
    words = ["taskdistill", "ablate", recipe.name]
    for name, value in (
        ("--preset", preset),
        ("--arms", arms),
        ("--seeds", seeds),
        ("--jobs", jobs if jobs > 1 else None),
    ):
        if value is not None:
            words += [name, str(value)]
    for each in overrides:
        if not each.partition("=")[0].endswith((".root", ".store")):
            words += ["--set", each]
    return shlex.join([*words, "--out", out.name])


def _arms(results: dict[str, object]) -> tuple[list[str], list[list[str]]]:
    """Lay the arms out as a table."""
    rows = []
    for name, arm in results["arms"].items():  # type: ignore[attr-defined]
        value, low, high = arm["score"]["estimate"]
        seeds = ", ".join(f"{100 * each:.1f}" for each in arm["score"]["per_seed"])
        rows.append(
            [
                name,
                arm["about"],
                f"{100 * value:.2f}",
                f"{100 * low:.1f} to {100 * high:.1f}",
                seeds,
            ]
        )
    return ["arm", "what", "mean", "95 %", "each seed"], rows
