"""One JSON object from one line, strictly: what JSON lets pass and an index cannot hold is an error
with a reason.
"""

from __future__ import annotations

from typing import Any

from taskdistill.io.json import read_object

MAX_BYTES = 64 << 20
"""Longest line that is parsed."""


def parse_line(line: bytes) -> dict[str, Any]:
    """Parse one line of a JSONL file.

    `line`: UTF-8 bytes, with or without a line end. Raises ValueError with a reason for people: not
    UTF-8, not an object, a repeated key, NaN or infinity, too deep, too long.
    """
    if len(line) > MAX_BYTES:
        raise ValueError(f"the line is longer than {MAX_BYTES >> 20} MiB")
    try:
        return read_object(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def check_text(text: str) -> str:
    """Refuse what no tokenizer or file can hold.

    Returns the same text. Raises ValueError if it holds a lone surrogate or a NUL character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a surrogate pair at character {error.start}") from None
    if "\0" in text:
        raise ValueError(f"a NUL character at {text.index(chr(0))}")
    return text
