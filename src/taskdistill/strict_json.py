"""One JSON value from one text, strictly and in time linear in the text: what other readers let pass and nobody can use is refused.

The size of a text is bounded by whoever reads it; its nesting, its elements and the digits of its numbers are bounded here, before
any of them is made into an object.
"""

from __future__ import annotations

import json
from itertools import accumulate
from typing import Any, NoReturn

MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""

MAX_ELEMENTS = 1_000_000
"""Most elements of lists and fields of objects in one text."""

MAX_DIGITS = 300
"""Longest number, in characters: the largest finite numbers are no longer."""

_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


class _Keep(dict[int, int | None]):
    """A table for `str.translate` that drops every character but a few."""

    def __missing__(self, character: int) -> None:
        return None


_BRACKETS = _Keep({ord(each): ord(each) for each in _STEPS})


class JsonFault(ValueError):
    """Why a text is no usable JSON: a reason shared by all such texts and what is particular to this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        """Say what is wrong.

        Args:
            reason: The same words for every such text.
            detail: What is particular to this one.
        """
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


def read_object(text: str, *, max_elements: int = MAX_ELEMENTS) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        text: One line, one body or one file.
        max_elements: Most elements of lists and fields of objects.

    Returns:
        The object.

    Raises:
        JsonFault: If it is no JSON, no object, names a key twice, holds NaN, infinity or a number beyond all bounds, is nested
            too deeply, or has too many elements.
    """
    value = read_value(text, max_elements=max_elements)
    if not isinstance(value, dict):
        raise JsonFault("not a JSON object", type(value).__name__)
    return value


def read_value(text: str, *, max_elements: int = MAX_ELEMENTS) -> Any:
    """Parse one JSON value of any kind.

    Args:
        text: One line, one body or one file.
        max_elements: Most elements of lists and fields of objects.

    Returns:
        The value.

    Raises:
        JsonFault: As `read_object`, but for the kind of the value.
    """
    check_shape(text, max_elements=max_elements)
    try:
        return _DECODE(text)
    except JsonFault:
        raise
    except json.JSONDecodeError as error:
        raise JsonFault("not valid JSON", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise JsonFault("JSON nested too deeply") from None
    except ValueError as error:
        raise JsonFault("not valid JSON", str(error)[:100]) from None


def check_shape(text: str, *, max_elements: int = MAX_ELEMENTS) -> None:
    """Bound what a text would become, without making it: brackets and commas outside of strings are counted.

    Every step is one pass of a string method over the text.

    Args:
        text: What may be JSON.
        max_elements: Most elements of lists and fields of objects.

    Raises:
        JsonFault: If it is nested too deeply or has too many elements.
    """
    opened, separated = text.count("[") + text.count("{"), text.count(",")
    if opened <= MAX_DEPTH and opened + separated <= max_elements:
        return
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    if text.count('"') > 4 * max_elements + 2:  # at most a key and a value to each element
        raise _too_many(max_elements)
    outside = "".join(text.split('"')[::2])
    if outside.count("[") + outside.count("{") + outside.count(",") > max_elements:
        raise _too_many(max_elements)
    if not outside.isascii():
        raise JsonFault("not valid JSON", "a character that belongs into a string stands outside of one")
    brackets = outside.translate(_BRACKETS)
    if len(brackets) > 2 * max_elements:
        raise _too_many(max_elements)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise JsonFault("JSON nested too deeply", f"more than {MAX_DEPTH} levels")


def _too_many(most: int) -> JsonFault:
    return JsonFault("JSON with too many elements", f"more than {most:,}")


def _constant(name: str) -> NoReturn:
    raise JsonFault("not a finite number", name)


def _float(digits: str) -> float:
    _check_length(digits)
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise JsonFault("not a finite number", digits[:20])
    return value


def _int(digits: str) -> int:
    _check_length(digits)
    return int(digits)


def _check_length(digits: str) -> None:
    if len(digits) > MAX_DIGITS:
        raise JsonFault("a number of too many digits", f"{len(digits)} characters, the most are {MAX_DIGITS}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonFault("duplicate JSON key", name[:60])
            seen.add(name)
    return value


_DECODE = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int).decode
