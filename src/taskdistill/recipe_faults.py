"""What is wrong with a recipe, in words: the dotted key, what it got, and the nearest key that exists."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from taskdistill.errors import nearest

UNKNOWN = ("extra_forbidden", "invalid_key")


class OnceLoader(yaml.SafeLoader):
    """Reads YAML in which no key stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping.

        Args:
            node: Its node.
            deep: Whether its values are built at once.

        Returns:
            The mapping.

        Raises:
            ConstructorError: If a key stands twice.
        """
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice in one place", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Write every fault as a clause, unknown keys first.

    Args:
        error: What pydantic found.
        root: The model that was asked for.

    Returns:
        One clause a fault.
    """
    faults = sorted(error.errors(), key=lambda fault: fault["type"] not in UNKNOWN)
    return [_explain(fault, root) for fault in faults]


def _explain(fault: Any, root: type[BaseModel]) -> str:
    place = [str(part) for part in fault["loc"]]
    dotted = ".".join(place)
    if fault["type"] in UNKNOWN:
        return f"unknown key {dotted!r}{nearest(place[-1], _keys_beside(fault['loc'], root))}"
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
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


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
