"""Lines of a text file, plain or gzip, or of standard input: bounded in length and in what they
expand to, and refused where the file is no UTF-8 text.

Every command that takes rows reads them through here (`io/records.py`), so that a file means the
same to all of them.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from taskdistill.errors import BadInput, RowError
from taskdistill.io.json import open_regular

MAX_LINE = 64 << 20
"""Longest line that is read, in bytes."""

MAX_RATIO = 100
"""How many times its size a compressed file may grow; texts rarely reach 20."""

MAX_EXPANDED = 32 << 30
RATIO_FROM = 16 << 20
"""Bytes up to which a file may grow by any ratio: a small one cannot do harm."""

BLOCK = 1 << 20

STDIN = Path("-")

Line = tuple[int, int, bytes | RowError]
"""Number from 1, offset in bytes, and the line without its line feed, or why it cannot be read."""

_OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16; rows must be UTF-8: convert it first, such as with iconv -f utf-16",
    b"\xfe\xff": "UTF-16; rows must be UTF-8: convert it first, such as with iconv -f utf-16",
    b"\x00\x00\xfe\xff": "UTF-32; rows must be UTF-8: convert it first, such as with iconv",
    b"\x1f\x8b": "a gzip file; let its name end in .gz",
    b"PK\x03\x04": "a zip archive or a spreadsheet; unpack it, or save the sheet as CSV",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it, or pack it with gzip",
    b"BZh": "a bzip2 file; unpack it, or pack it with gzip",
    b"\xfd7zXZ\x00": "an xz file; unpack it, or pack it with gzip",
    b"PAR1": "a Parquet file; let its name end in .parquet",
    b"ARROW1": "an Arrow file; let its name end in .arrow",
}
"""First bytes of a file to what it is instead of UTF-8 text."""

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[Line]:
    """Read a file line by line; only a line feed ends a line.

    `path`: a plain file, through gzip where its name ends in .gz; or `-` for standard input. Raises
    BadInput if it cannot be read, is damaged, is no UTF-8 text as a whole, is a decompression bomb,
    or changed while it was read.
    """
    packed = path.suffix.lower() == ".gz"
    number, start, expanded = 0, 0, 0
    parts: list[bytes] = []
    length = 0
    with _opened(path, packed) as (stream, size):
        while block := stream.read(BLOCK):
            if expanded == 0:
                _check_format(path, block)
                if block.startswith(_BOM):
                    start, block = len(_BOM), block[len(_BOM) :]
            expanded += len(block)
            if packed:
                check_expansion(path, expanded, size)
            head, *following = block.split(b"\n")
            length += len(head)
            if length <= MAX_LINE:
                parts.append(head)
            for line in following:
                number += 1
                yield number, start, _joined(parts, length)
                start += length + 1
                parts, length = [line], len(line)
    if length:
        number += 1
        yield number, start, _joined(parts, length)


def decoded(line: bytes | RowError, offset: int) -> str:
    """Decode a line. `offset`: where it starts in its file. Raises RowError if it is no UTF-8, or
    could not be read.
    """
    if isinstance(line, RowError):
        raise line
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise RowError("invalid UTF-8", f"byte offset {offset + error.start}") from None


def check_expansion(path: Path, expanded: int, size: int) -> None:
    """Refuse a decompression bomb.

    `expanded`: bytes read so far. `size`: bytes of the file. Raises BadInput if it is one.
    """
    if expanded > RATIO_FROM and expanded > MAX_RATIO * size:
        raise BadInput(
            f"{path} grows to more than {MAX_RATIO} times its {size} bytes: refused as a"
            " decompression bomb"
        )
    if expanded > MAX_EXPANDED:
        raise BadInput(
            f"{path} expands to more than {MAX_EXPANDED >> 30} GiB; split it into smaller files"
        )


def check_file(path: Path) -> tuple[int, int]:
    """Check that a file of rows is plain, readable and not empty.

    Returns its size in bytes and its time of change, for `check_unchanged`. Raises BadInput if it
    is not so.
    """
    try:
        with open_regular(path) as plain:
            plain.read(1)
        stat = path.stat()
    except PermissionError:
        raise BadInput(f"{path} may not be read; change its permissions") from None
    except OSError:
        raise BadInput(f"no file {path}; give a file that is there") from None
    if stat.st_size == 0:
        raise BadInput(f"no rows in {path}: the file is empty")
    return stat.st_size, stat.st_mtime_ns


def check_unchanged(path: Path, before: tuple[int, int]) -> None:
    """Raise BadInput if a file is not as it was when `check_file` looked at it."""
    after = path.stat()
    if (after.st_size, after.st_mtime_ns) != before:
        raise BadInput(f"{path} changed while it was read; run again when it is complete")


@contextmanager
def _opened(path: Path, packed: bool) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file; gives the stream and the size of the file, 0 for standard input."""
    if path == STDIN:
        yield sys.stdin.buffer, 0
        return
    before = check_file(path)
    try:
        with cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb") as stream:
            yield stream, before[0]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(
            f"{path} is a damaged or truncated gzip file ({error}); copy or download it again"
        ) from None
    check_unchanged(path, before)


def _joined(parts: list[bytes], length: int) -> bytes | RowError:
    return b"".join(parts) if length <= MAX_LINE else RowError("line too long", f"{length} bytes")


def _check_format(path: Path, block: bytes) -> None:
    for first, what in _OTHER_FORMATS.items():
        if block.startswith(first):
            raise BadInput(f"{path} is {what}")
    if b"\n" not in block and b"\r" in block.rstrip(b"\r"):
        raise BadInput(
            f"{path} ends its lines with a carriage return alone; convert it first, such as with"
            " tr '\\r' '\\n'"
        )
