"""The one reader of rows: text, JSONL, CSV, TSV, Parquet, Arrow and Hub data sets become records,
and what spoils a row is said in the same words whoever asks.

A record is a mapping of columns to values. A row that cannot be used is a `RowError` with its place
and reason; a file that cannot be used as a whole is a `BadInput`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from taskdistill.errors import BadInput, RowError, require_extra
from taskdistill.io.json import read_object
from taskdistill.io.lines import STDIN, Line, decoded, read_lines
from taskdistill.io.tables import RawRow, read_columns, read_csv

TEXT = ".txt"
_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
_COLUMNS = (".parquet", ".arrow", ".feather")
SUFFIXES = (*_LINES, *(f"{each}.gz" for each in _LINES), *_COLUMNS)
"""Endings of files of rows with named columns."""

ALL_SUFFIXES = (*SUFFIXES, TEXT, f"{TEXT}.gz")
"""`SUFFIXES`, and text files: every line is a row with the one column `text`."""

FORMATS = f"{', '.join((TEXT, *_LINES))} (each also with .gz), {', '.join(_COLUMNS)}"
"""What is read, for messages."""

EXAMPLES = 10
EXAMPLES_PER_REASON = 3
"""How many rejected rows are kept as examples for messages, in all and of one reason."""

Record = tuple[int, dict[str, Any] | RowError]
"""Line (text files) or row (Parquet, Arrow, Hub) number from 1, and the record or what is wrong."""

_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\xad\u115f\u1160\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0]"
)


@dataclass(frozen=True, slots=True)
class TextSource:
    """Where lone texts are read from."""

    path: str
    """A file of rows, or `-` for lines on standard input."""
    column: str = "text"


@dataclass(slots=True, kw_only=True)
class ReadStats:
    """What became of every row: used as it was, used after a repair, or rejected; the three add up
    to `read`.

    A row with several repairs counts once, under its first one. `filtered` rows are of a language
    that was not asked for; they are set aside before counting and not part of `read`.
    """

    read: int = 0
    used: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    filtered: int = 0
    ignored_columns: list[str] = field(default_factory=list)

    def reject(self, where: str, why: RowError) -> None:
        """Count one rejected row. `where`: file and line."""
        self.rejected[why.reason] += 1
        if len(self.examples) < EXAMPLES and self.rejected[why.reason] <= EXAMPLES_PER_REASON:
            self.examples.append(f"{where}: {why}")

    def as_dict(self) -> dict[str, object]:
        """Return the counts as plain data; repaired and rejected are reasons to rows."""
        return {
            "read": self.read,
            "used": self.used,
            "repaired": dict(self.repaired),
            "rejected": dict(self.rejected),
            "filtered": self.filtered,
            "ignored_columns": list(self.ignored_columns),
            "examples": list(self.examples),
        }


class Records:
    """The rows of one file, read forward once; a row is parsed only when it is asked for."""

    def __init__(self, path: Path, columns: Collection[str] | None = None) -> None:
        """Open a file.

        `path`: ends in one of `ALL_SUFFIXES`, or is `-` for lines on standard input. `columns`:
        those to read of a Parquet or Arrow file, the others come as None; None reads every one.
        Raises BadInput if there is no such file, it is of no known kind, or damaged as a whole.
        """
        name = path.name.lower()
        kind = TEXT if path == STDIN else Path(name.removesuffix(".gz")).suffix
        if path != STDIN and not name.endswith(ALL_SUFFIXES):
            raise BadInput(
                f"{path}: unknown format; rows are read from files that end in {FORMATS}"
            )
        if path != STDIN and not path.is_file():
            what = "a folder" if path.is_dir() else "no plain file" if path.exists() else "missing"
            raise BadInput(f"{path} is {what}; give a file of rows: {FORMATS}")
        self.path = path
        self.names: list[str] | None = None
        """Columns, where the file itself says them before the first row."""
        self._rows: Iterator[RawRow]
        self._parse: Callable[[int, Any], dict[str, Any]] = lambda _, record: record
        if kind == TEXT:
            self.names, self._rows, self._parse = ["text"], read_lines(path), _text_row
        elif kind in (".jsonl", ".ndjson"):
            self._rows, self._parse = _filled(read_lines(path)), _json_row
        elif kind in (".csv", ".tsv"):
            self.names, self._rows = read_csv(path, "\t" if kind == ".tsv" else ",")
        else:
            self.names, self._rows = read_columns(path, kind, columns)

    def __iter__(self) -> Iterator[Record]:
        return self.take(None)

    def take(self, count: int | None) -> Iterator[Record]:
        """Read at most so many rows; None reads all that are left."""
        for number, offset, raw in islice(self._rows, count):
            try:
                yield number, raw if isinstance(raw, RowError) else self._parse(offset, raw)
            except RowError as error:
                yield number, error

    def skip(self, count: int | None = None) -> int:
        """Pass over rows without parsing them; None passes over all. Returns how many there
        were.
        """
        return sum(1 for _ in islice(self._rows, count))

    def close(self) -> None:
        """Close the file."""
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()


def read_records(path: Path, columns: Collection[str] | None = None) -> Iterator[Record]:
    """Read the records of one file; blank lines of JSONL and CSV are no records.

    `path`, `columns` and errors as for `Records`; also raises BadInput where the file turns out to
    be damaged, a decompression bomb, or changed while it was read.
    """
    yield from Records(path, columns)


def read_hub(
    name: str, split: str, revision: str | None, subset: str | None = None
) -> Iterator[Record]:
    """Read the records of a Hub data set.

    `revision`: branch, tag or commit; None is the default branch. `subset`: its subset
    (configuration); None for the only or default one. Raises BadInput if `datasets` is not
    installed or the data set cannot be loaded.
    """
    require_extra("datasets", "hub", f"hub:{name}")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:
        place = f"subset {subset!r}, split {split!r}" if subset else f"split {split!r}"
        raise BadInput(
            f"hub:{name} ({place}) cannot be loaded: {error}; check its name, subset, split and the"
            " network"
        ) from None
    for number, row in enumerate(rows, 1):
        yield number, cast("dict[str, Any]", row)


def text_of(record: Mapping[str, Any], column: str) -> str:
    """Return the text under a column, as it stands.

    Raises RowError if there is none, it is no string, holds NUL or half a surrogate pair, or shows
    nothing.
    """
    value = value_of(record, column)
    if not isinstance(value, str):
        raise RowError(f"{column!r} is no text", f"it is {kind_of(value)}")
    check_text(value, column)
    if not is_visible(value):
        raise RowError(
            f"{column!r} holds no visible character",
            f"{len(value)} characters, none visible" if value else "it is empty",
        )
    return value


def is_visible(text: str) -> bool:
    """Say whether a text shows anything: white space and characters without a glyph do not."""
    return _VISIBLE.search(text) is not None


def value_of(record: Mapping[str, Any], column: str) -> Any:
    """Return the value under a column. Raises RowError if there is none, or it is null."""
    value = record.get(column)
    if value is None:
        names = ", ".join(map(str, list(record)[:8]))[:120]
        raise RowError(f"no {column!r}", "null" if column in record else f"columns: {names}")
    return value


def check_text(text: str, column: str) -> None:
    """Refuse what no tokenizer or file can hold.

    Raises RowError if the text holds a NUL character or half a surrogate pair.
    """
    if "\0" in text:
        raise RowError(f"NUL character in {column!r}", f"at character {text.index(chr(0))}")
    check_unicode(text, column)


def check_unicode(text: str, column: str) -> None:
    """Raise RowError if a text holds half a surrogate pair, which no UTF-8 file can hold."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"lone surrogate in {column!r}", f"at character {error.start}") from None


def kind_of(value: object) -> str:
    """Name the kind of a value for a message, such as `a list`."""
    words = {
        "dict": "an object",
        "list": "a list",
        "int": "a number",
        "float": "a number",
        "str": "a text",
        "bool": "true or false",
        "NoneType": "null",
    }
    return words.get(type(value).__name__, f"a {type(value).__name__}")


def _filled(lines: Iterator[Line]) -> Iterator[Line]:
    for number, offset, line in lines:
        if isinstance(line, RowError) or line.strip(b" \t\r"):
            yield number, offset, line


def _text_row(offset: int, line: bytes) -> dict[str, Any]:
    return {"text": decoded(line, offset).removesuffix("\r")}


def _json_row(offset: int, line: bytes) -> dict[str, Any]:
    return read_object(decoded(line, offset))
