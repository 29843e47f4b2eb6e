"""Records to the documents of an index: the rows of a file or the texts of a folder; bad rows are
counted with their reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from taskdistill.errors import BadInput, RowError, did_you_mean
from taskdistill.io.lines import MAX_LINE
from taskdistill.io.records import ReadStats, Records, check_text, kind_of, text_of

TEXT_FIELDS = ("text", "content", "body", "document")
ID_FIELDS = ("_id", "id")
TEXT_FILES = (".txt", ".md", ".rst", ".text")


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


class Corpus:
    """The documents of a file or folder; each pass over it reads it again and counts anew in
    `stats`.
    """

    def __init__(
        self, path: str | Path, *, text_field: str | None = None, id_field: str | None = None
    ) -> None:
        """Find out how to read the path.

        `path`: a file of rows; a folder of text files; or a folder with corpus.jsonl(.gz).
        `text_field`: name of the text; by default the first of text, content, body, document that
        the first row has. `id_field`: name of the id; by default `_id` or `id`, or else file name
        and line. Raises BadInput if there is nothing to read, the ending is unknown, or a field is
        named where files are the texts.
        """
        self.path = Path(path)
        self.stats = ReadStats()
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
        self._untyped = any(each.lower() in (".csv", ".tsv") for each in self.path.suffixes[-2:])
        if not self.path.is_dir():
            Records(self.path).close()

    def __iter__(self) -> Iterator[Document]:
        self.stats = ReadStats()
        first = True
        for file, line, record in self._folder() if self.path.is_dir() else self._file():
            self.stats.read += 1
            if first and not isinstance(record, RowError):
                self._choose_text_field(record)
                first = False
            try:
                if isinstance(record, RowError):
                    raise record
                document = self._document(record, f"{file}:{line}")
            except RowError as error:
                self.stats.reject(f"{file}:{line}", error)
                continue
            self.stats.used += 1
            yield document
        if not self.stats.used:
            first_fault = f"; the first: {self.stats.examples[0]}" if self.stats.examples else ""
            raise BadInput(
                f"{self.path} holds no usable document among {self.stats.read} rows{first_fault};"
                " give a corpus with texts"
            )

    def _file(self) -> Iterator[tuple[str, int, dict[str, Any] | RowError]]:
        for line, record in Records(self.path):
            yield self.path.name, line, record

    def _folder(self) -> Iterator[tuple[str, int, dict[str, Any] | RowError]]:
        for path in sorted(
            p for p in self.path.rglob("*") if p.is_file() and not p.name.startswith(".")
        ):
            name = path.relative_to(self.path).as_posix()
            yield name, 1, _text_file(path, name)

    def _choose_text_field(self, row: Mapping[str, Any]) -> None:
        candidates = (self._text_field,) if self._text_field else TEXT_FIELDS
        first = next((name for name in candidates if name in row), None)
        if first is None:
            names = ", ".join(map(str, row))
            raise BadInput(
                f"{self.path} has no field {' or '.join(candidates)}, its first row has: {names};"
                " name the field that holds the text"
            )
        self._text_field = first
        if self._id_field is not None and self._id_field not in row:
            raise BadInput(
                f"{self.path} has no field {self._id_field!r}{did_you_mean(self._id_field, row)};"
                " name the field that holds the id"
            )

    def _document(self, record: dict[str, Any], place: str) -> Document:
        text_field = cast(str, self._text_field)
        text = text_of(record, text_field)
        id_field = self._id_field or next((name for name in ID_FIELDS if name in record), None)
        key = place if id_field is None else record.get(id_field)
        if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
            raise RowError(f"{id_field!r} holds no id", f"it is {kind_of(key)}")
        check_text(str(key), cast(str, id_field))
        metadata = {
            name: _plain(name, value)
            for name, value in record.items()
            if name not in (text_field, id_field)
        }
        # An empty cell of a table without types says that there is no value; in JSON it is one.
        filled = {
            name: value
            for name, value in metadata.items()
            if value is not None and not (self._untyped and value == "")
        }
        check_text(json.dumps(filled, ensure_ascii=False), "metadata")
        return Document(str(key), text, filled)


def _text_file(path: Path, name: str) -> dict[str, Any] | RowError:
    if path.suffix.lower() not in TEXT_FILES:
        return RowError("not a text file", f"the ending is not one of {', '.join(TEXT_FILES)}")
    try:
        if path.stat().st_size > MAX_LINE:
            return RowError("file too long", f"more than {MAX_LINE >> 20} MiB")
        return {"id": name, "text": path.read_bytes().decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return RowError("invalid UTF-8", f"byte offset {error.start}")
    except OSError as error:
        return RowError("a file that cannot be read", str(error.strerror))


def _plain(name: str, value: Any) -> Any:
    """Return a JSON value; missing values (None, NaN) are None."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if math.isinf(value):
                raise RowError(f"{name!r} holds infinity")
            return None if math.isnan(value) else value
        case date() | time():
            return value.isoformat()
        case Decimal():
            return str(value)
        case list() | tuple():
            return [_plain(name, each) for each in value]
        case dict():
            return {str(key): _plain(name, each) for key, each in value.items()}
    raise RowError(f"{name!r} holds what JSON has no word for", kind_of(value))
