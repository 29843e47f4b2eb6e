"""The run's log: one flushed JSON line a step, and after a resume no line twice.

Scores, seconds and budgets are read from it again, so each line ends with a checksum of itself.
Lines of older logs have none.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput
from taskdistill.io.atomic import write_file
from taskdistill.io.json import open_regular

_CHECK = re.compile(rb', "check": "([0-9a-f]{8})"\}\Z')
_FORM = b', "check": "????????"}'


class Log:
    """Appends records to a JSONL file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file():
            _end_last_line(path)
        self._stream = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and flush it.

        `record`: plain data; values that are not finite become null.
        """
        text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False)
        self._stream.write(f'{text[:-1]}, "check": "{zlib.crc32(text.encode()):08x}"}}\n')
        self._stream.flush()

    def forget(self, phase: str, from_step: int) -> None:
        """Drop a phase's lines from a step on, and its scores of later states: they are about to be
        run again.
        """
        self._stream.close()
        lines_left = [
            line
            for line, record in read_lines(self.path)
            if not (
                record.get("phase") == phase
                and (record.get("step", -1) >= from_step or record.get("evaluated", 0) > from_step)
            )
        ]
        write_file(self.path, "".join(lines_left))
        self._stream = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the whole lines of a log; a line cut off by a kill is left out.

    Raises BadInput if a line is not what was written.
    """
    with open_regular(path) as stream:
        *lines, tail = stream.read().split(b"\n")
    result = [_record(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
    if _is_complete(tail, f"{path}: line {len(lines) + 1}"):
        result.append(_record(tail, f"{path}: line {len(lines) + 1}"))
        lines.append(tail)
    return [
        (f"{line.decode()}\n", record)
        for line, record in zip(lines, result, strict=True)
        if record is not None
    ]


def _record(line: bytes, place: str) -> dict[str, Any] | None:
    """Parse a line; one that a kill cut off, and another line was added to by an older version, is
    None.
    """
    check = _CHECK.search(line)
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    is_complete = check is not None and zlib.crc32(line[: check.start()] + b"}") == int(
        check[1], 16
    )
    if not is_complete and _had_check(line):
        raise BadInput(f"{place} is damaged; remove that line to go on without it")
    return (
        {key: value for key, value in record.items() if key != "check"}
        if isinstance(record, dict)
        else None
    )


def _had_check(line: bytes) -> bool:
    """Say whether a line ends with a checksum or with what one flipped bit makes of it."""
    wrong = sum(
        byte not in b"0123456789abcdef" if form == ord("?") else byte != form
        for byte, form in zip(line[-len(_FORM) :], _FORM, strict=False)
    )
    return len(line) > len(_FORM) and wrong <= 1


def _is_complete(tail: bytes, place: str) -> bool:
    """Say whether what stands behind the last newline lacks only its own."""
    if _CHECK.search(tail[:-1]):
        raise BadInput(
            f"{place} is damaged: it does not end with a newline; remove that line to go on"
            " without it"
        )
    return _CHECK.search(tail) is not None


def _end_last_line(path: Path) -> None:
    """Cut off what a kill has left of a last line, so that the next one does not go on in it."""
    with path.open("rb+") as stream:
        lines = stream.read().split(b"\n")
        if not lines[-1]:
            return
        if _is_complete(lines[-1], f"{path}: line {len(lines)}"):
            stream.write(b"\n")
        else:
            stream.truncate(stream.tell() - len(lines[-1]))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
