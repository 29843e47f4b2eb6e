"""The writing side: new parts, synced, then a manifest that makes them the next generation.

Before a change creates its first file it notes in the journal what it will create and what there is
now. So
the next writer knows what a killed one left, and nothing is ever removed but names that are noted
there: what else lies in the folder is somebody's own. Every function but `writing` is for whoever
holds the lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.io.arrays import entry, write_array
from taskdistill.io.atomic import remove_stale, sync, write_file
from taskdistill.io.json import JsonError, open_regular, read_object
from taskdistill.io.lock import writer_lock
from taskdistill.io.sealed import dump_json
from taskdistill.quantization import Int8Ranges
from taskdistill.search.candidates import Rows
from taskdistill.search.corpus import Document
from taskdistill.search.prf import Floats
from taskdistill.search.storage.folder import JOURNAL, LOCK, check_parts, disk_errors
from taskdistill.search.storage.manifest import (
    FileEntry,
    Manifest,
    SegmentEntry,
    load_manifest,
    part_of,
    write_manifest,
)
from taskdistill.search.storage.segment_writer import SEGMENT_FILES, make_block, write_segment
from taskdistill.search.storage.snapshot import Snapshot
from taskdistill.types import MANIFEST

BM25_FILES = frozenset(
    {
        "data.csc.index.npy",
        "indices.csc.index.npy",
        "indptr.csc.index.npy",
        "nonoccurrence_array.index.npy",
        "vocab.index.json",
        "params.index.json",
    }
)
"""What bm25s writes."""

FANOUT = 16
"""Segments of about one size that are merged before the next write: a log-structured merge."""

MAX_ROWS = 1 << 22
"""Largest segment that a merge writes."""

RANGE_ROWS = 1000
"""Vectors from which int8 ranges of single dimensions are trusted."""

_PART = re.compile(r"(segments|bm25)/\d{8}|deletes/\d{8}-\d{8}\.npy")
_LISTED = re.compile(r"(segments|bm25)/\d{8}/[a-z0-9_.]+|deletes/\d{8}-\d{8}\.npy")

Writers = Mapping[str, Callable[[Path], None]]
"""A new part of an index to what fills its empty folder, or writes its list of deletes."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the writer's lock on an index; what a killed writer left half-written is removed first.

    Raises BadInput if a part of the folder is a link or of another kind than an index has. Raises
    WorkFailed if another process writes, or the folder cannot be written.
    """
    with ExitStack() as stack:
        with disk_errors(path):
            check_parts(path)
            # A journal that is not ours is refused before the lock leaves a trace in the folder.
            _read_journal(path)
            stack.enter_context(writer_lock(path / LOCK))
            recover(path)
        yield


def commit(snapshot: Snapshot, writers: Writers, **changes: Any) -> None:
    """Write new parts and acknowledge them as the next generation, or leave nothing of them.

    `writers`: parts under names that are free: see `free_number`. `**changes`: fields of the
    manifest.
    """
    path, manifest = snapshot.path, snapshot.manifest
    journal = {
        "generation": manifest.generation,
        "creates": list(writers),
        "before": {name: each["bytes"] for name, each in manifest.files.items()},
    }
    with disk_errors(path):
        write_file(path / JOURNAL, dump_json({**journal, "sha256": _hash(journal)}))
        try:
            files = dict(manifest.files)
            for part, write in writers.items():
                files |= _write_part(path, part, write)
            write_manifest(path, manifest.next(files=files, **changes))
        except BaseException:
            with contextlib.suppress(OSError, BadInput):
                recover(path)
            raise
        recover(path)


def _write_part(path: Path, part: str, write: Callable[[Path], None]) -> dict[str, FileEntry]:
    """Write and sync a part; give path inside the index, size and hash of its files."""
    target = path / part
    target.parent.mkdir(exist_ok=True)
    if target.suffix:
        write(target)
        files, folders = [target], [target.parent, path]
    else:
        target.mkdir()
        write(target)
        files, folders = sorted(target.iterdir()), [target, target.parent, path]
    # Files before the folders that name them: a power cut leaves no name without its content.
    for place in (*files, *folders):
        sync(place)
    return {file.relative_to(path).as_posix(): cast(FileEntry, entry(file)) for file in files}


def recover(path: Path) -> None:
    """Finish the change that the journal names.

    What it created is removed if it was not committed, else what it made needless.
    """
    remove_stale(path / MANIFEST, path / JOURNAL)
    journal = _read_journal(path)
    if journal is None:
        return
    # The manifest decides: its generation says whether the change was acknowledged.
    manifest = load_manifest(path)
    parts = {part_of(name) for name in manifest.files}
    if manifest.generation == journal["generation"]:
        for part in journal["creates"]:
            if part not in parts:
                _remove_part(path, part)
    elif manifest.generation == journal["generation"] + 1:
        # Only files of the size that was noted: another one under the name is somebody's.
        for name, size in journal["before"].items():
            if name not in manifest.files:
                _remove_file(path, name, size)
        for part in {part_of(name) for name in journal["before"]} - parts:
            _remove_empty(path, part)
    # Last, so that a kill on the way here is finished by the next writer.
    (path / JOURNAL).unlink()


def _remove_part(path: Path, part: str) -> None:
    if part.startswith("deletes/"):
        _remove_file(path, part, None)
        return
    for name in SEGMENT_FILES if part.startswith("segments/") else BM25_FILES:
        _remove_file(path, f"{part}/{name}", None)
    _remove_empty(path, part)


def _remove_file(path: Path, name: str, size: int | None) -> None:
    """Remove a plain file of a certain size, in a folder that is reached through no link."""
    parent, _, base = name.rpartition("/")
    with contextlib.suppress(FileNotFoundError), _open_folder(path, parent) as folder:
        status = os.lstat(base, dir_fd=folder)
        if stat.S_ISREG(status.st_mode) and size in (None, status.st_size):
            os.unlink(base, dir_fd=folder)


def _remove_empty(path: Path, part: str) -> None:
    """Remove a folder of a part if nothing of anybody's is left in it."""
    parent, _, base = part.rpartition("/")
    with contextlib.suppress(OSError), _open_folder(path, parent) as folder:
        os.rmdir(base, dir_fd=folder)


@contextmanager
def _open_folder(path: Path, inner: str) -> Iterator[int]:
    """Open a folder of the index step by step, following no link."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in inner.split("/"):
            try:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            except NotADirectoryError as error:
                raise FileNotFoundError(error.errno, error.strerror, str(path / inner)) from None
            os.close(handle)
            handle = below
        yield handle
    finally:
        os.close(handle)


def _read_journal(path: Path) -> dict[str, Any] | None:
    file = path / JOURNAL
    try:
        with open_regular(file) as stream:
            text = stream.read()
    except FileNotFoundError:
        return None
    try:
        value = read_object(text.decode("utf-8"))
    except (UnicodeDecodeError, JsonError):
        value = {}
    if not _is_journal(value):
        raise BadInput(
            f"{file} is no journal of this index; it is left as it is: move it away and run this "
            "command again"
        )
    return value


def _is_journal(value: Mapping[str, Any]) -> bool:
    if value.keys() != {"generation", "creates", "before", "sha256"}:
        return False
    creates, before = value["creates"], value["before"]
    body = {name: value[name] for name in ("generation", "creates", "before")}
    return (
        value["sha256"] == _hash(body)
        and isinstance(value["generation"], int)
        and isinstance(creates, list)
        and isinstance(before, dict)
        and all(isinstance(name, str) and _PART.fullmatch(name) for name in creates)
        and all(_LISTED.fullmatch(name) and isinstance(size, int) for name, size in before.items())
    )


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(dump_json(body).encode("utf-8", "surrogatepass")).hexdigest()


def free_number(path: Path, kind: str, first: int) -> int:
    """Return the first number from `first` on under which nothing lies, not even what is not ours.

    `kind`: `segments` or `bm25`.
    """
    while os.path.lexists(path / kind / f"{first:08}"):
        first += 1
    return first


def new_segment(path: Path, first: int, *, documents: int, rows: int) -> SegmentEntry:
    """Name a segment that is not written yet; `first` is the smallest number that it may have."""
    number = free_number(path, "segments", first)
    return SegmentEntry(number=number, documents=documents, rows=rows, deleted=0, deletes=None)


def append(snapshot: Snapshot, documents: Sequence[Document], spans: Rows, vectors: Floats) -> int:
    """Add documents as a new segment, replacing those with the same ids in the same commit.

    `documents`: documents with distinct ids. `spans`: `(rows, 3)` document, start, end of each
    passage. `vectors`: `(rows, dim)` unit rows. Returns how many documents were replaced.
    """
    manifest = snapshot.manifest
    settings, ranges = manifest.settings, manifest.ranges
    if settings.rescore == "int8" and ranges is None:
        ranges = _fit_ranges(vectors)
    # Everything is computed before the journal is written: a fault here leaves no trace.
    block = make_block(settings, ranges, documents, spans=spans, vectors=vectors)
    old = snapshot.find(document.id for document in documents)
    new = new_segment(
        snapshot.path, manifest.next_segment, documents=len(documents), rows=len(spans)
    )
    write = partial(
        write_segment, settings=settings, blocks=[block], rows=new.rows, documents=new.documents
    )
    segments, deletes = _without(snapshot, old.values())
    commit(
        snapshot,
        {new.folder: write, **deletes},
        segments=(*segments, new),
        next_segment=new.number + 1,
        ranges=ranges,
    )
    return len(old)


def delete(snapshot: Snapshot, ids: Iterable[str]) -> int:
    """Delete documents, leaving unknown ids out; say how many there were."""
    places = snapshot.find(dict.fromkeys(ids))
    if places:
        segments, deletes = _without(snapshot, places.values())
        commit(snapshot, deletes, segments=segments)
    return len(places)


def _without(
    snapshot: Snapshot, places: Iterable[tuple[int, int, int]]
) -> tuple[tuple[SegmentEntry, ...], Writers]:
    """Give the segments of a generation without some documents, and the lists that say so."""
    numbers: dict[int, list[int]] = {}
    for at, document, _ in places:
        numbers.setdefault(at, []).append(document)
    segments = list(snapshot.manifest.segments)
    writers: dict[str, Callable[[Path], None]] = {}
    for at, documents in numbers.items():
        deleted = np.union1d(snapshot.segments[at].deleted, np.array(documents, np.int64))
        # The list may need a later number than its generation's, where somebody's file has that.
        for generation in itertools.count(snapshot.manifest.generation + 1):
            segments[at] = SegmentEntry(
                **{**vars(segments[at]), "deleted": len(deleted), "deletes": generation}
            )
            name = str(segments[at].deletes_file)
            if not os.path.lexists(snapshot.path / name):
                break
        writers[name] = partial(write_array, array=deleted)
    return tuple(segments), writers


def merge(snapshot: Snapshot, positions: Sequence[int]) -> None:
    """Write the segments at some positions, ascending, as one, without what is deleted."""
    manifest = snapshot.manifest
    sources = [snapshot.segments[at] for at in positions]
    segments = [entry for at, entry in enumerate(manifest.segments) if at not in set(positions)]
    rows = sum(source.live_count for source in sources)
    if not rows:
        commit(snapshot, {}, segments=tuple(segments))
        return
    documents = sum(source.entry.live_documents for source in sources)
    merged = new_segment(snapshot.path, manifest.next_segment, documents=documents, rows=rows)
    segments.insert(positions[0], merged)

    def write(folder: Path) -> None:
        blocks = itertools.chain.from_iterable(source.blocks() for source in sources)
        write_segment(folder, manifest.settings, blocks, rows=rows, documents=documents)

    commit(
        snapshot,
        {merged.folder: write},
        segments=tuple(segments),
        next_segment=merged.number + 1,
    )


def due_merge(manifest: Manifest) -> list[int]:
    """Find segments to merge, so that many small writes do not leave many small segments.

    Returns positions of the first `FANOUT` segments of one size class (a power of `FANOUT` rows),
    or none.
    """
    # Merging equals with equals writes each passage about log(rows) times in all.
    tiers: dict[int, list[int]] = {}
    for at, each in enumerate(manifest.segments):
        tiers.setdefault(int(math.log(each.rows, FANOUT)), []).append(at)
    for _, positions in sorted(tiers.items()):
        first = positions[:FANOUT]
        if len(first) == FANOUT and sum(manifest.segments[at].rows for at in first) <= MAX_ROWS:
            return first
    return []


def due_compaction(snapshot: Snapshot) -> list[int]:
    """Find the next segments that compacting merges.

    They are neighbours that fit in one segment, or one with deleted documents. Returns positions,
    or none if the index is compact.
    """
    group: list[int] = []
    for at, segment in enumerate(snapshot.segments):
        rows = sum(snapshot.segments[each].live_count for each in group)
        if group and rows + segment.live_count > MAX_ROWS:
            if len(group) > 1 or snapshot.segments[group[0]].entry.deleted:
                return group
            group = []
        group.append(at)
    mergeable = len(group) > 1 or any(snapshot.segments[each].entry.deleted for each in group)
    return group if mergeable else []


def _fit_ranges(vectors: Floats) -> Int8Ranges:
    """Fit ranges on the first vectors; from few, one range for all dimensions, with some room."""
    if len(vectors) >= RANGE_ROWS:
        return Int8Ranges.fit(vectors)
    bound = np.full(vectors.shape[1], min(1.0, 1.25 * float(np.abs(vectors).max())), np.float32)
    return Int8Ranges(-bound, bound)
