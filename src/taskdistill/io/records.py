"""The one reader of rows: text, JSONL, CSV, TSV, Parquet, Arrow and Hub data sets become records,
and what spoils a row is said in the same words whoever asks.

A record is a mapping of columns to values. A row that cannot be used is a `RowError` with its place
and reason; a file that cannot be used as a whole is a `BadInput`.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from taskdistill.errors import BadInput, RowError, require_extra
from taskdistill.io.json import read_object
from taskdistill.io.lines import (
    MAX_LINE,
    STDIN,
    Line,
    check_expansion,
    check_file,
    check_unchanged,
    decoded,
    read_lines,
)

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

BATCH_ROWS = 1024

Record = tuple[int, dict[str, Any] | RowError]
"""Line (text files) or row (Parquet, Arrow, Hub) number from 1, and the record or what is wrong."""

_Raw = tuple[int, int, Any]
"""Number from 1, offset in bytes where it is known, and what was read there, or a `RowError`."""

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
        self._rows: Iterator[_Raw]
        self._parse: Callable[[int, Any], dict[str, Any]] = lambda _, record: dict(record)
        if kind == TEXT:
            self.names, self._rows, self._parse = ["text"], read_lines(path), _text_row
        elif kind in (".jsonl", ".ndjson"):
            self._rows, self._parse = _filled(read_lines(path)), _json_row
        elif kind in (".csv", ".tsv"):
            self.names, self._rows = _csv(path, "\t" if kind == ".tsv" else ",")
        else:
            self.names, self._rows = _columnar(path, kind, columns)

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
    if _VISIBLE.search(value) is None:
        raise RowError(
            f"{column!r} holds no visible character",
            f"{len(value)} characters, none visible" if value else "it is empty",
        )
    return value


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


def _csv(path: Path, delimiter: str) -> tuple[list[str], Iterator[_Raw]]:
    rows = _csv_rows(path, delimiter)
    number, header = next(rows, (0, []))
    if isinstance(header, RowError):
        raise BadInput(f"{path}:{number}: the header is {header}; write the file again as UTF-8")
    if not header:
        raise BadInput(f"no rows in {path}: the file has blank lines only")
    names = [cell.strip() for cell in header]
    named = [name for name in names if name]
    if len(set(named)) != len(named):
        raise BadInput(f"{path}: the header names a column twice: {', '.join(names)}; rename one")

    def records() -> Iterator[_Raw]:
        for number, cells in rows:
            if isinstance(cells, RowError):
                yield number, 0, cells
            elif len(cells) != len(names):
                why = f"{len(cells)} instead of {len(names)}"
                yield number, 0, RowError("wrong number of columns", why)
            else:
                record = dict(zip(names, cells, strict=True))
                record.pop("", None)  # a spreadsheet's empty columns to the right
                yield number, 0, record

    return names, records()


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | RowError]]:
    """Give each row's first line and its cells, blank lines left out."""
    undecodable: dict[int, RowError] = {}

    def lines() -> Iterator[str]:
        for number, offset, line in read_lines(path):
            if isinstance(line, RowError):
                raise BadInput(f"{path}:{number}: {line}; split the file into shorter lines")
            try:
                yield decoded(line, offset) + "\n"
            except RowError as error:
                undecodable[number] = error
                yield line.decode(errors="replace") + "\n"

    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed swallows the rows after it; how many cannot be known, so
            # that they could not be counted.
            if reader.line_num > first or "unexpected end of data" in str(error):
                raise BadInput(
                    f"{path}:{first}: a quoted value that starts in this row is never closed"
                    f" rightly (line {reader.line_num}: {error}); close it, and write quotes inside"
                    " of it twice"
                ) from None
            yield first, RowError("not valid CSV", str(error))
            continue
        if not cells:
            continue
        bad = [line for line in range(first, reader.line_num + 1) if line in undecodable]
        yield first, undecodable[bad[0]] if bad else cells


def _columnar(
    path: Path, kind: str, columns: Collection[str] | None
) -> tuple[list[str], Iterator[_Raw]]:
    import pyarrow as pa

    def refused(error: Exception, number: int) -> BadInput:
        place = f" after row {number}" if number else ""
        return BadInput(
            f"{path} cannot be read as {'Parquet' if kind == '.parquet' else 'Arrow'}{place}"
            f" ({str(error)[:150]}); write it again"
        )

    damage = (pa.ArrowException, OSError, ValueError, OverflowError)
    open_batches = _open_parquet if kind == ".parquet" else _open_arrow
    before = check_file(path)
    size = before[0]
    try:
        names, batches = open_batches(path, columns, size)
    except damage as error:
        if isinstance(error, BadInput):
            raise
        raise refused(error, 0) from None
    if len(set(names)) != len(names):
        raise BadInput(f"{path} names a column twice: {', '.join(names)}; rename one")
    unread = dict.fromkeys(names if columns is not None else ())

    def records() -> Iterator[_Raw]:
        number = expanded = 0
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    break
                expanded += batch.nbytes
                check_expansion(path, expanded, size)
                rows = _plain_rows(batch)
            except damage as error:
                if isinstance(error, BadInput):
                    raise
                raise refused(error, number) from None
            for row in rows:
                number += 1
                yield number, 0, row if isinstance(row, RowError) else {**unread, **row}
        check_unchanged(path, before)

    return names, records()


def _plain_rows(batch: Any) -> list[dict[str, Any] | RowError]:
    """Turn a batch into records; where a value has no Python form, its row alone is lost."""
    try:
        return cast("list[dict[str, Any] | RowError]", batch.to_pylist())
    except (ValueError, OverflowError):
        return [_plain_row(batch.slice(row, 1)) for row in range(batch.num_rows)]


def _plain_row(one: Any) -> dict[str, Any] | RowError:
    try:
        return cast("dict[str, Any]", one.to_pylist()[0])
    except UnicodeDecodeError as error:
        return RowError("invalid UTF-8", f"byte {error.start} of a value")
    except (ValueError, OverflowError) as error:
        return RowError("a value that cannot be read", str(error)[:100])


def _open_parquet(
    path: Path, columns: Collection[str] | None, size: int
) -> tuple[list[str], Iterator[Any]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = list(file.schema_arrow.names)
    metadata = file.metadata
    groups = (metadata.row_group(each).total_byte_size for each in range(metadata.num_row_groups))
    check_expansion(path, sum(groups), size)
    chosen = None if columns is None else [name for name in names if name in columns]
    return names, file.iter_batches(batch_size=BATCH_ROWS, columns=chosen)


def _open_arrow(
    path: Path, columns: Collection[str] | None, size: int
) -> tuple[list[str], Iterator[Any]]:
    """Open an Arrow file of either form, with or without a footer."""
    import pyarrow as pa

    source = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(source)
        names, batches = file.schema.names, map(file.get_batch, range(file.num_record_batches))
    except pa.ArrowInvalid:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        names, batches = stream.schema.names, iter(stream)
    chosen = names if columns is None else [name for name in names if name in columns]

    def parts() -> Iterator[Any]:
        for batch in batches:
            # Arrow's offsets are those of the file: a bad one would read outside of its memory.
            batch.validate(full=True)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.select(chosen).slice(start, BATCH_ROWS)

    return list(names), parts()
