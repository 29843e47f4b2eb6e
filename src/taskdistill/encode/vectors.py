"""A folder of shards read as one: vectors and row numbers in the order of the texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.encode.corpus import KIND
from taskdistill.encode.shards import shard_files
from taskdistill.errors import BadInput
from taskdistill.io.folders import file_fault, read_manifest, require_field
from taskdistill.io.outputs import output
from taskdistill.io.vector_files import REPLACEABLE, WRITERS

STORED = ("float32", "float16", "int8", "uint8")
ADVICE = "run the same encode command again, which makes the shard anew"


class VectorFolder:
    """Vectors of a corpus on disk."""

    def __init__(self, folder: Path) -> None:
        """Open a finished folder.

        Raises BadInput if it is of another kind, unfinished or damaged; vectors and row numbers are
        checked when they are read.
        """
        self.folder = folder
        self.manifest: dict[str, Any] = read_manifest(folder, KIND)
        rows, size, counts = (
            require_field(folder, self.manifest, *each)
            for each in (("rows", int), ("shard_rows", int), ("counts", dict))
        )
        self.shards = -(-rows // max(1, size))
        self._vectors = require_field(folder, counts, "vectors", int)
        require_field(folder, self.manifest, "width", int)
        if (stored := require_field(folder, self.manifest, "stored_as", str)) not in STORED:
            raise BadInput(
                f"{folder} says that its vectors are stored as {stored!r}; needs one of"
                f" {', '.join(STORED)}; {ADVICE}"
            )
        for name in self.manifest["files"]:
            if not name.endswith(".npy"):
                self._check(name)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return self._vectors

    @property
    def width(self) -> int:
        """Numbers (for binary: bytes) of one vector."""
        return int(self.manifest["width"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one number."""
        named: np.dtype[Any] = np.dtype(self.manifest["stored_as"])
        return named

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Read shard after shard, memory-mapped.

        Yields row numbers `(n,)` of int64, ascending, and vectors `(n, width)`. Raises BadInput if
        a file is not the one that was written.
        """
        for number in range(self.shards):
            vectors, rows, _ = shard_files(self.folder, number)
            for file in (vectors, rows):
                self._check(file.relative_to(self.folder).as_posix())
            numbers, values = np.load(rows), np.load(vectors, mmap_mode="r")
            if (
                numbers.shape != (len(values),)
                or values.shape[1:] != (self.width,)
                or values.dtype != self.dtype
            ):
                raise BadInput(
                    f"{vectors} has shape {values.shape} and type {values.dtype}, which its"
                    f" manifest does not say; {ADVICE}"
                )
            yield numbers, values

    def _check(self, name: str) -> None:
        if fault := file_fault(self.folder, name, self.manifest["files"].get(name)):
            raise BadInput(f"{self.folder} is damaged: {fault}; {ADVICE}")

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Read all into memory. Returns row numbers `(n,)` and vectors `(n, width)`."""
        rows, vectors = np.empty(len(self), np.int64), np.empty((len(self), self.width), self.dtype)
        start = 0
        for block_rows, block in self.blocks():
            stop = start + len(block_rows)
            rows[start:stop], vectors[start:stop] = block_rows, block
            start = stop
        return rows, vectors


def merge_vectors(folder: Path, out: Path) -> int:
    """Copy a folder of shards into one file, in bounded memory.

    `out`: .npy, .parquet or .jsonl; written beside and renamed. Raises BadInput if the ending is
    unknown, or rows were rejected and the file could not say which.
    """
    opened = VectorFolder(folder)
    if out.suffix not in WRITERS:
        raise BadInput(
            f"{out}: vectors are written as {', '.join(WRITERS)}; give one of these endings"
        )
    if out.suffix == ".npy" and len(opened) != int(opened.manifest["rows"]):
        raise BadInput(
            f"{out}: a .npy file cannot say which rows have no vector; write .parquet or .jsonl"
        )
    with output(out, REPLACEABLE[out.suffix]) as beside:
        writer = WRITERS[out.suffix](beside)
        for rows, vectors in opened.blocks():
            writer.add(rows, vectors)
        writer.close()
    return len(opened)
