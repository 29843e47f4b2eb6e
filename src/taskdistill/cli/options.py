"""Options that every command which runs a model has, said once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from taskdistill.seeding import SEEDS

AUTO = "auto"
RecipePath = Annotated[Path, typer.Argument(help="YAML recipe, such as recipes/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: --set stage1.steps=100")
]
EvalSets = Annotated[
    list[str] | None,
    typer.Option(
        "--eval-set", help="Only this set, such as retrieval/scifact or sts/*; repeatable."
    ),
]
MaxQueries = Annotated[
    int | None, typer.Option("--max-queries", min=1, help="Cut large sets to this many queries.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=SEEDS - 1, help="Of all that is random")]
JsonPath = Annotated[
    Path | None, typer.Option("--json", help="Write the result as JSON to this file.")
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help=(
            "Where models run: auto (an accelerator where there is one), cpu, cuda, cuda:1, mps, or"
            " any that torch knows"
        ),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Arithmetic: float32, or bfloat16 or float16 where the device has it; auto is float32",
    ),
]
TrainingDtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help=(
            "Arithmetic of the passes: float32, tf32 or bfloat16; auto: bfloat16 on an accelerator"
            " that has it, else float32"
        ),
    ),
]
RecipeDevice = Annotated[
    str | None,
    typer.Option(
        "--device", help="Instead of the recipe's device: auto, cpu, cuda, cuda:1, mps, ..."
    ),
]
RecipeDtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="Instead of the recipe's precision: auto, float32, tf32, bfloat16"
    ),
]


def with_placement(overrides: list[str] | None, device: str | None, dtype: str | None) -> list[str]:
    """Write the flags as overrides of a recipe. Returns all overrides; the flags come last."""
    placement = (("device", device), ("precision", dtype))
    return [
        *(overrides or ()),
        *(f"{key}={json.dumps(value)}" for key, value in placement if value is not None),
    ]
