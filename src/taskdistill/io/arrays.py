"""Files of an index: arrays and tables that are hashed before anything is read from them, then
memory-mapped.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from taskdistill.errors import BadInput
from taskdistill.io.atomic import sha256_file
from taskdistill.io.json import open_regular

_VERIFIED: dict[tuple[int, ...], str] = {}
"""What this process has hashed already: identity of a file (device, inode, size, times) to its
SHA-256.
"""

_SETTLED = 100_000_000
"""Nanoseconds after a change before a file's times are believed: a clock that ticks every few
milliseconds hides a second change.
"""


@contextmanager
def array_writer(
    path: Path, dtype: DTypeLike, shape: tuple[int, ...]
) -> Iterator[Callable[[NDArray[Any]], None]]:
    """Write a .npy file block by block; the caller syncs it.

    Nothing is written through a memory map: on a full disk that would end the process instead of
    raising an error. `shape`: shape of all blocks together, joined along the first axis.
    """
    rows = 0
    with path.open("wb") as stream:
        npy.write_array_header_1_0(
            stream, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        )

        def append(block: NDArray[Any]) -> None:
            nonlocal rows
            assert block.shape[1:] == shape[1:]
            rows += len(block)
            stream.write(np.ascontiguousarray(block, dtype).tobytes())

        yield append
        assert rows == shape[0]


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write a .npy file; the caller syncs it."""
    with array_writer(path, array.dtype, array.shape) as append:
        append(array)


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Write an Arrow file batch by batch; the caller syncs it."""
    with path.open("wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        yield writer.write_batch


def entry(path: Path) -> dict[str, Any]:
    """Hash a file that this process has just written.

    Returns `{"bytes": int, "sha256": str}`, as manifests hold it.
    """
    digest = sha256_file(path)
    _VERIFIED[_identity(path.stat())] = digest
    return {"bytes": path.stat().st_size, "sha256": digest}


def map_file(path: Path, expected: dict[str, Any], *, full: bool = True) -> mmap.mmap:
    """Map a file into memory after checking that it is the one the manifest lists.

    `expected`: `{"bytes": int, "sha256": str}`. `full`: whether to hash the content (once a process
    for each state of the file); the size is always checked. Returns a read-only map. Raises
    BadInput if the size or the hash differs. Raises FileNotFoundError if there is no such file.
    """
    with open_regular(path) as stream:
        status = os.fstat(stream.fileno())
        if status.st_size != expected["bytes"] or status.st_size == 0:
            raise damaged(path, f"it has {status.st_size} bytes instead of {expected['bytes']}")
        if full:
            identity = _identity(status)
            result = _VERIFIED.get(identity) or hashlib.file_digest(stream, "sha256").hexdigest()
            if time.time_ns() - status.st_ctime_ns > _SETTLED:
                _VERIFIED[identity] = result
            if result != expected["sha256"]:
                raise damaged(path, "its content differs from its SHA-256")
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def array_of(
    path: Path, mapped: mmap.mmap, dtype: DTypeLike, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Read a mapped .npy file without copying.

    `dtype`: the type it must hold. `shape`: the shape it must have. Returns a read-only array over
    the map. Raises BadInput if the header is no .npy header, or type, shape or length are others.
    """
    head = io.BytesIO(mapped[:4096])
    try:
        npy.read_magic(head)
        shape_there, fortran, dtype_there = npy.read_array_header_1_0(head)
    except ValueError as error:
        raise damaged(path, f"it is no array ({error})") from None
    requested = np.dtype(dtype)
    if (shape_there, fortran, dtype_there) != (shape, False, requested):
        raise damaged(
            path,
            f"it holds {dtype_there} of shape {shape_there} instead of {requested} of shape"
            f" {shape}",
        )
    count = int(np.prod(shape))
    if len(mapped) - head.tell() != count * requested.itemsize:
        raise damaged(
            path,
            f"{len(mapped) - head.tell()} bytes follow its header instead of"
            f" {count * requested.itemsize}",
        )
    return np.frombuffer(mapped, requested, count, head.tell()).reshape(shape)


def table_of(path: Path, mapped: mmap.mmap, schema: pa.Schema) -> pa.Table:
    """Read a mapped Arrow file without copying.

    `schema`: the columns it must have. Raises BadInput if it is no Arrow file or has other columns.
    """
    try:
        table = pa.ipc.open_file(pa.py_buffer(mapped)).read_all()
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, f"it is no table ({error})") from None
    if not table.schema.equals(schema):
        raise damaged(path, f"it has the columns {table.schema.names} instead of {schema.names}")
    return table


def damaged(path: Path, reason: str) -> BadInput:
    """Return the error of a damaged file."""
    return BadInput(f"{path} is damaged: {reason}; restore the index from a copy or build it again")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
