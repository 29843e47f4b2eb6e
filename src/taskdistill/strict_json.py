"""One JSON object from one text, strictly: what JSON readers let pass and nobody can use is a fault with a reason."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class JsonFault(ValueError):
    """Why a text is no usable JSON object: a reason shared by all such texts and what is particular to this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """Say what is wrong.

        Args:
            reason: The same words for every such text.
            detail: What is particular to this one.
        """
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


def read_object(text: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: One line or one body.

    Returns:
        The object.

    Raises:
        JsonFault: If it is no JSON, no object, names a key twice, holds NaN, infinity or a number beyond all bounds, or is
            nested too deeply.
    """
    try:
        value = _DECODE(text)
    except JsonFault:
        raise
    except json.JSONDecodeError as error:
        raise JsonFault("not valid JSON", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise JsonFault("JSON nested too deeply") from None
    except ValueError as error:
        raise JsonFault("not valid JSON", str(error)[:100]) from None
    if not isinstance(value, dict):
        raise JsonFault("not a JSON object", type(value).__name__)
    return value


def _constant(name: str) -> NoReturn:
    raise JsonFault("not a finite number", name)


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise JsonFault("not a finite number", digits[:20])
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise JsonFault("duplicate JSON key", next(name for name in names if names.count(name) > 1)[:60])
    return value


_DECODE = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float).decode
