"""The four changes of an index: append, delete, merge and build flag. Each ends in one commit; the caller holds the lock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from taskdistill.compress import Int8Ranges
from taskdistill.search.blocks import Rows, make_block, write_segment
from taskdistill.search.corpus import Document
from taskdistill.search.journal import commit, disk, write_deletes, write_part
from taskdistill.search.manifest import Manifest, SegmentEntry
from taskdistill.search.settings import SearchDefaults
from taskdistill.search.shrink import check_defaults
from taskdistill.search.snapshot import Snapshot

FANOUT = 16
"""Segments of about one size that are merged into one before the next write: a log-structured merge."""

MAX_ROWS = 1 << 22
"""Largest segment that a merge makes."""

_SAMPLE = 1000
"""Vectors from which int8 ranges of single dimensions are trusted."""


def append(snapshot: Snapshot, documents: Sequence[Document], places: Rows, vectors: NDArray[np.float32]) -> int:
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
    new = SegmentEntry(manifest.next_segment, len(documents), len(places))
    old = snapshot.find(each.id for each in documents)
    with disk(path):
        files = write_part(path, new.folder, lambda folder: write_segment(folder, manifest.settings, [block], len(places), len(documents)))
        segments, deletes = _without(snapshot, old.values())
        commit(
            path,
            manifest.next(
                segments=(*segments, new), next_segment=new.number + 1, ranges=ranges, files={**manifest.files, **files, **deletes}
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
        with disk(snapshot.path):
            segments, deletes = _without(snapshot, found.values())
            commit(snapshot.path, snapshot.manifest.next(segments=segments, files={**snapshot.manifest.files, **deletes}))
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
    rows, documents = sum(each.live_count for each in sources), sum(each.entry.documents - each.entry.deleted for each in sources)
    kept: list[SegmentEntry] = [entry for at, entry in enumerate(manifest.segments) if at not in set(positions)]
    with disk(path):
        files = dict(manifest.files)
        number = manifest.next_segment
        if rows:
            merged = SegmentEntry(number, documents, rows)
            kept.insert(positions[0], merged)
            number += 1
            files |= write_part(
                path,
                merged.folder,
                lambda folder: write_segment(
                    folder, manifest.settings, itertools.chain.from_iterable(each.blocks() for each in sources), rows, documents
                ),
            )
        commit(path, manifest.next(segments=tuple(kept), next_segment=number, files=files))


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
        if len(positions) >= FANOUT and sum(manifest.segments[at].rows for at in positions[:FANOUT]) <= MAX_ROWS:
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
        if group and sum(snapshot.segments[each].live_count for each in group) + segment.live_count > MAX_ROWS:
            if len(group) > 1 or snapshot.segments[group[0]].entry.deleted:
                return group
            group = []
        group.append(at)
    return group if len(group) > 1 or any(snapshot.segments[each].entry.deleted for each in group) else []


def _without(snapshot: Snapshot, found: Iterable[tuple[int, int, int]]) -> tuple[tuple[SegmentEntry, ...], dict[str, dict[str, object]]]:
    """Return the segments after deleting documents, and the files that say so."""
    segments = list(snapshot.manifest.segments)
    numbers: dict[int, list[int]] = {}
    for at, document, _ in found:
        numbers.setdefault(at, []).append(document)
    files: dict[str, dict[str, object]] = {}
    for at, documents in numbers.items():
        every = np.union1d(snapshot.segments[at].deleted, np.array(documents, np.int64))
        segments[at], new = write_deletes(snapshot.path, snapshot.manifest.generation + 1, segments[at], every)
        files |= new
    return tuple(segments), files


def _ranges(vectors: NDArray[np.float32]) -> Int8Ranges:
    """Fit ranges on the first vectors; from few, one range for all dimensions, with room for the vectors to come."""
    if len(vectors) >= _SAMPLE:
        return Int8Ranges.fit(vectors)
    bound = np.full(vectors.shape[1], min(1.0, 1.25 * float(np.abs(vectors).max())), np.float32)
    return Int8Ranges(-bound, bound)
