"""One generation of an index, opened: what a search reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.io.arrays import damaged
from taskdistill.search.candidates import Rows
from taskdistill.search.filters import Filter, parse_filter
from taskdistill.search.prf import Floats
from taskdistill.search.settings import RESCORE_TYPES
from taskdistill.search.storage.manifest import Manifest, load_manifest
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.segment_writer import decoded_vectors, id_hash

_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A passage that a search returns."""

    id: str
    """Of its document."""
    score: float
    """What the ranking is by; higher is better."""
    text: str
    metadata: dict[str, Any]
    start: int
    """Where the passage begins in the document's text, in characters."""
    end: int


@dataclass(frozen=True)
class Snapshot:
    """The segments of a generation. Rows are numbered through all of them, in order."""

    path: Path
    manifest: Manifest
    segments: tuple[Segment, ...]

    @cached_property
    def offsets(self) -> Rows:
        """`(segments + 1,)` number of the first row of each segment, and of all rows."""
        return np.cumsum([0, *(segment.entry.rows for segment in self.segments)])

    @cached_property
    def live_count(self) -> int:
        """Rows that can be searched."""
        return sum(segment.live_count for segment in self.segments)

    def rows(self, allowed: Sequence[Rows | None] | None = None) -> Rows:
        """Return the rows that can be searched, ascending; `allowed` as from `Snapshot.allowed`."""
        parts = [np.zeros(0, np.int64)]
        for offset, segment, rows in zip(
            self.offsets, self.segments, allowed or [None] * len(self.segments), strict=False
        ):
            local = segment.live_rows if rows is None else rows
            parts.append(offset + (np.arange(segment.entry.rows) if local is None else local))
        return np.concatenate(parts)

    def allowed(self, filter: Filter | None) -> list[Rows | None]:
        """Evaluate a filter.

        Returns for each segment the rows, numbered within it, that may be found; None for all that
        live.
        """
        conditions = parse_filter(filter)
        if not conditions:
            return [None] * len(self.segments)
        for condition in conditions:
            if condition.key not in self.metadata_keys:
                hint = "; no document has metadata"
                if self.metadata_keys:
                    hint = did_you_mean(condition.key[:60], sorted(self.metadata_keys))
                raise BadInput(f"no document has the metadata {condition.key[:60]!r}{hint}")
        return [segment.matching_rows(conditions) for segment in self.segments]

    @cached_property
    def metadata_keys(self) -> set[str]:
        """Keys by which can be filtered."""
        columns = (segment.entries["key"].unique().to_pylist() for segment in self.segments)
        return set().union(*columns)

    def find(self, ids: Iterable[str]) -> dict[str, tuple[int, int, int]]:
        """Look up documents; unknown ids are left out.

        Returns id to position of the segment, number of the document in it and hash of its content.
        """
        names = list(ids)
        hashes = np.array([id_hash(name) for name in names], np.uint64)
        return {
            name: (at, *place)
            for at, segment in enumerate(self.segments)
            for name, place in segment.find(names, hashes).items()
        }

    def vectors(self, rows: Rows) -> NDArray[np.generic]:
        """Return the vectors of rows in the precision they are kept in.

        Raises BadInput if the index keeps none.
        """
        settings = self.manifest.settings
        if settings.rescore == "none":
            raise BadInput(
                "this index keeps binary codes only (rescore none); build it with rescore int8 to "
                "use its vectors"
            )
        # One segment needs no search for the owner of each row, and is the usual case.
        single = self.segments[0].vectors if len(self.segments) == 1 else None
        if single is not None:
            return single.take(rows, axis=0)
        vectors = np.empty((len(rows), settings.dim), RESCORE_TYPES[settings.rescore])
        for at, segment in enumerate(self.segments):
            here = (rows >= self.offsets[at]) & (rows < self.offsets[at + 1])
            if segment.vectors is not None and here.any():
                vectors[here] = segment.vectors[rows[here] - self.offsets[at]]
        return vectors

    def float_vectors(self, rows: Rows) -> Floats:
        """Return the vectors of rows as float32; see `vectors`."""
        return decoded_vectors(self.vectors(rows), self.manifest.ranges)

    def hits(self, rows: Rows, scores: Floats | None = None) -> list[Hit]:
        """Say what rows are, in their order.

        `scores`: `(rows,)`; zeros where the ranking is not of interest.
        """
        if scores is None:
            scores = np.zeros(len(rows), np.float32)
        hits = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            at = int(np.searchsorted(self.offsets, row, side="right")) - 1
            segment, local = self.segments[at], row - int(self.offsets[at])
            name, metadata = segment.document(local)
            _, start, end = segment.spans[local].tolist()
            text = segment.text(local)
            hits.append(
                Hit(id=name, score=score, text=text, metadata=metadata, start=start, end=end)
            )
        return hits


def open_snapshot(path: Path, *, full: bool = True, previous: Snapshot | None = None) -> Snapshot:
    """Open the current generation of an index.

    `full`: whether to hash every file, not only to compare sizes. `previous`: an older generation,
    whose segments stay open where their files are the same by their hashes.
    """
    open_segments = {} if previous is None else {each.content: each for each in previous.segments}
    for _ in range(_ATTEMPTS):
        manifest = load_manifest(path)
        try:
            segments = tuple(
                open_segments.get(manifest.content_of(entry))
                or Segment(path, manifest, entry, full=full)
                for entry in manifest.segments
            )
            return Snapshot(path, manifest, segments)
        except FileNotFoundError as error:
            # A writer that was faster has removed the file; otherwise it is lost.
            if load_manifest(path).files == manifest.files:
                raise damaged(Path(error.filename), "it is missing") from None
    raise BadInput(f"{path} is written faster than it can be opened; try again")
