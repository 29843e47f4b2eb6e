"""Texts of a file, row by row: every row is a text or a fault with a reason, and rows can be passed
over unread.
"""

from __future__ import annotations

import csv
import gzip
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from taskdistill.errors import BadInput
from taskdistill.io.json import JsonError, read_object

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Reading:
    """Where texts are read from."""

    source: str
    """Path of a .txt, .jsonl, .csv or .parquet file (the first three gzip too), or `-` for lines on
    standard input.
    """
    column: str = "text"


@dataclass(slots=True)
class Counts:
    """What became of every row: `read` = `used` + `rejected`."""

    read: int = 0
    used: int = 0
    rejected: int = 0
    truncated: int = 0
    vectors: int = 0
    windows: int = 0
    """Passes of the model over parts of texts, where long texts are read whole."""
    examples: list[str] = field(default_factory=list)

    def reject(self, where: str, why: str) -> None:
        """Count one rejected row."""
        self.rejected += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{where}: {why}")

    def add(self, other: Counts) -> None:
        """Add the counts of further rows."""
        for name in ("read", "used", "rejected", "truncated", "vectors", "windows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples = [*self.examples, *other.examples][:EXAMPLES]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


class Fault(Exception):
    """A row that cannot be read."""


Parse = Callable[[int, Any], Any]
"""Row number and raw row to its text, to a `Fault`, or to a value that is no text."""


class Rows:
    """The rows of a file, read forward only."""

    def __init__(self, reading: Reading) -> None:
        """Open a file.

        Raises BadInput if there is no such file, it is of no known kind, or it lacks the column.
        """
        path = Path(reading.source)
        if reading.source != "-" and not path.is_file():
            raise BadInput(
                f"no file {path}; give a .txt, .jsonl, .csv or .parquet file, or - for standard"
                " input"
            )
        kind = ".txt" if reading.source == "-" else Path(path.name.removesuffix(".gz")).suffix
        if kind not in READERS:
            raise BadInput(
                f"{path}: texts are read from {', '.join(READERS)}; convert the file or give it the"
                " right ending"
            )
        self._stack = ExitStack()
        self._source = reading.source
        self._raw, self._parse = READERS[kind](path, reading.column, self._stack)
        self.place = 0
        """Number of the next row, from 0."""

    def skip(self, count: int | None = None) -> int:
        """Pass over rows without looking into them.

        `count`: how many; None for all that are left.
        """
        result = sum(1 for _ in islice(self._raw, count))
        self.place += result
        return result

    def take(self, counts: Counts, count: int | None = None) -> Iterator[tuple[int, str]]:
        """Read rows; those without a usable text are counted and left out.

        `count`: how many rows; None for all that are left.
        """
        for raw in islice(self._raw, count):
            row, self.place = self.place, self.place + 1
            counts.read += 1
            value = self._parse(row, raw)
            why = _fault(value)
            if why is None:
                yield row, value
            else:
                counts.reject(f"{self._source}:{row + 1}", why)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


def _fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return (
            str(value)
            if isinstance(value, Fault)
            else f"the text is {type(value).__name__}, needs a string"
        )
    if not value.strip():
        return "empty text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "a lone surrogate, which is no character"
    return None


def _opened(path: Path, stack: ExitStack) -> IO[bytes]:
    if str(path) == "-":
        return sys.stdin.buffer
    stream: Any = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 (closed by the stack)
    stack.callback(stream.close)
    return stream  # type: ignore[no-any-return]


def _line(row: int, raw: bytes) -> str | Fault:
    try:
        return raw.rstrip(b"\r\n").decode("utf-8-sig" if row == 0 else "utf-8")
    except UnicodeDecodeError as error:
        return Fault(f"not UTF-8 at byte {error.start} of the line")


def _text_lines(path: Path, _: str, stack: ExitStack) -> tuple[Iterator[Any], Parse]:
    return iter(_opened(path, stack)), _line


def _json_lines(path: Path, column: str, stack: ExitStack) -> tuple[Iterator[Any], Parse]:
    def parse(number: int, raw: bytes) -> Any:
        line = _line(number, raw)
        if isinstance(line, Fault):
            return line
        try:
            row = read_object(line)
        except JsonError as fault:
            return Fault(str(fault))
        if column in row:
            return row[column]
        return Fault(
            f"no field {column!r}; found {', '.join(list(row)[:6])}; name another with --column"
        )

    return (line for line in _opened(path, stack) if line.strip()), parse


def _csv_rows(path: Path, column: str, stack: ExitStack) -> tuple[Iterator[Any], Parse]:
    rows = csv.DictReader(
        io.TextIOWrapper(_opened(path, stack), "utf-8-sig", errors="surrogateescape", newline="")
    )
    if column not in (rows.fieldnames or []):
        raise BadInput(
            f"{path} has the columns {rows.fieldnames}, none called {column!r}; name one with"
            " --column"
        )
    return rows, lambda _, row: row[column]


def _parquet_rows(path: Path, column: str, stack: ExitStack) -> tuple[Iterator[Any], Parse]:
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInput(f"{path} is no Parquet file ({error})") from None
    stack.callback(table.close)
    if column not in table.schema_arrow.names:
        raise BadInput(
            f"{path} has the columns {table.schema_arrow.names}, none called {column!r}; name one"
            " with --column"
        )
    batches = table.iter_batches(columns=[column])
    return (value for batch in batches for value in batch.column(0)), lambda _, value: value.as_py()


Reader = Callable[[Path, str, ExitStack], tuple[Iterator[Any], Parse]]
READERS: dict[str, Reader] = {
    ".txt": _text_lines,
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
"""Ending of a file to a function that gives its raw rows, and how one becomes a text."""
