"""A teacher whose vectors are already on disk, from whatever made them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, RowError
from taskdistill.io.records import check_unicode, kind_of, read_records, value_of
from taskdistill.teacher.keys import KEY_DTYPE, KeyIndex, Keys, text_keys
from taskdistill.teacher.protocol import TeacherIdentity, unit_rows

TEXT_FILES = ("texts.jsonl", "texts.jsonl.gz", "texts.parquet", "texts.txt")
VECTOR_COLUMNS = ("vector", "embedding")
_LAYOUT = (
    "a folder of vectors holds vectors.npy (float, one row a text) and one of"
    f" {', '.join(TEXT_FILES)} (field or column `text`; .txt: one text a line), or is a .parquet"
    f" file with the columns text and {' or '.join(VECTOR_COLUMNS)}"
)
_FINGERPRINT_ROWS = 1024


@dataclass(frozen=True)
class PrecomputedTeacher:
    """Vectors found by text; the texts on disk are what the teacher read, its instruction included.

    Where a text stands more than once, its first vector counts. Rows that are zero or not finite go
    to the store's quarantine.
    """

    path: Path
    identity: TeacherIdentity
    vectors: npt.NDArray[Any]
    index: KeyIndex

    @property
    def embedding_dim(self) -> int:
        """Size of the vectors."""
        return int(self.vectors.shape[1])

    @classmethod
    def load(cls, path: Path, *, revision: str | None = None) -> PrecomputedTeacher:
        """Open a folder of vectors, or a Parquet file with a text and a vector column.

        `path`: the folder or file; `vectors.npy` is mapped, not read. `revision`: part of the
        identity, beside a hash over a sample of the vectors. Raises BadInput if a file is missing
        or unreadable, or texts and vectors do not match.
        """
        if path.is_file() and path.suffix == ".parquet":
            texts, vectors = _parquet_pair(path)
        else:
            texts, vectors = _folder_pair(path)
        keys = _keys(texts)
        if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind != "f":
            raise BadInput(
                f"the vectors of {path} have the shape {vectors.shape} and type {vectors.dtype};"
                " needed are (texts, dim) floats"
            )
        if len(keys) != len(vectors):
            raise BadInput(
                f"{path} has {len(keys)} texts and {len(vectors)} vectors; each text needs one"
                " vector, in the same order"
            )
        return cls(
            path,
            TeacherIdentity(
                kind="precomputed",
                model=path.resolve().name,
                revision=revision,
                weights=_fingerprint(keys, vectors),
            ),
            vectors,
            KeyIndex(keys),
        )

    def known(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Say which texts have a vector. Returns (n,) of bool."""
        result: npt.NDArray[np.bool_] = self.index.rows(text_keys(texts)) >= 0
        return result

    def require(self, texts: Sequence[str]) -> None:
        """Check that every text has a vector.

        Raises BadInput if some have none: how many, with examples.
        """
        rows = self.index.rows(text_keys(texts))
        if missing := list(
            islice((text for text, row in zip(texts, rows, strict=True) if row < 0), 3)
        ):
            raise BadInput(
                f"{int((rows < 0).sum())} of {len(texts)} texts have no vector in {self.path}, such"
                f" as {', '.join(repr(text[:80]) for text in missing)}; add their vectors, or leave"
                " these texts out of the recipe's data"
            )

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Look texts up.

        Returns Float32 (n, dim) unit rows. Raises BadInput if some texts have no vector.
        """
        self.require(texts)
        return unit_rows(self.vectors[self.index.rows(text_keys(texts))])


def _folder_pair(folder: Path) -> tuple[Iterator[str], npt.NDArray[Any]]:
    files = [folder / name for name in TEXT_FILES if (folder / name).is_file()]
    if len(files) != 1 or not (folder / "vectors.npy").is_file():
        raise BadInput(f"{folder} cannot be used as teacher.model of kind precomputed: {_LAYOUT}")
    try:
        vectors: npt.NDArray[Any] = np.load(
            folder / "vectors.npy", mmap_mode="r", allow_pickle=False
        )
    except (ValueError, EOFError, OSError) as error:
        raise BadInput(f"{folder / 'vectors.npy'} cannot be read: {error}; {_LAYOUT}") from None
    return _texts(files[0]), vectors


def _texts(path: Path) -> Iterator[str]:
    """Give every text of a file, as it stands: the teacher may have read what no recipe takes."""
    for number, record in read_records(path, {"text"}):
        try:
            if isinstance(record, RowError):
                raise record
            text = value_of(record, "text")
            if not isinstance(text, str):
                raise RowError("'text' is no text", f"it is {kind_of(text)}")
            check_unicode(text, "text")
        except RowError as error:
            raise BadInput(
                f"{path}:{number}: {error}; every row needs its text, since vectors are found by it"
            ) from None
        yield text


def _keys(texts: Iterator[str]) -> Keys:
    """Hash a stream of texts without holding them."""
    parts = [np.empty(0, KEY_DTYPE)]
    while batch := list(islice(texts, 65536)):
        parts.append(text_keys(batch))
    return np.concatenate(parts)


def _parquet(path: Path, *columns: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path} cannot be read as Parquet: {error}") from None
    if missing := [name for name in columns if name not in file.schema_arrow.names]:
        raise BadInput(
            f"{path} has no column {missing[0]!r}; its columns are"
            f" {', '.join(file.schema_arrow.names)}; {_LAYOUT}"
        )
    return file


def _parquet_pair(path: Path) -> tuple[Iterator[str], npt.NDArray[Any]]:
    import pyarrow.compute

    file = _parquet(path, "text")
    column = next(
        (name for name in VECTOR_COLUMNS if name in file.schema_arrow.names), VECTOR_COLUMNS[0]
    )
    rows: list[npt.NDArray[Any]] = []
    for batch in _parquet(path, column).iter_batches(columns=[column]):
        values = batch.column(column)
        if values.null_count or not hasattr(values, "flatten"):
            raise BadInput(
                f"{path}: column {column!r} has missing values or holds no lists of numbers"
            )
        flat = values.flatten().to_numpy(zero_copy_only=False)
        if len(pyarrow.compute.unique(pyarrow.compute.list_value_length(values))) > 1:
            raise BadInput(f"{path}: the vectors of column {column!r} have different sizes")
        rows.append(np.asarray(flat, np.float32).reshape(len(values), -1))
    if len({block.shape[1] for block in rows}) != 1:
        raise BadInput(f"{path}: column {column!r} holds no vectors, or vectors of different sizes")
    return _texts(path), np.concatenate(rows)


def _fingerprint(keys: Keys, vectors: npt.NDArray[Any]) -> str:
    """Hash the texts' keys and an even sample of the vectors: other vectors differ nearly
    everywhere.
    """
    digest = hashlib.sha256(f"{vectors.shape} {vectors.dtype.str}".encode())
    digest.update(keys.tobytes())
    sample = np.unique(
        np.linspace(0, len(vectors) - 1, min(len(vectors), _FINGERPRINT_ROWS)).astype(np.int64)
    )
    digest.update(np.ascontiguousarray(vectors[sample]).tobytes())
    return digest.hexdigest()
