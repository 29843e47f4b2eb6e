"""The four changes of an index: append, delete, merge and build flag. Each ends in one commit; the caller holds the lock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill.quantization import Int8Ranges
from taskdistill.search.corpus import Document
from taskdistill.search.resize import check_defaults
from taskdistill.search.settings import SearchDefaults
from taskdistill.search.storage.journal import (
    change,
    commit,
    free_number,
    with_deletes,
    write_deletes,
    write_part,
)
from taskdistill.search.storage.manifest import Manifest, SegmentEntry
from taskdistill.search.storage.segment_writer import Rows, make_block, write_segment
from taskdistill.search.storage.snapshot import Snapshot
from taskdistill.search.target import disk

FANOUT = 16
"""Segments of about one size that are merged into one before the next write: a log-structured merge."""

MAX_ROWS = 1 << 22
"""Largest segment that a merge makes."""

_SAMPLE = 1000
"""Vectors from which int8 ranges of single dimensions are trusted."""


def append(
    snapshot: Snapshot, documents: Sequence[Document], places: Rows, vectors: NDArray[np.float32]
) -> int:
    """Add documents as a new segment; those with a known id replace the older ones in the same commit.

    Args:
        snapshot: The current generation.
        documents: Documents with distinct ids.
        places: (rows, 3) document, start, end of each passage.
        vectors: (rows, dim) unit vectors.

    Returns:
        How many documents were replaced.
    """
    path, manifest = snapshot.path, snapshot.manifest
    ranges = manifest.ranges
    if manifest.settings.rescore == "int8" and ranges is None:
        ranges = _ranges(vectors)
    block = make_block(manifest.settings, ranges, documents, places, vectors)
    old = snapshot.find(each.id for each in documents)
    with disk(path):
        new = SegmentEntry(
            free_number(path, "segments", manifest.next_segment), len(documents), len(places)
        )
        gone = _Deletes(snapshot, old.values())
        with change(path, manifest, [new.folder, *gone.files]):
            files = write_part(
                path,
                new.folder,
                lambda folder: write_segment(
                    folder, manifest.settings, [block], len(places), len(documents)
                ),
            )
            files |= gone.write()
            segments = (*gone.segments, new)
            commit(
                path,
                manifest.next(
                    segments=segments,
                    next_segment=new.number + 1,
                    ranges=ranges,
                    files={**manifest.files, **files},
                ),
            )
    return len(old)


def delete(snapshot: Snapshot, ids: Iterable[str]) -> int:
    """Delete documents.

    Args:
        snapshot: The current generation.
        ids: Their ids; unknown ones are left out.

    Returns:
        How many there were.
    """
    found = snapshot.find(dict.fromkeys(ids))
    if found:
        path, manifest = snapshot.path, snapshot.manifest
        with disk(path):
            gone = _Deletes(snapshot, found.values())
            with change(path, manifest, gone.files):
                files = {**manifest.files, **gone.write()}
                commit(path, manifest.next(segments=tuple(gone.segments), files=files))
    return len(found)


def mark_building(snapshot: Snapshot, building: bool) -> None:
    """Note that a build begins or has ended.

    Args:
        snapshot: The current generation.
        building: Whether it is under way.
    """
    with disk(snapshot.path):
        commit(snapshot.path, snapshot.manifest.next(building=building))


def set_defaults(snapshot: Snapshot, defaults: SearchDefaults) -> None:
    """Note how the index is searched where a search does not say.

    Args:
        snapshot: The current generation.
        defaults: The new defaults.

    Raises:
        BadInput: If the index cannot follow them.
    """
    check_defaults(snapshot.manifest.settings.rescore, defaults)
    if defaults != snapshot.manifest.search:
        with disk(snapshot.path):
            commit(snapshot.path, snapshot.manifest.next(search=defaults))


def merge(snapshot: Snapshot, positions: Sequence[int]) -> None:
    """Write some segments as one, without what is deleted.

    Args:
        snapshot: The current generation.
        positions: Of the segments, ascending.
    """
    path, manifest = snapshot.path, snapshot.manifest
    sources = [snapshot.segments[at] for at in positions]
    rows, documents = (
        sum(each.live_count for each in sources),
        sum(each.entry.documents - each.entry.deleted for each in sources),
    )
    kept: list[SegmentEntry] = [
        entry for at, entry in enumerate(manifest.segments) if at not in set(positions)
    ]
    with disk(path):
        if not rows:
            with change(path, manifest, []):
                commit(path, manifest.next(segments=tuple(kept)))
            return
        merged = SegmentEntry(free_number(path, "segments", manifest.next_segment), documents, rows)
        kept.insert(positions[0], merged)

        def write(folder: Path) -> None:
            blocks = itertools.chain.from_iterable(each.blocks() for each in sources)
            write_segment(folder, manifest.settings, blocks, rows, documents)

        with change(path, manifest, [merged.folder]):
            files = {**manifest.files, **write_part(path, merged.folder, write)}
            commit(
                path,
                manifest.next(segments=tuple(kept), next_segment=merged.number + 1, files=files),
            )


def due(manifest: Manifest) -> list[int]:
    """Find segments to merge, so that many small writes do not leave many small segments.

    Args:
        manifest: The current generation.

    Returns:
        Positions of the first `FANOUT` segments of one size class (a power of `FANOUT` rows), or none.
    """
    tiers: dict[int, list[int]] = {}
    for at, entry in enumerate(manifest.segments):
        tiers.setdefault(int(math.log(entry.rows, FANOUT)), []).append(at)
    for _, positions in sorted(tiers.items()):
        if (
            len(positions) >= FANOUT
            and sum(manifest.segments[at].rows for at in positions[:FANOUT]) <= MAX_ROWS
        ):
            return positions[:FANOUT]
    return []


def compaction(snapshot: Snapshot) -> list[int]:
    """Find the next segments that compacting merges: neighbours that fit in one segment, or one with deleted documents.

    Args:
        snapshot: The current generation.

    Returns:
        Positions, or none if the index is compact.
    """
    group: list[int] = []
    for at, segment in enumerate(snapshot.segments):
        if (
            group
            and sum(snapshot.segments[each].live_count for each in group) + segment.live_count
            > MAX_ROWS
        ):
            if len(group) > 1 or snapshot.segments[group[0]].entry.deleted:
                return group
            group = []
        group.append(at)
    return (
        group
        if len(group) > 1 or any(snapshot.segments[each].entry.deleted for each in group)
        else []
    )


class _Deletes:
    """The segments of a generation after documents were deleted, and the lists that say so."""

    def __init__(self, snapshot: Snapshot, found: Iterable[tuple[int, int, int]]) -> None:
        numbers: dict[int, list[int]] = {}
        for at, document, _ in found:
            numbers.setdefault(at, []).append(document)
        self._path = snapshot.path
        self._lists = {
            at: np.union1d(snapshot.segments[at].deleted, np.array(documents, np.int64))
            for at, documents in numbers.items()
        }
        self.segments = list(snapshot.manifest.segments)
        for at, documents in self._lists.items():
            self.segments[at] = with_deletes(
                self._path, self.segments[at], len(documents), snapshot.manifest.generation + 1
            )

    @property
    def files(self) -> list[str]:
        """Names of the lists."""
        return [str(self.segments[at].deletes_file) for at in self._lists]

    def write(self) -> dict[str, dict[str, object]]:
        """Write the lists; returns each name with its size and hash."""
        files: dict[str, dict[str, object]] = {}
        for at, documents in self._lists.items():
            files |= write_deletes(self._path, self.segments[at], documents)
        return files


def _ranges(vectors: NDArray[np.float32]) -> Int8Ranges:
    """Fit ranges on the first vectors; from few, one range for all dimensions, with room for the vectors to come."""
    if len(vectors) >= _SAMPLE:
        return Int8Ranges.fit(vectors)
    bound = np.full(vectors.shape[1], min(1.0, 1.25 * float(np.abs(vectors).max())), np.float32)
    return Int8Ranges(-bound, bound)
