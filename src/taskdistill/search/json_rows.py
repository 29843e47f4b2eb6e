"""One JSON object from one line, strictly: what JSON lets pass and an index cannot hold is an error with a reason."""

from __future__ import annotations

import json
from typing import Any, NoReturn

MAX_BYTES = 64 << 20
"""Longest line that is parsed."""


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse one line of a JSONL file.

    Args:
        line: UTF-8 bytes, with or without a line end.

    Returns:
        The object.

    Raises:
        ValueError: With a reason for people: not UTF-8, not an object, a repeated key, NaN or infinity, too deep, too long.
    """
    if len(line) > MAX_BYTES:
        raise ValueError(f"the line is longer than {MAX_BYTES >> 20} MiB")
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_constant, parse_float=_float, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, this is a {type(value).__name__}")
    return value


def check_text(text: str) -> str:
    """Refuse what no tokenizer or file can hold.

    Args:
        text: Any text.

    Returns:
        The same text.

    Raises:
        ValueError: If it holds a lone surrogate or a NUL character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    if "\0" in text:
        raise ValueError(f"a NUL character at {text.index(chr(0))}")
    return text


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that can be kept")


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is larger than any number that can be kept")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return value
