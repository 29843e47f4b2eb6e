"""Tables as raw rows: CSV and TSV, Parquet, Arrow. `io/records.py` gives them out as records."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

from taskdistill.errors import BadInput, RowError
from taskdistill.io.lines import (
    MAX_LINE,
    check_expansion,
    check_file,
    check_unchanged,
    decoded,
    read_lines,
)

BATCH_ROWS = 1024

RawRow = tuple[int, int, Any]
"""Number from 1, offset in bytes where it is known, and what was read there, or a `RowError`."""


def read_csv(path: Path, delimiter: str) -> tuple[list[str], Iterator[RawRow]]:
    """Give the header, and each row under it as a mapping; blank lines are left out."""
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

    def records() -> Iterator[RawRow]:
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


def read_columns(
    path: Path, kind: str, columns: Collection[str] | None
) -> tuple[list[str], Iterator[RawRow]]:
    """Give the columns of a Parquet or Arrow file (`kind`), and each row as a mapping."""
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
    unread = dict.fromkeys(name for name in names if columns is not None and name not in columns)

    def records() -> Iterator[RawRow]:
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
                yield number, 0, row if isinstance(row, RowError) else row | unread
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
