"""One shard of a teacher store: vectors, keys, and a JSON file written last that makes
them count.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput
from taskdistill.io.atomic import sha256_file, write_file
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.teacher.keys import KEY_DTYPE, Keys

Vectors = npt.NDArray[np.float16]
_DIGITS = r"\d{5}|[1-9]\d{5,6}"
"""Number of a shard; eight digits are somebody's date."""
_NUMBER = re.compile(_DIGITS)
_PART_NAME = re.compile(
    rf"(?P<number>{_DIGITS})(\.keys)?\.npy|\.(?P<hidden>{_DIGITS})(\.keys)?\.(npy|json)\.(taskdistill-)?[0-9a-f]{{8}}"
)


class FileFacts(TypedDict):
    """What a shard's JSON file says of another file of it."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Where a complete shard lies and what its JSON file says of it."""

    folder: Path
    number: int
    rows: int
    embedding_dim: int
    files: dict[str, FileFacts]
    """Of `vectors` and `keys`."""
    store: str | None = None
    """Hash of the manifest of the store that it was written for; None for one of the time before
    shards said so.
    """

    @property
    def name(self) -> str:
        """Five digits."""
        return f"{self.number:05d}"

    def keys(self) -> Keys:
        """Read the keys, checking their hash.

        Raises BadInput if the file is not the one that was written.
        """
        self._check("keys")
        keys: Keys = self._read("keys").view(KEY_DTYPE).ravel()
        return keys

    def vectors(self) -> Vectors:
        """Map the vectors into memory, checking their hash first.

        Returns Float16 (rows, dim), read-only. Raises BadInput if the file is not the one that was
        written.
        """
        self._check("vectors")
        return self._read("vectors")

    def fault(self) -> str | None:
        """Compare both files with their hashes. Returns what is wrong, or None."""
        for part in ("keys", "vectors"):
            if result := self._size_fault(part) or self._hash_fault(part):
                return result
        return self._shape_fault("keys") or self._shape_fault("vectors")

    def stranger(self, store: str) -> str | None:
        """Compare the store that the shard was written for with the one that it lies in.

        Returns what is wrong, or None.
        """
        return None if self.store in (None, store) else f"{self.name}.json belongs to another store"

    def check_sizes(self) -> None:
        """Compare the files' sizes, which costs no reading.

        Raises BadInput if a file is missing, short or long.
        """
        for part in ("keys", "vectors"):
            if result := self._size_fault(part):
                raise broken(self.folder, self.name, result)

    def _path(self, part: str) -> Path:
        return self.folder / (f"{self.name}.npy" if part == "vectors" else f"{self.name}.keys.npy")

    def _read(self, part: str) -> npt.NDArray[Any]:
        if result := self._shape_fault(part):
            raise broken(self.folder, self.name, result)
        array: npt.NDArray[Any] = np.load(
            self._path(part), mmap_mode="r" if part == "vectors" else None, allow_pickle=False
        )
        return array

    def _shape_fault(self, part: str) -> str | None:
        needed = (
            (np.float16, (self.rows, self.embedding_dim))
            if part == "vectors"
            else (np.uint8, (self.rows, KEY_DTYPE.itemsize))
        )
        try:
            array = np.load(self._path(part), mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            return f"{self._path(part).name} is no array ({error})"
        if (array.dtype, array.shape) != needed:
            return (
                f"{self._path(part).name} has shape {array.shape}, its JSON file says {needed[1]}"
            )
        return None

    def _size_fault(self, part: str) -> str | None:
        path = self._path(part)
        if not path.is_file():
            return f"{path.name} is missing"
        size, needed = path.stat().st_size, self.files[part]["bytes"]
        return None if size == needed else f"{path.name} has {size} bytes instead of {needed}"

    def _hash_fault(self, part: str) -> str | None:
        path = self._path(part)
        return (
            None
            if sha256_file(path) == self.files[part]["sha256"]
            else f"{path.name} differs from its SHA-256"
        )

    def _check(self, part: str) -> None:
        if result := self._size_fault(part) or self._hash_fault(part):
            raise broken(self.folder, self.name, result)


def broken(folder: Path, name: str, fault: str) -> BadInput:
    """Say that a shard is damaged and how to repair the store."""
    return BadInput(
        f"shard {name} of the teacher store {folder.parent} is damaged: {fault}; run: taskdistill"
        f" info {folder.parent} --repair (drops the shard, the next run embeds its texts again)"
    )


def write_shard(folder: Path, number: int, *, keys: Keys, vectors: Vectors, store: str) -> Shard:
    """Write a shard; it exists once its JSON file does."""
    parts = {"vectors": _npy(vectors), "keys": _npy(keys.view(np.uint8).reshape(len(keys), -1))}
    files: dict[str, FileFacts] = {
        part: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for part, data in parts.items()
    }
    shard = Shard(
        folder=folder,
        number=number,
        rows=len(keys),
        embedding_dim=vectors.shape[1],
        files=files,
        store=store,
    )
    # The JSON file last: until it stands, the arrays are leftovers that the next writer removes.
    for part, data in parts.items():
        write_file(shard._path(part), data)
    fields = {
        "shard": number,
        "store": store,
        "rows": shard.rows,
        "embedding_dim": shard.embedding_dim,
        **files,
    }
    write_sealed(folder / f"{shard.name}.json", fields)
    return shard


def read_shard(path: Path) -> Shard:
    """Read a shard's JSON file.

    Returns the shard; its other files are not looked at. Raises BadInput if the file does not
    describe a shard.
    """
    try:
        raw = read_sealed(path, "the shard has to be made again")
        files: dict[str, FileFacts] = {
            part: {"bytes": int(raw[part]["bytes"]), "sha256": str(raw[part]["sha256"])}
            for part in ("vectors", "keys")
        }
        number, rows, dim = int(raw.get("shard", path.stem)), raw["rows"], raw["embedding_dim"]
        if not all(type(size) is int and size > 0 for size in (rows, dim)):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise broken(
            path.parent, path.stem, f"{path.name} cannot be read, or is not what was written"
        ) from None
    if number != int(path.stem):
        raise broken(path.parent, path.stem, f"{path.name} says that it is shard {number}")
    return Shard(
        folder=path.parent,
        number=number,
        rows=rows,
        embedding_dim=dim,
        files=files,
        store=raw.get("store"),
    )


def shard_files(folder: Path) -> list[Path]:
    """List the JSON files of the complete shards, in order.

    Returns paths; empty if the folder does not exist.
    """
    return sorted(
        (path for path in folder.glob("*.json") if _NUMBER.fullmatch(path.stem)),
        key=lambda path: int(path.stem),
    )


def leftovers(folder: Path) -> list[Path]:
    """List files that a killed writer left and that belong to no complete shard; files that no
    writer of shards makes are left out.
    """
    complete = {path.stem for path in shard_files(folder)}
    next_number = max(map(int, complete), default=-1) + 1
    result = []
    for path in sorted(folder.glob("*")):
        match = _PART_NAME.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_file():
            continue
        if (
            int(match["number"] or match["hidden"]) <= next_number
            and match["number"] not in complete
        ):
            result.append(path)
    return result


def _npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
