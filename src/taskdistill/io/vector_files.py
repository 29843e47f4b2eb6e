"""Files of vectors, written row by row: .npy, .parquet and .jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from taskdistill.io.outputs import IsReplaceable

MARK = {b"taskdistill": b"vectors"}
"""What the schema of a Parquet file says of itself."""


class Writer(Protocol):
    """Takes vectors in order."""

    def add(self, rows: np.ndarray, vectors: np.ndarray, spans: np.ndarray | None = None) -> None:
        """Append vectors with their row numbers, and for parts of texts their first character and
        the one after the last.
        """

    def close(self) -> None:
        """Finish the file."""


class _NpyWriter:
    """Appends rows and writes the header, whose room is fixed, at the end."""

    HEADER = 128

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._stream.write(b"\0" * self.HEADER)
        self._count, self._shape, self._dtype = 0, 0, np.dtype("float32")

    def add(self, _: np.ndarray, vectors: np.ndarray, spans: np.ndarray | None = None) -> None:
        assert spans is None
        self._count, self._shape, self._dtype = (
            self._count + len(vectors),
            vectors.shape[1],
            vectors.dtype,
        )
        self._stream.write(np.ascontiguousarray(vectors).tobytes())

    def close(self) -> None:
        text = repr(
            {"descr": self._dtype.str, "fortran_order": False, "shape": (self._count, self._shape)}
        )
        self._stream.seek(0)
        self._stream.write(
            b"\x93NUMPY\x01\x00"
            + (self.HEADER - 10).to_bytes(2, "little")
            + text.ljust(self.HEADER - 11).encode()
            + b"\n"
        )
        self._stream.close()


class _ParquetWriter:
    """Columns `row`, `start` and `end` for parts of texts, and `vector`, a list of fixed size."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: np.ndarray, vectors: np.ndarray, spans: np.ndarray | None = None) -> None:
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1]
        )
        places = (
            {} if spans is None else {"start": pa.array(spans[:, 0]), "end": pa.array(spans[:, 1])}
        )
        table = pa.table({"row": pa.array(rows), **places, "vector": column})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema.with_metadata(MARK))
        self._writer.write_table(table.replace_schema_metadata(MARK))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _JsonWriter:
    """One object a line: `row`, `start` and `end` for parts of texts, and `vector`."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("w", encoding="utf-8")

    def add(self, rows: np.ndarray, vectors: np.ndarray, spans: np.ndarray | None = None) -> None:
        places = (
            [{}] * len(rows)
            if spans is None
            else [{"start": start, "end": end} for start, end in spans.tolist()]
        )
        for row, place, vector in zip(rows.tolist(), places, vectors.tolist(), strict=True):
            self._stream.write(
                json.dumps({"row": row, **place, "vector": vector}, allow_nan=False) + "\n"
            )

    def close(self) -> None:
        self._stream.close()


def is_npy(file: BinaryIO) -> bool:
    """Say whether a .npy file was written here: numpy puts a comma before the brace that closes its
    header.
    """
    head = file.read(_NpyWriter.HEADER)
    start = b"\x93NUMPY\x01\x00" + (_NpyWriter.HEADER - 10).to_bytes(2, "little") + b"{'descr': "
    return head.startswith(start) and head.endswith(b"\n") and head.rstrip().endswith(b")}")


def is_parquet(file: BinaryIO) -> bool:
    """Say whether a Parquet file was written here."""
    try:
        return MARK.items() <= (pq.read_schema(file).metadata or {}).items()
    except (pa.ArrowException, OSError):
        return False


def is_jsonl(file: BinaryIO) -> bool:
    """Say whether a file of JSON lines was written here.

    Returns whether its first line has the fields of ours, in their order.
    """
    try:
        row = json.loads(file.readline(1 << 24))
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and list(row) in (
        ["row", "vector"],
        ["row", "start", "end", "vector"],
    )


REPLACEABLE: dict[str, IsReplaceable] = {".npy": is_npy, ".parquet": is_parquet, ".jsonl": is_jsonl}
"""Ending of a file to what says whether its writer wrote it."""

WRITERS: dict[str, Callable[[Path], Writer]] = {
    ".npy": _NpyWriter,
    ".parquet": _ParquetWriter,
    ".jsonl": _JsonWriter,
}
"""Ending of the file to its writer."""
