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
from taskdistill.search.candidates import Codes, Rows
from taskdistill.search.filters import ENTRIES, Condition, matching_documents
from taskdistill.search.settings import RESCORE_TYPES
from taskdistill.search.storage.manifest import Manifest, SegmentEntry
from taskdistill.search.storage.segment_writer import DOCUMENTS, TEXTS, SegmentBlock, renumbered

_BLOCK_ROWS = 16_384


class Segment:
    """The documents of one segment, those deleted since it was written left out."""

    def __init__(self, path: Path, manifest: Manifest, entry: SegmentEntry, *, full: bool) -> None:
        """Map the files of a segment of an index.

        `full`: whether to hash the files, not only to compare sizes. Raises BadInput if a file is
        damaged. Raises FileNotFoundError if a file is missing.
        """
        self.entry = entry
        self.content = manifest.content_of(entry)
        rows, documents, settings = entry.rows, entry.documents, manifest.settings

        def mapped(name: str) -> tuple[Path, mmap.mmap]:
            if name not in manifest.files:
                raise damaged(path, f"the manifest does not list {name}")
            return path / name, map_file(path / name, dict(manifest.files[name]), full=full)

        def table(name: str, schema: pa.Schema, expected: int | None) -> pa.Table:
            file, content = mapped(f"{entry.folder}/{name}")
            read = table_of(file, content, schema)
            if expected not in (None, read.num_rows):
                raise damaged(file, f"it has {read.num_rows} rows instead of {expected}")
            return read

        self.codes: Codes = array_of(
            *mapped(f"{entry.folder}/codes.npy"), np.uint8, (rows, settings.code_bytes)
        )
        self.vectors: NDArray[np.generic] | None = None
        if settings.rescore != "none":
            file, content = mapped(f"{entry.folder}/vectors.npy")
            # Candidates lie all over the file: reading ahead would fetch what nobody rescores.
            content.madvise(mmap.MADV_RANDOM)
            self.vectors = array_of(
                file, content, RESCORE_TYPES[settings.rescore], (rows, settings.dim)
            )
        self.spans: Rows = array_of(*mapped(f"{entry.folder}/places.npy"), np.int64, (rows, 3))
        self._keys = array_of(*mapped(f"{entry.folder}/keys.npy"), np.uint64, (3, documents))
        self._texts = table("texts.arrow", TEXTS, rows)
        self._documents = table("documents.arrow", DOCUMENTS, documents)
        self.entries = table("entries.arrow", ENTRIES, None)
        self.deleted: Rows = np.zeros(0, np.int64)
        if entry.deletes_file is not None:
            self.deleted = array_of(*mapped(entry.deletes_file), np.int64, (entry.deleted,))

    @cached_property
    def live_documents(self) -> NDArray[np.bool_]:
        """`(documents,)` True where a document is not deleted."""
        live = np.ones(self.entry.documents, dtype=bool)
        live[self.deleted] = False
        return live

    @cached_property
    def live_rows(self) -> Rows | None:
        """Rows whose document is not deleted, ascending; None if that is every row."""
        if not self.entry.deleted:
            return None
        return np.flatnonzero(self.live_documents[self.spans[:, 0]])

    @cached_property
    def live_codes(self) -> Codes:
        """Binary codes of `live_rows`: the map itself, or a copy if documents are deleted."""
        return self.codes if self.live_rows is None else self.codes[self.live_rows]

    @property
    def live_count(self) -> int:
        """Rows whose document is not deleted."""
        return self.entry.rows if self.live_rows is None else len(self.live_rows)

    def matching_rows(self, conditions: Sequence[Condition]) -> Rows:
        """Return the live rows of documents that meet conditions, ascending."""
        matching = matching_documents(self.entries, self.entry.documents, conditions)
        return np.flatnonzero((matching & self.live_documents)[self.spans[:, 0]])

    def find(self, ids: Sequence[str], hashes: NDArray[np.uint64]) -> dict[str, tuple[int, int]]:
        """Look up live documents.

        `hashes`: `id_hash` of each id. Returns id to number of the document in this segment and
        hash of its content, for those here.
        """
        first = np.searchsorted(self._keys[0], hashes, side="left")
        last = np.searchsorted(self._keys[0], hashes, side="right")
        places = {}
        for at in np.flatnonzero(first < last).tolist():
            # Two ids may share a hash, and a replaced document is still listed.
            for key in range(first[at], last[at]):
                document = int(self._keys[2, key])
                same = self._documents["id"][document].as_py() == ids[at]
                if same and self.live_documents[document]:
                    places[ids[at]] = document, int(self._keys[1, key])
        return places

    def ids(self) -> list[str]:
        """Return the id of every document, deleted ones included, by its number."""
        ids: list[str] = self._documents["id"].to_pylist()
        return ids

    def text(self, row: int) -> str:
        """Return the passage of a row."""
        text: str = self._texts["text"][row].as_py()
        return text

    def document(self, row: int) -> tuple[str, dict[str, Any]]:
        """Return id and metadata of the document that a row is from."""
        number = int(self.spans[row, 0])
        metadata = json.loads(self._documents["metadata"][number].as_py())
        return self._documents["id"][number].as_py(), metadata

    def titled_texts(self) -> Iterator[str]:
        """Yield the passage of every live row with its document's title before it."""
        rows = range(self.entry.rows) if self.live_rows is None else self.live_rows.tolist()
        number, title = -1, None
        for row in rows:
            if int(self.spans[row, 0]) != number:
                number, title = int(self.spans[row, 0]), self.document(row)[1].get("title")
            yield titled(self.text(row), title)

    def blocks(self) -> Iterator[SegmentBlock]:
        """Yield the live documents, some thousand rows at a time, as a new segment takes them."""
        # Stored by hash of the id, needed by document.
        keys = self._keys[:, np.argsort(self._keys[2], kind="stable")]
        ends = np.searchsorted(self.spans[:, 0], np.arange(self.entry.documents), side="right")
        start = 0
        while start < self.entry.documents:
            first_row = ends[start - 1] if start else 0
            # At least one document, however many rows it has.
            stop = max(start + 1, int(np.searchsorted(ends, first_row + _BLOCK_ROWS, side="right")))
            yield self._block(start, stop, np.arange(first_row, ends[stop - 1]), keys)
            start = stop

    def _block(self, start: int, stop: int, rows: Rows, keys: NDArray[np.uint64]) -> SegmentBlock:
        """Take the live ones of documents `start` to `stop` in `rows`; `keys` are by document."""
        live = self.live_documents[start:stop]
        number = np.cumsum(live) - 1  # of a live document in the block
        rows = rows[live[self.spans[rows, 0] - start]]
        # Indexing by an array copies: the map itself cannot be written to.
        spans = self.spans[rows]
        spans[:, 0] = number[spans[:, 0] - start]
        first, last = np.searchsorted(self.entries["document"].to_numpy(), [start, stop])
        entries = self.entries.slice(first, last - first)
        entries = entries.filter(pa.array(live[entries["document"].to_numpy() - start]))
        keys = keys[:, start:stop][:, live].copy()
        keys[2] = np.arange(keys.shape[1])
        return SegmentBlock(
            codes=self.codes[rows],
            vectors=None if self.vectors is None else self.vectors[rows],
            spans=spans,
            texts=_batch(self._texts.take(pa.array(rows))),
            documents=_batch(self._documents.slice(start, stop - start).filter(pa.array(live))),
            entries=renumbered(_batch(entries), number[entries["document"].to_numpy() - start]),
            keys=keys,
        )


def titled(text: str, title: Any) -> str:
    """Return what is embedded and indexed for a passage: the title, if there is one, before it."""
    return f"{title} {text}" if isinstance(title, str) and title.strip() else text


def _batch(table: pa.Table) -> pa.RecordBatch:
    if table.num_rows:
        return table.combine_chunks().to_batches()[0]
    return pa.RecordBatch.from_pylist([], schema=table.schema)
