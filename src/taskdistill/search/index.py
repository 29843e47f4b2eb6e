"""An index folder: open, search, add, delete, compact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.search import ingest
from taskdistill.search.candidates import (
    CELL_ROWS,
    Codes,
    FirstPass,
    Nearest,
    build_cells,
    search_cells,
)
from taskdistill.search.corpus import Document
from taskdistill.search.filters import Filter
from taskdistill.search.hybrid import Bm25, build_bm25, open_bm25
from taskdistill.search.ingest import BATCH, IngestReport, Progress
from taskdistill.search.prf import PrfSettings
from taskdistill.search.query import SearchOptions, query_vectors, rank_queries
from taskdistill.search.ranking import exact_pass
from taskdistill.search.resize import resize
from taskdistill.search.settings import (
    IndexSettings,
    SearchDefaults,
    SearchEncoder,
    unit_vectors,
)
from taskdistill.search.storage import commit
from taskdistill.search.storage.folder import create_index
from taskdistill.search.storage.manifest import Content, Manifest
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.snapshot import Hit, Snapshot, open_snapshot
from taskdistill.types import MANIFEST


class Index:
    """A searchable set of documents on disk.

    Searching reads one generation, unaffected by what other processes write until `refresh`. Every
    change is on the disk when its call returns, and survives a kill at any point; what was not
    acknowledged never happened. One process writes at a time, any number read.

    What does not match the index raises BadInput, naming both sides; a change raises WorkFailed if
    another process writes or the disk fails.
    """

    def __init__(self, snapshot: Snapshot, *, full: bool, first_pass: FirstPass) -> None:
        """Take over an opened generation; use `open` or `create`."""
        self._full, self._first_pass = full, first_pass
        self._cells: dict[Content, Any] = {}
        self._bm25: tuple[object, Bm25] | None = None
        self._read_from(snapshot)

    @classmethod
    def open(
        cls, path: str | Path, *, verify: str = "full", first_pass: FirstPass = "flat"
    ) -> Self:
        """Open an index for searching and writing, at its current generation.

        Args:
            verify: `full` hashes every file once a process; `sizes` only compares sizes.
            first_pass: `flat` is exact. `ivf` sorts the codes of segments of at least 65,536 rows
                into cells in memory now, and then looks into a quarter of them: faster, and some of
                the best are missed.

        Raises:
            BadInput: If there is no index, it is damaged, or it is too small for cells.
        """
        if verify not in ("full", "sizes"):
            raise BadInput(f"verify cannot be {verify!r}{did_you_mean(verify, ('full', 'sizes'))}")
        if first_pass not in ("flat", "ivf"):
            raise BadInput(
                f"first_pass cannot be {first_pass!r}{did_you_mean(first_pass, ('flat', 'ivf'))}"
            )
        snapshot = open_snapshot(Path(path), full=verify == "full")
        rows = [segment.entry.rows for segment in snapshot.segments]
        if first_pass != "flat" and max(rows, default=0) < CELL_ROWS:
            raise BadInput(
                f"{path} has no segment of {CELL_ROWS} rows, so {first_pass} would have no effect; "
                "use flat, which is exact and fast at this size, or compact the index first"
            )
        return cls(snapshot, full=verify == "full", first_pass=first_pass)

    @classmethod
    def create(cls, path: str | Path, settings: IndexSettings) -> Self:
        """Write an empty index into a folder that does not exist or is empty."""
        create_index(Path(path), Manifest(settings=settings))
        return cls.open(path)

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.snapshot.path

    @property
    def settings(self) -> IndexSettings:
        """What it was made with."""
        return self.snapshot.manifest.settings

    @property
    def documents(self) -> int:
        """Documents that can be found."""
        return sum(entry.live_documents for entry in self.snapshot.manifest.segments)

    def refresh(self) -> None:
        """Go on to the current generation, after another process has written or built it anew.

        Raises:
            BadInput: If the folder holds vectors of another kind now: whoever searches this index
                embeds queries for the old one.
        """
        snapshot = open_snapshot(self.path, full=self._full, previous=self.snapshot)
        self.settings.check_same_vectors(snapshot.manifest.settings)
        self._read_from(snapshot)

    def search(
        self,
        queries: Sequence[str] | NDArray[np.floating],
        top_k: int = 10,
        *,
        encoder: SearchEncoder | None = None,
        vectors: NDArray[np.floating] | None = None,
        oversample: int | None = None,
        filter: Filter | None = None,
        refinement: PrfSettings | bool | None = None,
        hybrid: bool | None = None,
    ) -> list[list[Hit]]:
        """Search for the best passages of each query, best first.

        Args:
            queries: Texts, which need `encoder`, or `(q, dim)` vectors of the index's space.
            top_k: Passages a query; fewer come back where there are fewer.
            encoder: Any encoder of the index's space: the one it was made with, or a student's
                projection into it.
            vectors: `(q, at least dim)` vectors of the texts by `encoder`, where they are computed
                already; nothing is embedded then.
            oversample: Candidates of the first pass for each passage; None for what the index was
                tuned to, else 100.
            filter: Conditions on metadata, applied before ranking.
            refinement: Move queries towards their best documents and search again; None for what
                the index was tuned to, True for that or the usual one, False for off.
            hybrid: Join with BM25 by reciprocal rank fusion, which needs texts and `build_bm25`;
                None for what the index was tuned to.
        """
        # One generation throughout, even if another thread refreshes.
        snapshot = self.snapshot
        settings, defaults = snapshot.manifest.settings, snapshot.manifest.search
        texts: Sequence[str] = ()
        if isinstance(queries, np.ndarray):
            if hybrid or encoder is not None or vectors is not None:
                raise BadInput(
                    "vectors were given where texts are needed (hybrid search, encoder); give the "
                    "queries as texts"
                )
            unit, hybrid = unit_vectors(queries, settings.dim, "query"), False
        elif isinstance(queries, str) or encoder is None:
            raise BadInput("give a list of texts with an encoder, or an array of vectors")
        else:
            texts, unit = queries, query_vectors(settings, encoder, queries, vectors)
        allowed = snapshot.allowed(filter)
        if refinement is None or refinement is True:
            usual = PrfSettings() if refinement else None
            refinement = defaults.refinement or usual
        use_bm25 = defaults.hybrid if hybrid is None else hybrid
        options = SearchOptions(
            oversample=defaults.oversample if oversample is None else oversample,
            refinement=refinement or None,
            bm25=self._open_bm25(snapshot) if use_bm25 else None,
            first_pass=self._near_codes,
        )
        ranked = rank_queries(snapshot, unit, top_k, options, allowed=allowed, texts=texts)
        return [snapshot.hits(rows, scores) for rows, scores in ranked]

    def add(
        self,
        documents: Iterable[Document],
        encoder: SearchEncoder,
        *,
        batch: int = BATCH,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Add documents, or replace those whose id is known and whose content differs.

        Args:
            documents: Of several with one id the last one stays.
            encoder: The model the index was made with.
            batch: Passages embedded and acknowledged together; acknowledged batches stay.
        """
        with self.writing():
            total = len(documents) if isinstance(documents, Sized) else 0
            return ingest.ingest(
                self.snapshot, encoder, documents, batch=batch, total=total, progress=progress
            )[1]

    def add_vectors(
        self, documents: Sequence[Document], vectors: NDArray[np.floating], *, space_id: str
    ) -> IngestReport:
        """Add documents whose vectors are there already, one vector for each whole document.

        Args:
            documents: Documents with distinct ids.
            vectors: `(documents, dim)` vectors.
            space_id: The space they are in.

        Raises:
            BadInput: If space, number or dimension does not match, an id occurs twice, or a vector
                is zero or not finite.
        """
        self.settings.check_space(space_id)
        for document in documents:
            ingest.check_document(document)
        if len({document.id for document in documents}) != len(documents):
            raise BadInput("an id occurs twice among the documents; leave the older ones out")
        if not documents:
            return IngestReport()
        spans = np.array(
            [(at, 0, len(document.text)) for at, document in enumerate(documents)], np.int64
        )
        with self.writing():
            _, replaced = ingest.add(self.snapshot, documents, spans, vectors)
        added = len(documents) - replaced
        return IngestReport(added=added, replaced=replaced, passages=len(spans))

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents, leaving unknown ids out; return how many there were."""
        if isinstance(ids, str):
            raise BadInput(f"delete takes a list of ids, not one text; give [{ids!r}]")
        with self.writing():
            return commit.delete(self.snapshot, ids)

    def compact(self) -> None:
        """Write the index without its deleted documents and in as few segments as can be."""
        with self.writing():
            while positions := commit.due_compaction(self.snapshot):
                commit.merge(self.snapshot, positions)
                self.refresh()

    def set_defaults(self, defaults: SearchDefaults) -> None:
        """Remember how to search where a search does not say, such as what tuning recommends."""
        with self.writing():
            defaults.check(self.settings.rescore)
            if defaults != self.snapshot.manifest.search:
                commit.commit(self.snapshot, {}, search=defaults)

    def shrink(self, dim: int, rescore: str) -> None:
        """Keep fewer dimensions or a smaller precision; nothing is embedded again.

        Args:
            dim: Dimensions to keep, at most those there are.
            rescore: Precision of the vectors: the one there is, or a smaller one.
        """
        with self.writing():
            resize(self.snapshot, dim, rescore)

    def build_bm25(self) -> None:
        """Build the lexical part for hybrid search; it lasts until documents change."""
        with self.writing():
            build_bm25(self.snapshot)

    def describe(self) -> dict[str, object]:
        """Return settings, search defaults, counts and bytes by kind of file as plain data."""
        manifest = self.snapshot.manifest
        return {
            "path": str(self.path),
            **manifest.settings.to_json(),
            "documents": self.documents,
            "passages": self.snapshot.live_count,
            "deleted": sum(entry.deleted for entry in manifest.segments),
            "segments": len(manifest.segments),
            "generation": manifest.generation,
            "building": manifest.building,
            "hybrid": manifest.bm25 is not None,
            "search": manifest.search.to_json(),
            "metadata": sorted(self.snapshot.metadata_keys),
            "bytes": self.sizes(),
        }

    def sizes(self) -> dict[str, int]:
        """Return bytes by kind of file."""
        result: dict[str, int] = {}
        for name, entry in self.snapshot.manifest.files.items():
            kind = name.partition("/")[0] if not name.startswith("segments/") else Path(name).stem
            result[kind] = result.get(kind, 0) + entry["bytes"]
        return {**result, MANIFEST: (self.path / MANIFEST).stat().st_size}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock, at the current generation when it begins and when it ends."""
        with commit.writing(self.path):
            self.refresh()
            try:
                yield
            finally:
                self.refresh()

    def _read_from(self, snapshot: Snapshot) -> None:
        if self._first_pass != "flat":
            large = [segment for segment in snapshot.segments if segment.entry.rows >= CELL_ROWS]
            # Cells of the same content are built once, and those of older generations let go.
            cells = self._cells
            self._cells = {
                segment.content: (
                    cells[segment.content]
                    if segment.content in cells
                    else build_cells(segment.codes)
                )
                for segment in large
            }
        self.snapshot = snapshot

    def _near_codes(self, segment: Segment, queries: Codes, count: int) -> Nearest:
        """Search the cells of a segment if it has some, else all of it."""
        cells = self._cells.get(segment.content)
        if cells is None:
            return exact_pass(segment, queries, count)
        # Deleted rows are in the cells too: some more are looked up in their place.
        spare = min(count, segment.entry.deleted)
        distances, rows = search_cells(cells, queries, min(segment.entry.rows, count + spare))
        deleted = (rows >= 0) & ~segment.live_documents[segment.spans[rows, 0]]
        return distances, np.where(deleted, -1, rows)

    def _open_bm25(self, snapshot: Snapshot) -> Bm25:
        number = snapshot.manifest.bm25
        content = None if number is None else snapshot.manifest.contents.get(f"bm25/{number:08}")
        if self._bm25 is None or self._bm25[0] != content:
            self._bm25 = content, open_bm25(snapshot, full=self._full)
        return self._bm25[1]
