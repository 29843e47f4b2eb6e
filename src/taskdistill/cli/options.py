"""Options that every command which runs a model has, said once."""

from __future__ import annotations

import json
from typing import Annotated

import typer

AUTO = "auto"
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where models run: auto (an accelerator where there is one), cpu, cuda, cuda:1, mps, or any that torch knows",
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
        help="Arithmetic of the passes: float32, tf32 or bfloat16; auto: bfloat16 on an accelerator that has it, else float32",
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
    """Write the flags as overrides of a recipe.

    Returns:
        All overrides; the flags come last.
    """
    said = (("device", device), ("precision", dtype))
    return [
        *(overrides or ()),
        *(f"{key}={json.dumps(value)}" for key, value in said if value is not None),
    ]
