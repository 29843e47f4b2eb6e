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
from taskdistill.search.candidates import CELL_ROWS, Distances, FirstPass, approximate, build_cells
from taskdistill.search.corpus import Document
from taskdistill.search.filters import Filter
from taskdistill.search.hybrid import Bm25, build_bm25, open_bm25
from taskdistill.search.ingest import BATCH, IngestReport, Progress
from taskdistill.search.prf import PrfSettings
from taskdistill.search.protocol import SearchEncoder, unit_vectors
from taskdistill.search.query import query_vectors, rank_queries
from taskdistill.search.ranking import exact_pass
from taskdistill.search.resize import resize
from taskdistill.search.settings import IndexSettings, SearchDefaults
from taskdistill.search.storage import commit
from taskdistill.search.storage.journal import writing
from taskdistill.search.storage.manifest import Content, Manifest
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.segment_writer import Rows
from taskdistill.search.storage.snapshot import Hit, Snapshot, open_snapshot
from taskdistill.search.target import create
from taskdistill.types import MANIFEST


class Index:
    """A searchable set of documents on disk.

    Searching reads one generation, unaffected by what other processes write until `refresh`. Every change is on the disk
    when its call returns, and survives a kill at any point; what was not acknowledged never happened. One process writes
    at a time, any number read.
    """

    def __init__(self, snapshot: Snapshot, *, full: bool, first_pass: FirstPass) -> None:
        """Take over an opened generation; use `open` or `create`.

        Args:
            snapshot: The generation.
            full: Whether later generations are hashed in full.
            first_pass: How the first pass searches large segments.
        """
        self._full, self._first_pass = full, first_pass
        self._cells: dict[Content, Any] = {}
        self._lexical: tuple[object, Bm25] | None = None
        self._take(snapshot)

    @classmethod
    def open(
        cls, path: str | Path, *, verify: str = "full", first_pass: FirstPass = "flat"
    ) -> Self:
        """Open an index for searching and writing.

        Args:
            path: Its folder.
            verify: `full` hashes every file once a process; `sizes` only compares sizes.
            first_pass: `flat` is exact. `ivf` sorts the codes of segments of at least 65,536 rows into cells in memory now, and then
                looks into a quarter of them: faster, and some of the best are missed.

        Returns:
            The index at its current generation.

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
        if first_pass != "flat" and not any(
            segment.entry.rows >= CELL_ROWS for segment in snapshot.segments
        ):
            raise BadInput(
                f"{path} has no segment of {CELL_ROWS} rows, so {first_pass} would have no effect; "
                "use flat, which is exact and fast at this size, or compact the index first"
            )
        return cls(snapshot, full=verify == "full", first_pass=first_pass)

    @classmethod
    def create(cls, path: str | Path, settings: IndexSettings) -> Self:
        """Make an empty index.

        Args:
            path: A folder that does not exist or is empty.
            settings: What it shall remember.

        Returns:
            The index.

        Raises:
            BadInput: If the folder holds something.
            WorkFailed: If it cannot be written.
        """
        create(Path(path), Manifest(settings))
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
        return sum(
            segment.entry.documents - segment.entry.deleted for segment in self.snapshot.segments
        )

    def refresh(self) -> None:
        """Go on to the current generation, after another process has written, or has built the index anew in the same place.

        Raises:
            BadInput: If the folder holds vectors of another kind now: what asks this index embeds its queries for the old one.
        """
        found = open_snapshot(self.path, full=self._full, previous=self.snapshot)
        self.settings.check_same_vectors(found.manifest.settings)
        self._take(found)

    def search(
        self,
        queries: Sequence[str] | NDArray[Any],
        top_k: int = 10,
        *,
        encoder: SearchEncoder | None = None,
        space_id: str | None = None,
        oversample: int | None = None,
        filter: Filter | None = None,
        refinement: PrfSettings | bool | None = None,
        hybrid: bool | None = None,
    ) -> list[list[Hit]]:
        """Find the best passages for each query.

        Args:
            queries: Texts, which need `encoder`, or (q, dim) vectors of the index's space.
            top_k: Passages a query; fewer come back where there are fewer.
            encoder: Any encoder of the index's space: the one it was made with, or a student's projection into it.
            space_id: Space of the vectors, to be checked; texts are checked by their encoder.
            oversample: Candidates of the first pass for each passage; None for what the index was tuned to, else 100.
            filter: Conditions on metadata, applied before ranking.
            refinement: Move queries towards their best documents and search again; None for what the index was tuned to,
                True for that or the usual one, False for off.
            hybrid: Join with BM25 by reciprocal rank fusion, which needs texts and `build_bm25`; None for what the index was tuned to.

        Returns:
            For each query its hits, best first.

        Raises:
            BadInput: If something does not match the index, or an option is out of range.
        """
        snapshot = self.snapshot
        settings, usual = snapshot.manifest.settings, snapshot.manifest.search
        texts: Sequence[str] = ()
        if isinstance(queries, np.ndarray):
            if hybrid or encoder is not None:
                raise BadInput(
                    "vectors were given where texts are needed (hybrid search, encoder); give the queries as texts"
                )
            if space_id is not None:
                settings.check_space(space_id)
            vectors, hybrid = unit_vectors(queries, settings.dim, "query"), False
        elif isinstance(queries, str) or encoder is None or space_id is not None:
            raise BadInput(
                "give a list of texts with an encoder, or an array of vectors with or without space_id"
            )
        else:
            texts, vectors = queries, query_vectors(settings, encoder, queries)
        ranked = rank_queries(
            snapshot,
            vectors,
            top_k,
            oversample=usual.oversample if oversample is None else oversample,
            allowed=snapshot.allowed(filter),
            first_pass=self.near,
            refinement=usual.refinement
            if refinement is None
            else usual.refinement or PrfSettings()
            if refinement is True
            else refinement or None,
            lexical=self._open_lexical(snapshot)
            if (usual.hybrid if hybrid is None else hybrid)
            else None,
            texts=texts,
        )
        return [snapshot.hits(*each) for each in ranked]

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
            documents: The documents; of several with one id the last one stays.
            encoder: The model the index was made with.
            batch: Passages embedded and acknowledged together.
            progress: Told the documents done and their number (0 where unknown).

        Returns:
            What became of them.

        Raises:
            BadInput: If the encoder does not match, or a document or vector cannot be kept.
            WorkFailed: If another process writes or the disk fails; acknowledged batches stay.
        """
        with self.writing():
            total = len(documents) if isinstance(documents, Sized) else 0
            return ingest.ingest(
                self.snapshot, encoder, documents, batch=batch, total=total, progress=progress
            )[1]

    def add_vectors(
        self, documents: Sequence[Document], vectors: NDArray[Any], *, space_id: str
    ) -> IngestReport:
        """Add documents whose vectors are there already, one vector for each whole document.

        Args:
            documents: Documents with distinct ids.
            vectors: (documents, dim) vectors.
            space_id: The space they are in.

        Returns:
            What became of the documents.

        Raises:
            BadInput: If space, number or dimension does not match, an id occurs twice, or a vector is zero or not finite.
            WorkFailed: If another process writes or the disk fails.
        """
        self.settings.check_space(space_id)
        if len({ingest.checked(document).id for document in documents}) != len(documents):
            raise BadInput("an id occurs twice among the documents; leave the older ones out")
        if not documents:
            return IngestReport()
        places = np.array(
            [(at, 0, len(document.text)) for at, document in enumerate(documents)], np.int64
        )
        with self.writing():
            _, replaced = ingest.add(self.snapshot, documents, places, vectors)
        return IngestReport(
            added=len(documents) - replaced, replaced=replaced, passages=len(places)
        )

    def delete(self, ids: Iterable[str]) -> int:
        """Delete documents.

        Args:
            ids: Their ids; ids that are not there are left out.

        Returns:
            How many there were.

        Raises:
            WorkFailed: If another process writes or the disk fails.
        """
        if isinstance(ids, str):
            raise BadInput(f"delete takes a list of ids, not one text; give [{ids!r}]")
        with self.writing():
            return commit.delete(self.snapshot, ids)

    def compact(self) -> None:
        """Write the index without its deleted documents and in as few segments as can be.

        Raises:
            WorkFailed: If another process writes or the disk fails.
        """
        with self.writing():
            while positions := commit.compaction(self.snapshot):
                commit.merge(self.snapshot, positions)
                self.refresh()

    def set_defaults(self, defaults: SearchDefaults) -> None:
        """Remember how to search where a search does not say, such as what tuning recommends.

        Args:
            defaults: The new defaults.

        Raises:
            BadInput: If they need vectors that the index does not keep.
            WorkFailed: If another process writes or the disk fails.
        """
        with self.writing():
            commit.set_defaults(self.snapshot, defaults)

    def shrink(self, dim: int, rescore: str) -> None:
        """Keep fewer dimensions or a smaller precision, from the stored vectors: nothing is embedded again.

        Args:
            dim: Dimensions to keep, at most those there are.
            rescore: Precision of the vectors kept: the one there is, or a smaller one.

        Raises:
            BadInput: If the index keeps less than is asked for.
            WorkFailed: If another process writes or the disk fails.
        """
        with self.writing():
            resize(self.snapshot, dim, rescore)

    def build_bm25(self) -> None:
        """Build the lexical part for hybrid search; it lasts until documents change.

        Raises:
            BadInput: If the index is empty, or bm25s is not installed.
            WorkFailed: If another process writes or the disk fails.
        """
        with self.writing():
            build_bm25(self.snapshot)

    def describe(self) -> dict[str, Any]:
        """Say what the index is.

        Returns:
            Plain data: settings, search defaults, counts, generation, whether a build is under way, bytes by kind of file.
        """
        manifest = self.snapshot.manifest
        sizes: dict[str, int] = {}
        for name, each in manifest.files.items():
            kind = name.partition("/")[0] if not name.startswith("segments/") else Path(name).stem
            sizes[kind] = sizes.get(kind, 0) + int(each["bytes"])
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
            "bytes": {**sizes, MANIFEST: (self.path / MANIFEST).stat().st_size},
        }

    def near(
        self, segment: Segment, queries: NDArray[np.uint8], count: int
    ) -> tuple[Distances, Rows]:
        """Search the cells of a segment if it has some, else all of it.

        Args:
            segment: A segment of this index.
            queries: (q, bytes) binary codes.
            count: How many live rows to find.

        Returns:
            Distances and rows of the segment, -1 where fewer were found.
        """
        cells = self._cells.get(segment.content)
        if cells is None:
            return exact_pass(segment, queries, count)
        distances, rows = approximate(
            cells, queries, min(segment.entry.rows, count + min(count, segment.entry.deleted))
        )
        gone = (rows >= 0) & ~segment.live_documents[segment.places[rows, 0]]
        return distances, np.where(gone, -1, rows)

    def _take(self, snapshot: Snapshot) -> None:
        if self._first_pass != "flat":
            large = [segment for segment in snapshot.segments if segment.entry.rows >= CELL_ROWS]
            known = self._cells
            self._cells = {
                each.content: known[each.content]
                if each.content in known
                else build_cells(each.codes)
                for each in large
            }
        self.snapshot = snapshot

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock, at the current generation when it begins and when it ends.

        Yields:
            None.

        Raises:
            WorkFailed: If another process writes or the folder cannot be written.
        """
        with writing(self.path):
            self.refresh()
            try:
                yield
            finally:
                self.refresh()

    def _open_lexical(self, snapshot: Snapshot) -> Bm25:
        known = self._lexical
        bm25 = snapshot.manifest.bm25
        content = None if bm25 is None else snapshot.manifest.contents.get(f"bm25/{bm25:08}")
        if known is None or known[0] != content:
            known = content, open_bm25(snapshot, full=self._full)
            self._lexical = known
        return known[1]
