"""Read a segment by memory map, after checking its files."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taskdistill.io.arrays import array_of, damaged, map_file, table_of
from taskdistill.search.filters import Condition
from taskdistill.search.metadata import ENTRIES, matching, renumbered
from taskdistill.search.settings import RESCORE_TYPES
from taskdistill.search.storage.manifest import Manifest, SegmentEntry
from taskdistill.search.storage.segment_writer import DOCUMENTS, TEXTS, Rows, SegmentBlock

_BLOCK_ROWS = 16_384


class Segment:
    """The documents of one segment, those deleted since it was written left out."""

    def __init__(self, path: Path, manifest: Manifest, entry: SegmentEntry, *, full: bool) -> None:
        """Map the files of a segment.

        Args:
            path: The index.
            manifest: A generation of it.
            entry: The segment in that generation.
            full: Whether to hash the files, not only to compare sizes.

        Raises:
            BadInput: If a file is damaged.
            FileNotFoundError: If a file is missing.
        """
        self.entry = entry
        self.content = manifest.content_of(entry)
        rows, documents, settings = entry.rows, entry.documents, manifest.settings

        def mapped(name: str) -> tuple[Path, mmap.mmap]:
            if name not in manifest.files:
                raise damaged(path, f"the manifest does not list {name}")
            return path / name, map_file(path / name, manifest.files[name], full=full)

        self.codes: NDArray[np.uint8] = array_of(
            *mapped(f"{entry.folder}/codes.npy"), np.uint8, (rows, settings.code_bytes)
        )
        self.vectors: NDArray[Any] | None = None
        if settings.rescore != "none":
            file, content = mapped(f"{entry.folder}/vectors.npy")
            content.madvise(mmap.MADV_RANDOM)
            self.vectors = array_of(
                file, content, RESCORE_TYPES[settings.rescore], (rows, settings.dim)
            )
        self.places: Rows = array_of(*mapped(f"{entry.folder}/places.npy"), np.int64, (rows, 3))
        self._keys = array_of(*mapped(f"{entry.folder}/keys.npy"), np.uint64, (3, documents))
        self._texts = self._table(*mapped(f"{entry.folder}/texts.arrow"), TEXTS, rows)
        self._documents = self._table(
            *mapped(f"{entry.folder}/documents.arrow"), DOCUMENTS, documents
        )
        self.entries = table_of(*mapped(f"{entry.folder}/entries.arrow"), ENTRIES)
        self.deleted: Rows = np.zeros(0, np.int64)
        if entry.deletes_file is not None:
            self.deleted = array_of(*mapped(entry.deletes_file), np.int64, (entry.deleted,))

    @staticmethod
    def _table(file: Path, content: mmap.mmap, schema: pa.Schema, rows: int) -> pa.Table:
        table = table_of(file, content, schema)
        if table.num_rows != rows:
            raise damaged(file, f"it has {table.num_rows} rows instead of {rows}")
        return table

    @cached_property
    def live_documents(self) -> NDArray[np.bool_]:
        """(documents,) True where a document is not deleted."""
        live = np.ones(self.entry.documents, dtype=bool)
        live[self.deleted] = False
        return live

    @cached_property
    def live_rows(self) -> Rows | None:
        """Rows whose document is not deleted, ascending; None if that is every row."""
        return (
            np.flatnonzero(self.live_documents[self.places[:, 0]]) if self.entry.deleted else None
        )

    @cached_property
    def live_codes(self) -> NDArray[np.uint8]:
        """Binary codes of `live_rows`: the map itself, or a copy in memory if documents are deleted."""
        return self.codes if self.live_rows is None else self.codes[self.live_rows]

    @property
    def live_count(self) -> int:
        """Rows whose document is not deleted."""
        return self.entry.rows if self.live_rows is None else len(self.live_rows)

    def matching_rows(self, conditions: Sequence[Condition]) -> Rows:
        """Find the live rows of documents that meet conditions.

        Args:
            conditions: From `filters.parse_filter`.

        Returns:
            Rows, ascending.
        """
        found = matching(self.entries, self.entry.documents, conditions) & self.live_documents
        return np.flatnonzero(found[self.places[:, 0]])

    def find(self, ids: Sequence[str], hashes: NDArray[np.uint64]) -> dict[str, tuple[int, int]]:
        """Look up live documents.

        Args:
            ids: Document ids.
            hashes: `key_of` each.

        Returns:
            Id to number of the document in this segment and hash of its content, for those that are here.
        """
        first = np.searchsorted(self._keys[0], hashes, side="left")
        last = np.searchsorted(self._keys[0], hashes, side="right")
        found = {}
        for at in np.flatnonzero(first < last).tolist():
            for key in range(first[at], last[at]):
                document = int(self._keys[2, key])
                if (
                    self.live_documents[document]
                    and self._documents["id"][document].as_py() == ids[at]
                ):
                    found[ids[at]] = document, int(self._keys[1, key])
        return found

    def ids(self) -> list[str]:
        """Return the id of every document, deleted ones included, by its number."""
        found: list[str] = self._documents["id"].to_pylist()
        return found

    def text(self, row: int) -> str:
        """Return the passage of a row."""
        text: str = self._texts["text"][row].as_py()
        return text

    def document(self, row: int) -> tuple[str, dict[str, Any]]:
        """Return id and metadata of the document that a row is from."""
        number = int(self.places[row, 0])
        return self._documents["id"][number].as_py(), json.loads(
            self._documents["metadata"][number].as_py()
        )

    def titled_texts(self) -> Iterator[str]:
        """Yield the passage of every live row with its document's title before it."""
        rows = range(self.entry.rows) if self.live_rows is None else self.live_rows.tolist()
        number, title = -1, None
        for row in rows:
            if int(self.places[row, 0]) != number:
                number, title = int(self.places[row, 0]), self.document(row)[1].get("title")
            yield titled(self.text(row), title)

    def blocks(self) -> Iterator[SegmentBlock]:
        """Yield the live documents, some thousand rows at a time, as a new segment takes them."""
        sorted_keys = self._keys[:, np.argsort(self._keys[2], kind="stable")]
        owners = self.places[:, 0]
        entry_owners = self.entries["document"].to_numpy()
        ends = np.searchsorted(owners, np.arange(self.entry.documents), side="right")
        start = 0
        while start < self.entry.documents:
            first_row = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, first_row + _BLOCK_ROWS, side="right")))
            rows = np.arange(first_row, ends[stop - 1])
            own = slice(*np.searchsorted(entry_owners, [start, stop]))
            yield self._block(
                start,
                stop,
                rows,
                self.entries.slice(own.start, own.stop - own.start),
                sorted_keys[:, start:stop],
            )
            start = stop

    def _block(
        self, start: int, stop: int, rows: Rows, entries: pa.Table, keys: NDArray[np.uint64]
    ) -> SegmentBlock:
        live = self.live_documents[start:stop]
        number = np.cumsum(live) - 1
        rows = rows[live[self.places[rows, 0] - start]]
        places = self.places[rows]
        places[:, 0] = number[places[:, 0] - start]
        entries = entries.filter(pa.array(live[entries["document"].to_numpy() - start]))
        keys = keys[:, live].copy()
        keys[2] = np.arange(keys.shape[1])
        return SegmentBlock(
            codes=self.codes[rows],
            vectors=None if self.vectors is None else self.vectors[rows],
            places=places,
            texts=_batch(self._texts.take(pa.array(rows))),
            documents=_batch(self._documents.slice(start, stop - start).filter(pa.array(live))),
            entries=renumbered(_batch(entries), number[entries["document"].to_numpy() - start]),
            keys=keys,
        )


def titled(text: str, title: Any) -> str:
    """Return what is embedded and indexed for a passage.

    Args:
        text: The passage.
        title: Its document's title, if it has one.

    Returns:
        The passage, with the title and a space before it if there is a title.
    """
    return f"{title} {text}" if isinstance(title, str) and title.strip() else text


def _batch(table: pa.Table) -> pa.RecordBatch:
    return (
        table.combine_chunks().to_batches()[0]
        if table.num_rows
        else pa.RecordBatch.from_pylist([], schema=table.schema)
    )
