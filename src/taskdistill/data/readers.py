"""Records from JSONL, CSV, Parquet and Hub data sets: one mapping per record, or the fault that
spoilt it.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any, cast

from taskdistill.errors import BadInput, require_extra
from taskdistill.io.json import JsonError, read_object

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")
MAX_LINE = 64 << 20
MAX_RATIO = 100
MAX_EXPANDED = 32 << 30
RATIO_FROM = 16 << 20
BLOCK = 1 << 20


class Fault(Exception):
    """Why a record cannot be used: a reason shared by all such records and what is particular to
    this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


Record = tuple[int, dict[str, Any] | Fault]
"""Line (text files) or row (Parquet, Hub) number from 1, and the record or its fault."""


def read_records(path: Path, wanted: Collection[str] | None = None) -> Iterator[Record]:
    """Read the records of one file; blank lines are no records.

    `path`: a file whose name ends in one of `SUFFIXES`. `wanted`: parquet only: columns to read,
    the others come as None; None reads every column. Raises BadInput if the file is missing,
    unreadable, of an unknown format, damaged as a whole, a decompression bomb, or changed while it
    was read.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise BadInput(
            f"{path}: unknown format; rows are read from files that end in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise BadInput(
            f"{path} is {'a folder' if path.is_dir() else 'missing'}; give a file of rows"
            f" ({', '.join(SUFFIXES)})"
        )
    before = path.stat()
    if before.st_size == 0:
        raise BadInput(f"no rows in {path}: the file is empty")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(path, wanted)
        elif ".csv" in name[-7:]:
            yield from _csv(path)
        else:
            yield from _jsonl(path)
    except PermissionError:
        raise BadInput(f"{path} may not be read; change its permissions") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(
            f"{path} is a damaged or truncated gzip file ({error}); copy or download it again"
        ) from None
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BadInput(f"{path} changed while it was read; run again when it is complete")


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


def _jsonl(path: Path) -> Iterator[Record]:
    for number, offset, line in _lines(path):
        if isinstance(line, Fault):
            yield number, line
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            yield number, Fault("invalid UTF-8", f"byte offset {offset + error.start}")
            continue
        if not text.strip(" \t\r"):
            continue
        yield number, parse_json(text)


def parse_json(text: str) -> dict[str, Any] | Fault:
    """Parse one JSON object strictly.

    Returns the object, or the fault: duplicate key, NaN or infinity, nesting or a number beyond all
    bounds, not an object.
    """
    try:
        return read_object(text)
    except JsonError as fault:
        return Fault(fault.reason, fault.detail)


def _csv(path: Path) -> Iterator[Record]:
    undecodable: dict[int, int] = {}

    def decoded() -> Iterator[str]:
        for number, offset, line in _lines(path):
            if isinstance(line, Fault):
                raise BadInput(f"{path}:{number}: {line.reason}; split the file into shorter lines")
            try:
                yield line.decode() + "\n"
            except UnicodeDecodeError as error:
                undecodable[number] = offset + error.start
                yield line.decode(errors="replace") + "\n"

    csv.field_size_limit(MAX_LINE)
    reader = csv.reader(decoded(), strict=True)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise BadInput(
                    f"{path}:{first}: a quoted value that starts in this row is never closed;"
                    " close it"
                ) from None
            yield first, Fault("not valid CSV", str(error))
            continue
        if not any(cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) != len(header):
                raise BadInput(f"{path}: the header names a column twice: {', '.join(header)}")
        elif bad := [
            undecodable[line] for line in range(first, reader.line_num + 1) if line in undecodable
        ]:
            yield first, Fault("invalid UTF-8", f"byte offset {bad[0]}")
        elif len(cells) != len(header):
            yield first, Fault("wrong number of columns", f"{len(cells)} instead of {len(header)}")
        else:
            yield first, dict(zip(header, cells, strict=True))


def _parquet(path: Path, requested: Collection[str] | None) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    number = expanded = 0
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        columns = names if requested is None else [name for name in names if name in requested]
        others = dict.fromkeys(name for name in names if name not in columns)
        groups = [
            file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)
        ]
        _check_expansion(path, sum(groups), size)
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            expanded += batch.nbytes
            _check_expansion(path, expanded, size)
            for record in batch.to_pylist():
                number += 1
                yield number, record | others
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{path} cannot be read as Parquet after row {number} ({str(error)[:150]}); write it"
            " again"
        ) from None


def _check_expansion(path: Path, expanded: int, size: int) -> None:
    if expanded > RATIO_FROM and expanded > MAX_RATIO * size:
        raise BadInput(
            f"{path} grows to more than {MAX_RATIO} times its {size} bytes: refused as a"
            " decompression bomb"
        )
    if expanded > MAX_EXPANDED:
        raise BadInput(
            f"{path} expands to more than {MAX_EXPANDED >> 30} GiB; split it into smaller files"
        )


def _lines(path: Path) -> Iterator[tuple[int, int, bytes | Fault]]:
    """Split on line feeds only; give line number, byte offset and the line, or a fault for one that
    is too long.
    """
    packed = path.name.lower().endswith(".gz")
    size = path.stat().st_size
    number, start, expanded = 0, 0, 0
    held: list[bytes] = []
    held_size = 0
    with cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb") as stream:
        while block := stream.read(BLOCK):
            if expanded == 0:
                _check_encoding(path, block)
                if block.startswith(b"\xef\xbb\xbf"):
                    start, block = 3, block[3:]
            expanded += len(block)
            if packed:
                _check_expansion(path, expanded, size)
            head, *rest = block.split(b"\n")
            held_size += len(head)
            if held_size <= MAX_LINE:
                held.append(head)
            for following in rest:
                number += 1
                yield number, start, _joined(held, held_size)
                start += held_size + 1
                held, held_size = [following], len(following)
    if held_size:
        number += 1
        yield number, start, _joined(held, held_size)


def _joined(parts: list[bytes], size: int) -> bytes | Fault:
    return b"".join(parts) if size <= MAX_LINE else Fault("line too long", f"{size} bytes")


def _check_encoding(path: Path, block: bytes) -> None:
    if block.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadInput(
            f"{path} is UTF-16, rows must be UTF-8; convert it first, for example: iconv -f utf-16"
            " -t utf-8"
        )
