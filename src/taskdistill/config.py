"""What every part of a recipe is: checked, frozen, without unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class ConfigModel(BaseModel):
    """Base of every part of a recipe.

    Unknown keys are errors, values do not change after reading.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def is_set(part: ConfigModel, name: str) -> bool:
    """Say whether a field has another value than its default."""
    return bool(getattr(part, name) != type(part).model_fields[name].default)
