"""What differs from run to run and from machine to machine is masked before it is recorded:
seconds, versions, paths, memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MASK = "<masked>"
KEYS = re.compile(
    r"seconds|millisecond|_ms$|per_s\b|per_second|megabytes|version|created_by|^cpu|time$|^time|speed|rate$|memory|machine|hardware|^created|"
    r"^check$|wall|checked_with|gflops|flops|peak|port$|keep_tokens|^python$|torch$"
)
"""Keys whose numbers and texts are masked, whatever lies below them."""
EXACT_KEYS = frozenset(["format_version", "rate"])
"""Keys that the pattern would mask and that must stay."""
TEXTS = (
    (
        re.compile(
            r"\b\d[\d,]*(\.\d+)?"
            r" (s|ms|MB|GB|minutes|seconds|texts/s|tokens/s|GFLOP/s|TFLOP/s|h|hours)\b"
        ),
        r"<number> \2",
    ),
    (
        re.compile(
            r"\b(torch|transformers|peft|numpy|python|Python|taskdistill|sentence-transformers|onnxruntime|gguf)"
            r" \d+[\w.+]*"
        ),
        r"\1 <version>",
    ),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:<port>"),
    (re.compile(r"\b\d+ cores?, [\d.,]+ [GT]F/s"), "<number> cores, <number> GF/s"),
)
COLUMNS = re.compile(r"minutes|seconds|^share$|tokens kept|\bms\b|\bMB\b|texts/s")
"""Columns of printed tables that differ so."""
FEW_CELLS = 6
"""A line of more cells, with two spaces or more between them, is a row of a table without frames.
"""


def _row(cells: list[str], hidden: set[int]) -> str:
    """One row of a table, with the cells at the hidden places masked."""
    shown = (MASK if place in hidden else cell for place, cell in enumerate(cells))
    return f"row: {' | '.join(shown)}"


class Mask:
    """Replaces folders of this run by names, and what `KEYS` and `TEXTS` name."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = sorted(
            ((str(path), name) for name, path in folders.items()), key=lambda each: -len(each[0])
        )

    def text(self, text: str) -> str:
        """A text without what differs."""
        for path, name in self.folders:
            text = text.replace(path, name)
        for pattern, replacement in TEXTS:
            text = pattern.sub(replacement, text)
        return text

    def lines(self, text: str) -> list[str]:
        """The lines of an output; of its tables the cells, without frames and widths, which follow
        the longest number.
        """
        found: list[str] = []
        hidden: set[int] = set()
        timed: list[int] = []
        for line in self.text(text).splitlines():
            if line[:1] in ("┏", "┡", "└"):
                continue
            if line[:1] not in ("┃", "│"):
                cells = re.split(r" {2,}", line.strip())
                if len(cells) > FEW_CELLS and any(
                    cell.endswith("ms") for cell in cells
                ):  # the heading of a table without frames
                    timed = [
                        place - len(cells)
                        for place, cell in enumerate(cells)
                        if cell.endswith("ms")
                    ]
                    line = f"table: {' | '.join(cells)}"
                elif timed and len(cells) > FEW_CELLS:
                    line = _row(cells, {place + len(cells) for place in timed})
                else:
                    timed = []
                found.append(line)
                continue
            cells = [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]
            if line[0] == "┃":
                hidden = {place for place, cell in enumerate(cells) if COLUMNS.search(cell)}
                found.append(f"table: {' | '.join(cells)}")
            else:
                found.append(_row(cells, hidden))
        return found

    def value(self, value: Any, key: str = "") -> Any:
        """Plain data without what differs."""
        if key not in EXACT_KEYS and KEYS.search(key):
            return _hidden(value)
        if isinstance(value, dict):
            return {
                self.text(str(name)): self.value(each, str(name)) for name, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        if isinstance(value, str):
            return self.text(value)
        return value


def _hidden(value: Any) -> Any:
    """Keep the names, mask what they hold."""
    if isinstance(value, dict):
        return {name: _hidden(each) for name, each in value.items()}
    return MASK
