"""Read a corpus to index: JSONL, CSV, Parquet or a folder of text files, streamed; bad rows are
counted with their reason.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.io.json_rows import MAX_BYTES, check_text, parse_line

TEXT_FIELDS = ("text", "content", "body", "document")
ID_FIELDS = ("_id", "id")
TEXT_FILES = (".txt", ".md", ".rst", ".text")
_FAULTS_KEPT = 100

Row = tuple[int, dict[str, Any] | ValueError]
"""Line or row number, from 1, and what was found there."""


@dataclass(frozen=True)
class Document:
    """A text to be found.

    Attributes:
        id: Names it for ever; adding the same id again replaces it.
        text: The text; passages are places in it.
        metadata: JSON values to filter by and to return. The value of `title`, if any, is embedded
            before each passage.
    """

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """A row that was not used: where it is and why."""

    file: str
    line: int
    reason: str


@dataclass
class CorpusReport:
    """What became of the rows of a corpus; `used` and `rejected` add up to `rows`.

    Attributes:
        rows: Rows read.
        used: Rows that became documents.
        faults: The first rejected rows, with reasons.
    """

    rows: int = 0
    used: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Rows that were not used."""
        return self.rows - self.used


class Corpus:
    """The documents of a file or folder; each pass over it reads it again and counts anew in
    `report`.
    """

    def __init__(
        self, path: str | Path, *, text_field: str | None = None, id_field: str | None = None
    ) -> None:
        """Find out how to read the path.

        `path`: a .jsonl, .csv, .tsv (each also .gz) or .parquet file; a folder of text files; or a
        folder with corpus.jsonl(.gz). `text_field`: name of the text; by default the first of text,
        content, body, document that the first row has. `id_field`: name of the id; by default `_id`
        or `id`, or else file name and line. Raises BadInput if there is nothing to read, the ending
        is unknown, or a field is named where files are the texts.
        """
        self.path = Path(path)
        self.report = CorpusReport()
        self._text_field = text_field
        self._id_field = id_field
        if self.path.is_dir():
            inner = [
                self.path / name
                for name in ("corpus.jsonl", "corpus.jsonl.gz")
                if (self.path / name).is_file()
            ]
            self.path = inner[0] if inner else self.path
        if self.path.is_dir() and (text_field or id_field):
            raise BadInput(
                f"{self.path} is a folder of text files, which have no fields; leave out text_field"
                " and id_field"
            )
        self._read = None if self.path.is_dir() else _reader(self.path)

    def __iter__(self) -> Iterator[Document]:
        self.report = CorpusReport()
        seen = False
        for file, line, row in self._folder() if self._read is None else self._file(self._read):
            self.report.rows += 1
            if isinstance(row, dict):
                if not seen:
                    self._choose_text_field(row)
                    seen = True
                try:
                    document = self._document(row, f"{file}:{line}")
                except ValueError as error:
                    row = error
                else:
                    self.report.used += 1
                    yield document
                    continue
            if len(self.report.faults) < _FAULTS_KEPT:
                self.report.faults.append(Fault(file, line, str(row)))
        if not self.report.used:
            first = f"; the first fault: {self.report.faults[0]}" if self.report.faults else ""
            raise BadInput(
                f"{self.path} holds no usable document among {self.report.rows} rows{first}; give a"
                " corpus with texts"
            )

    def _file(
        self, read: Callable[[Path], Iterator[Row]]
    ) -> Iterator[tuple[str, int, dict[str, Any] | ValueError]]:
        try:
            for line, row in read(self.path):
                yield self.path.name, line, row
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise BadInput(
                f"{self.path} cannot be read after row {self.report.rows} ({error}); copy or make"
                " it again"
            ) from None

    def _folder(self) -> Iterator[tuple[str, int, dict[str, Any] | ValueError]]:
        for path in sorted(
            p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith(".")
        ):
            name = path.relative_to(self.path).as_posix()
            yield name, 1, _text_file(path, name)

    def _choose_text_field(self, row: Mapping[str, Any]) -> None:
        wanted = (self._text_field,) if self._text_field else TEXT_FIELDS
        found = next((name for name in wanted if name in row), None)
        if found is None:
            names = ", ".join(map(str, row))
            raise BadInput(
                f"{self.path} has no field {' or '.join(wanted)}, its first row has: {names}; name"
                " the field that holds the text"
            )
        self._text_field = found
        if self._id_field is not None and self._id_field not in row:
            raise BadInput(
                f"{self.path} has no field {self._id_field!r}{did_you_mean(self._id_field, row)};"
                " name the field that holds the id"
            )

    def _document(self, row: dict[str, Any], place: str) -> Document:
        text_field = cast(str, self._text_field)
        text = row.get(text_field)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the field {text_field!r} holds no text")
        id_field = self._id_field or next((name for name in ID_FIELDS if name in row), None)
        key = place if id_field is None else row.get(id_field)
        if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
            raise ValueError(f"the field {id_field!r} holds no id")
        metadata = {
            name: _plain(value) for name, value in row.items() if name not in (text_field, id_field)
        }
        kept = {name: value for name, value in metadata.items() if value is not None}
        check_text(json.dumps(kept, ensure_ascii=False))
        return Document(check_text(str(key)), check_text(text), kept)


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    if not path.is_file():
        raise BadInput(
            f"{path} does not exist; give a .jsonl, .csv, .tsv or .parquet file or a folder of text"
            " files"
        )
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    readers = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    if ending not in readers:
        raise BadInput(
            f"{path} ends in {ending or 'nothing known'!r}{did_you_mean(ending, readers)}; or give"
            " a folder of text files"
        )
    return readers[ending]


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _jsonl(path: Path) -> Iterator[Row]:
    with _open(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(MAX_BYTES + 1)
            if not line:
                return
            rest = line
            while len(rest) > MAX_BYTES and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_BYTES + 1)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                try:
                    yield number, parse_line(line)
                except ValueError as error:
                    yield number, error


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_BYTES)
    delimiter = "\t" if path.name.removesuffix(".gz").lower().endswith(".tsv") else ","
    with (
        _open(path) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as stream,
    ):
        rows = csv.reader(stream, delimiter=delimiter, strict=True)
        header = next(rows, [])
        if len(set(header)) != len(header):
            raise BadInput(f"{path} has a column name twice in {header}; rename one")
        while True:
            try:
                values = next(rows, None)
                if values is None:
                    return
                if not values:
                    continue
                if len(values) != len(header):
                    raise ValueError(f"{len(values)} fields instead of {len(header)}")
                yield (
                    rows.line_num,
                    {
                        name: value if value else None
                        for name, value in zip(header, values, strict=True)
                    },
                )
            except (csv.Error, ValueError) as error:
                yield rows.line_num, ValueError(str(error))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise BadInput(
            f"{path} cannot be read as Parquet ({error}); copy or make it again"
        ) from None


def _text_file(path: Path, name: str) -> dict[str, Any] | ValueError:
    if path.suffix.lower() not in TEXT_FILES:
        return ValueError(f"not a text file: the ending is not one of {', '.join(TEXT_FILES)}")
    if path.stat().st_size > MAX_BYTES:
        return ValueError(f"the file is longer than {MAX_BYTES >> 20} MiB")
    try:
        return {"id": name, "text": path.read_bytes().decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return ValueError(f"not UTF-8 at byte {error.start}")


def _plain(value: Any) -> Any:
    """Return a JSON value; missing values (None, NaN) are None."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if math.isinf(value):
                raise ValueError("a metadata field holds infinity")
            return None if math.isnan(value) else value
        case date() | time():
            return value.isoformat()
        case Decimal():
            return str(value)
        case list() | tuple():
            return [_plain(each) for each in value]
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
    raise ValueError(f"a metadata field holds {type(value).__name__}, which JSON has no word for")
