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
from taskdistill.search.filters import Filter, parse_filter
from taskdistill.search.metadata import keys_of
from taskdistill.search.settings import RESCORE_TYPES
from taskdistill.search.storage.manifest import Manifest, load_manifest
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.segment_writer import Rows, key_of

_ATTEMPTS = 100


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        id: Its document.
        score: What the ranking is by; higher is better.
        text: The passage.
        metadata: The document's.
        start: Where the passage begins in the document's text, in characters.
        end: Where it ends.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]
    start: int
    end: int


@dataclass(frozen=True)
class Snapshot:
    """The segments of a generation. Rows are numbered through all of them, in order."""

    path: Path
    manifest: Manifest
    segments: tuple[Segment, ...]

    @cached_property
    def offsets(self) -> Rows:
        """(segments + 1,) number of the first row of each segment, and of all rows."""
        return np.cumsum([0, *(segment.entry.rows for segment in self.segments)])

    @cached_property
    def live_count(self) -> int:
        """Rows that can be found."""
        return sum(segment.live_count for segment in self.segments)

    def rows(self, allowed: Sequence[Rows | None] | None = None) -> Rows:
        """Return the rows that can be found.

        Args:
            allowed: From `allowed`; None for all that are live.

        Returns:
            Row numbers of the snapshot, ascending.
        """
        parts = [np.zeros(0, np.int64)]
        for offset, segment, rows in zip(
            self.offsets, self.segments, allowed or [None] * len(self.segments), strict=False
        ):
            local = segment.live_rows if rows is None else rows
            parts.append(offset + (np.arange(segment.entry.rows) if local is None else local))
        return np.concatenate(parts)

    def allowed(self, given: Filter | None) -> list[Rows | None]:
        """Evaluate a filter.

        Args:
            given: The filter, or None.

        Returns:
            For each segment the rows, numbered within it, among which is searched; None for all that are live.

        Raises:
            BadInput: If the filter is not understood or no document has its key.
        """
        conditions = parse_filter(given)
        if not conditions:
            return [None] * len(self.segments)
        for condition in conditions:
            if condition.key not in self.metadata_keys:
                known = (
                    did_you_mean(condition.key[:60], sorted(self.metadata_keys))
                    if self.metadata_keys
                    else "; no document has metadata"
                )
                raise BadInput(f"no document has the metadata {condition.key[:60]!r}{known}")
        return [segment.matching_rows(conditions) for segment in self.segments]

    @cached_property
    def metadata_keys(self) -> set[str]:
        """Keys by which can be filtered."""
        return set().union(*(keys_of(segment.entries) for segment in self.segments))

    def find(self, ids: Iterable[str]) -> dict[str, tuple[int, int, int]]:
        """Look up documents.

        Args:
            ids: Document ids.

        Returns:
            Id to position of the segment, number of the document in it and hash of its content; unknown ids are left out.
        """
        names = list(ids)
        hashes = np.array([key_of(name) for name in names], np.uint64)
        return {
            name: (at, *place)
            for at, segment in enumerate(self.segments)
            for name, place in segment.find(names, hashes).items()
        }

    def vectors(self, rows: Rows) -> NDArray[Any]:
        """Return the stored vectors of rows.

        Args:
            rows: Row numbers of the snapshot.

        Returns:
            (rows, dim) in the precision they are kept in.

        Raises:
            BadInput: If the index keeps none.
        """
        settings = self.manifest.settings
        if settings.rescore == "none":
            raise BadInput(
                "this index keeps binary codes only (rescore none); build it with rescore int8 to use its vectors"
            )
        only = self.segments[0].vectors if len(self.segments) == 1 else None
        if only is not None:
            return only.take(rows, axis=0)
        found = np.empty((len(rows), settings.dim), RESCORE_TYPES[settings.rescore])
        for at, segment in enumerate(self.segments):
            here = (rows >= self.offsets[at]) & (rows < self.offsets[at + 1])
            if segment.vectors is not None and here.any():
                found[here] = segment.vectors[rows[here] - self.offsets[at]]
        return found

    def hits(self, rows: Rows, scores: NDArray[np.float32]) -> list[Hit]:
        """Say what rows are.

        Args:
            rows: (k,) row numbers of the snapshot.
            scores: (k,) their scores.

        Returns:
            A hit a row, in the same order.
        """
        found = []
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            at = int(np.searchsorted(self.offsets, row, side="right")) - 1
            segment, local = self.segments[at], row - int(self.offsets[at])
            name, metadata = segment.document(local)
            _, start, end = segment.places[local].tolist()
            found.append(Hit(name, score, segment.text(local), metadata, start, end))
        return found


def open_snapshot(path: Path, *, full: bool = True, previous: Snapshot | None = None) -> Snapshot:
    """Open the current generation of an index.

    Args:
        path: The index.
        full: Whether to hash every file, not only to compare sizes.
        previous: An older generation, whose segments are kept open where their files are the same by their hashes.

    Returns:
        The snapshot.

    Raises:
        BadInput: If the index or a file of it is missing, damaged or of another kind.
    """
    known: Sequence[Segment] = () if previous is None else previous.segments
    for _ in range(_ATTEMPTS):
        manifest = load_manifest(path)
        try:
            kept = {segment.content: segment for segment in known}
            segments = tuple(
                kept.get(manifest.content_of(entry)) or Segment(path, manifest, entry, full=full)
                for entry in manifest.segments
            )
            return Snapshot(path, manifest, segments)
        except FileNotFoundError as error:
            if load_manifest(path).files == manifest.files:
                raise damaged(Path(error.filename), "it is missing") from None
    raise BadInput(f"{path} is written faster than it can be opened; try again")
