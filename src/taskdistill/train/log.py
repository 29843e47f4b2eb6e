"""The run's log: one flushed JSON line a step, and after a resume no line twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Log:
    """Appends records to a JSONL file."""

    def __init__(self, path: Path) -> None:
        """Open the file, making it if needed.

        Args:
            path: The file.
        """
        self.path = path
        self._stream = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and flush it.

        Args:
            record: Plain data; values that are not finite become null.
        """
        self._stream.write(json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()

    def forget(self, phase: str, from_step: int) -> None:
        """Drop a phase's lines from a step on, and its scores of later states: they are about to be run again.

        Args:
            phase: Name of the phase.
            from_step: First step to drop.
        """
        self._stream.close()
        kept = [
            line
            for line, record in read_lines(self.path)
            if not (record.get("phase") == phase and (record.get("step", -1) >= from_step or record.get("evaluated", 0) > from_step))
        ]
        beside = self.path.with_name(f".{self.path.name}")
        beside.write_text("".join(kept), "utf-8")
        beside.replace(self.path)
        self._stream = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the whole lines of a log; a line cut off by a kill is left out.

    Args:
        path: The file.

    Returns:
        Each line with its newline, and its record.
    """
    found = []
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if line.endswith("\n") and isinstance(record, dict):
                found.append((line, record))
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
