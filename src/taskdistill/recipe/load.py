"""Recipes as plain data, and what is wrong with one, in words.

The dotted key, what it got, and the nearest key that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.io.json import open_regular

UNKNOWN = ("extra_forbidden", "invalid_key")


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads YAML in which no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping. Raises ConstructorError if a key stands twice."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping, not a word", key.start_mark
                )
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice in one place", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a recipe's YAML as plain data and apply dotted overrides.

    Nothing is checked but that it is a mapping. `overrides`: strings such as `stage1.steps=100`;
    the value is YAML. Raises BadInput if the file cannot be read, or an override has no key or no
    valid value.
    """
    if not path.is_file():
        raise BadInput(
            f"no recipe at {path}; give the path of a YAML file such as recipes/quickstart.yaml"
        )
    try:
        with open_regular(path) as stream:
            raw = yaml.load(stream.read().decode("utf-8"), UniqueKeyLoader)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # a value error is a number or a date that cannot be, or no UTF-8
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise BadInput(
            f"{path} holds no mapping; a recipe starts with `name:`, `data:`, `teacher:`"
        )
    for override in overrides:
        _apply(raw, override)
    return raw


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """Read dotted overrides by themselves.

    `overrides`: strings such as `weights.gor=2`; the value is YAML. Raises BadInput if one has no
    key or no valid value.
    """
    result: dict[str, Any] = {}
    for override in overrides:
        _apply(result, override)
    return result


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise BadInput(f"--set {override!r}: needs the form key=value, such as stage1.steps=100")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise BadInput(f"--set {override!r}: the value is not valid YAML") from None
    here: Any = raw
    parts = key.split(".")
    for part in parts[:-1]:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            raise BadInput(f"--set {override!r}: {part!r} is a value, not a group of keys")
    here[parts[-1]] = value


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Write every fault as a clause, unknown keys first."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] not in UNKNOWN)
    return [_explain(fault, root) for fault in faults]


def _explain(fault: Any, root: type[BaseModel]) -> str:
    place = [str(part) for part in fault["loc"]]
    dotted = ".".join(place)
    if fault["type"] in UNKNOWN:
        return f"unknown key {dotted!r}{did_you_mean(place[-1], _keys_beside(fault['loc'], root))}"
    if fault["type"] == "missing":
        return f"key {dotted!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    got = fault.get("input")
    shown = "" if isinstance(got, dict | list | BaseModel) else f" (got {got!r})"
    return f"{dotted}: {message}{shown}" if dotted else f"{message}{shown}"


def _keys_beside(loc: tuple[Any, ...], root: type[BaseModel]) -> list[str]:
    model: Any = root
    for part in loc[:-1]:
        model = _child(model, part)
        if model is None:
            return []
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
    )


def _child(model: Any, part: Any) -> Any:
    """Walk one step down the recipe's types: a field of a model, or the values of a mapping."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        model = model.model_fields[part].annotation if part in model.model_fields else None
    else:
        model = model.__args__[-1] if getattr(model, "__origin__", None) is dict else None
    options = getattr(model, "__args__", ())
    if getattr(model, "__origin__", None) is not dict and options:
        model = next((option for option in options if option is not type(None)), None)
    return model
