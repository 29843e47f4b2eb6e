"""One JSON value from one text, strictly and in time linear in the text: what other readers let
pass and nobody can use is refused.

The size of a text is bounded by whoever reads it; its nesting, its elements and the digits of its
numbers are bounded here, before any of them is made into an object.
"""

from __future__ import annotations

import json
import os
import stat
from io import BufferedReader
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

from taskdistill.errors import BadInput, RowError

MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""

MAX_ELEMENTS = 1_000_000
"""Most elements of lists and fields of objects in one text."""

MAX_FILE_BYTES = 256 << 20
"""Largest JSON file that is read."""

MAX_DIGITS = 300
"""Longest number, in characters: the largest finite numbers are no longer."""

_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


class _Keep(dict[int, int | None]):
    """A table for `str.translate` that drops every character but a few."""

    def __missing__(self, character: int) -> None:
        return None


_BRACKETS = _Keep({ord(each): ord(each) for each in _STEPS})


class JsonError(RowError):
    """Why a text is no usable JSON."""


def read_object(
    text: str, *, max_elements: int = MAX_ELEMENTS, constants: bool = False
) -> dict[str, Any]:
    """Parse one JSON object.

    `max_elements`: most elements of lists and fields of objects. `constants`: whether NaN and
    infinity, which some programs write, are read as what they mean. Raises JsonError if it is no
    JSON, no object, names a key twice, holds NaN, infinity or a number beyond all bounds, is nested
    too deeply, or has too many elements.
    """
    value = read_value(text, max_elements=max_elements, constants=constants)
    if not isinstance(value, dict):
        raise JsonError("not a JSON object", type(value).__name__)
    return value


def read_value(text: str, *, max_elements: int = MAX_ELEMENTS, constants: bool = False) -> Any:
    """Parse one JSON value of any kind.

    `max_elements`: most elements of lists and fields of objects. `constants`: whether NaN and
    infinity, which some programs write, are read as what they mean. Raises JsonError as
    `read_object`, but for the kind of the value.
    """
    check_shape(text, max_elements=max_elements)
    try:
        return (_DECODE_CONSTANTS if constants else _DECODE)(text)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError("not valid JSON", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise JsonError("JSON nested too deeply") from None
    except ValueError as error:
        raise JsonError("not valid JSON", str(error)[:100]) from None


def open_regular(path: Path) -> BufferedReader:
    """Open a file that must be a plain one: a pipe would wait for its writer for ever, a device
    need not end.

    `path`: the file; a link to a plain file is followed. Raises BadInput if it is a pipe, a device,
    a socket or a folder. Raises OSError if it is missing or may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if path.exists() and not path.is_file():
            raise _no_file(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _no_file(path)
    return os.fdopen(handle, "rb")


def _no_file(path: Path) -> BadInput:
    return BadInput(f"{path} is no plain file; copy the file itself there")


def read_file(path: Path) -> Any:
    """Read a JSON file strictly.

    Raises BadInput naming the file, if it is no plain file, too large, not UTF-8 or no strict JSON.
    Raises OSError if it is missing or may not be read.
    """
    with open_regular(path) as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadInput(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; copy or make it again")
    try:
        return read_value(data.decode("utf-8"), max_elements=20 * MAX_ELEMENTS)
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path} is not UTF-8 at byte {error.start}; copy or make it again"
        ) from None
    except JsonError as fault:
        raise BadInput(f"{path} cannot be read as JSON ({fault}); copy or make it again") from None


def read_object_file(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object, strictly.

    Raises BadInput as `read_file`, or if it holds something else. Raises OSError if it is missing
    or may not be read.
    """
    value = read_file(path)
    if not isinstance(value, dict):
        raise BadInput(
            f"{path} holds no JSON object but a {type(value).__name__}; copy or make it again"
        )
    return value


def check_shape(text: str, *, max_elements: int = MAX_ELEMENTS) -> None:
    """Bound what a text would become, without making it: brackets and commas outside of strings are
    counted.

    Every step is one pass of a string method over the text. `text`: what may be JSON.
    `max_elements`: most elements of lists and fields of objects. Raises JsonError if it is nested
    too deeply or has too many elements.
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
        raise JsonError(
            "not valid JSON", "a character that belongs into a string stands outside of one"
        )
    brackets = outside.translate(_BRACKETS)
    if len(brackets) > 2 * max_elements:
        raise _too_many(max_elements)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise JsonError("JSON nested too deeply", f"more than {MAX_DEPTH} levels")


def _too_many(limit: int) -> JsonError:
    return JsonError("JSON with too many elements", f"more than {limit:,}")


def _constant(name: str) -> NoReturn:
    raise JsonError("not a finite number", name)


def _float(digits: str) -> float:
    _check_length(digits)
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise JsonError("not a finite number", digits[:20])
    return value


def _int(digits: str) -> int:
    _check_length(digits)
    return int(digits)


def _check_length(digits: str) -> None:
    if len(digits) > MAX_DIGITS:
        raise JsonError(
            "a number of too many digits", f"{len(digits)} characters, the most are {MAX_DIGITS}"
        )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonError("duplicate JSON key", name[:60])
            seen.add(name)
    return value


_DECODE_CONSTANTS = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=_float, parse_int=_int
).decode
_DECODE = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
).decode
