"""The writing side: new files, synced, then a manifest that makes them the next generation.

Before a change makes its first file it notes in the journal what it will make and what there is now. So the next writer knows what a
killed one left, and nothing is ever removed but names that are noted there: what else lies in the folder is somebody's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.errors import BadInput
from taskdistill.io.arrays import entry, write_array
from taskdistill.io.atomic import remove_stale, sync, write_file
from taskdistill.io.json import JsonError, open_regular, read_object
from taskdistill.io.lock import writer_lock
from taskdistill.io.sealed import dump_json
from taskdistill.search.storage.manifest import (
    Manifest,
    SegmentEntry,
    load_manifest,
    write_manifest,
)
from taskdistill.search.storage.segment_writer import SEGMENT_FILES, Rows
from taskdistill.search.target import JOURNAL, LOCK, check_own, disk
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

_MADE = re.compile(r"(segments|bm25)/\d{8}|deletes/\d{8}-\d{8}\.npy")
_LISTED = re.compile(r"(segments|bm25)/\d{8}/[a-z0-9_.]+|deletes/\d{8}-\d{8}\.npy")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the writer's lock on an index; what a killed writer left half-written is removed first.

    Args:
        path: The index.

    Yields:
        None.

    Raises:
        BadInput: If a part of the folder is a link or of another kind than an index has.
        WorkFailed: If another process writes, or the folder cannot be written.
    """
    with ExitStack() as stack:
        with disk(path):
            check_own(path)
            _read_journal(path)
            stack.enter_context(writer_lock(path / LOCK))
            recover(path)
        yield


@contextmanager
def change(path: Path, manifest: Manifest, creates: Sequence[str]) -> Iterator[None]:
    """Make new parts of an index and commit them, or leave nothing of them; the caller holds the lock.

    Args:
        path: The index.
        manifest: Its current generation.
        creates: Every part that will be made, from `free_folder` and `free_deletes`.

    Yields:
        None: make the parts, then `commit` the next generation.
    """
    body = {
        "generation": manifest.generation,
        "creates": list(creates),
        "before": {name: each["bytes"] for name, each in manifest.files.items()},
    }
    write_file(path / JOURNAL, dump_json({**body, "sha256": _hash(body)}))
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, BadInput):
            recover(path)
        raise
    recover(path)


def recover(path: Path) -> None:
    """Finish the change that the journal names: remove what it made if it was not committed, else what it made needless.

    Args:
        path: The index; the caller holds the lock.
    """
    remove_stale(path / MANIFEST, path / JOURNAL)
    noted = _read_journal(path)
    if noted is None:
        return
    manifest = load_manifest(path)
    parts = {_part(name) for name in manifest.files}
    if manifest.generation == noted["generation"]:
        for part in noted["creates"]:
            if part not in parts:
                _remove_part(path, part)
    elif manifest.generation == noted["generation"] + 1:
        for name, size in noted["before"].items():
            if name not in manifest.files:
                _remove_file(path, name, size)
        for part in {_part(name) for name in noted["before"]} - parts:
            _remove_empty(path, part)
    (path / JOURNAL).unlink()


def _part(name: str) -> str:
    return name if name.startswith("deletes/") else name.rpartition("/")[0]


def _remove_part(path: Path, part: str) -> None:
    if part.startswith("deletes/"):
        _remove_file(path, part, None)
        return
    for name in SEGMENT_FILES if part.startswith("segments/") else BM25_FILES:
        _remove_file(path, f"{part}/{name}", None)
    _remove_empty(path, part)


def _remove_file(path: Path, name: str, size: int | None) -> None:
    """Remove a plain file of a known size, in a folder that is reached through no link."""
    with contextlib.suppress(FileNotFoundError), _folder(path, name.rpartition("/")[0]) as folder:
        base = name.rpartition("/")[2]
        status = os.lstat(base, dir_fd=folder)
        if stat.S_ISREG(status.st_mode) and size in (None, status.st_size):
            os.unlink(base, dir_fd=folder)


def _remove_empty(path: Path, part: str) -> None:
    """Remove a folder of a part if nothing of anybody's is left in it."""
    parent, _, base = part.rpartition("/")
    with contextlib.suppress(OSError), _folder(path, parent) as folder:
        os.rmdir(base, dir_fd=folder)


@contextmanager
def _folder(path: Path, inner: str) -> Iterator[int]:
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
            f"{file} is no journal of this index; it is left as it is: move it away and run this command again"
        )
    return value


def _is_journal(value: Mapping[str, Any]) -> bool:
    if value.keys() != {"generation", "creates", "before", "sha256"}:
        return False
    creates, before = value["creates"], value["before"]
    return (
        value["sha256"]
        == _hash({name: value[name] for name in ("generation", "creates", "before")})
        and isinstance(value["generation"], int)
        and isinstance(creates, list)
        and isinstance(before, dict)
        and all(isinstance(name, str) and _MADE.fullmatch(name) for name in creates)
        and all(_LISTED.fullmatch(name) and isinstance(size, int) for name, size in before.items())
    )


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(dump_json(body).encode("utf-8", "surrogatepass")).hexdigest()


def free_number(path: Path, part: str, first: int) -> int:
    """Find a number under which nothing lies in a part of the index, not even what is not ours.

    Args:
        path: The index.
        part: `segments` or `bm25`.
        first: The smallest number that may be taken.

    Returns:
        The number.
    """
    while os.path.lexists(path / part / f"{first:08}"):
        first += 1
    return first


def with_deletes(path: Path, segment: SegmentEntry, count: int, generation: int) -> SegmentEntry:
    """Return a segment's entry with a new list of deleted documents, under a name that nothing has.

    Args:
        path: The index.
        segment: The segment.
        count: All its deleted documents.
        generation: The generation that will list it.

    Returns:
        The entry; its file is not written yet.
    """
    while True:
        new = SegmentEntry(segment.number, segment.documents, segment.rows, count, generation)
        assert new.deletes_file is not None
        if not os.path.lexists(path / new.deletes_file):
            return new
        generation += 1


def write_part(
    path: Path, folder: str, write: Callable[[Path], None]
) -> dict[str, dict[str, object]]:
    """Make a folder of files that the journal names.

    Args:
        path: The index.
        folder: Where it shall be, inside the index; nothing is there yet.
        write: Fills a folder.

    Returns:
        Path inside the index of each new file to its size and hash.
    """
    target = path / folder
    target.parent.mkdir(exist_ok=True)
    target.mkdir()
    write(target)
    files = sorted(target.iterdir())
    for file in files:
        sync(file)
    for place in (target, target.parent, path):
        sync(place)
    return {f"{folder}/{file.name}": entry(file) for file in files}


def write_deletes(
    path: Path, segment: SegmentEntry, documents: Rows
) -> dict[str, dict[str, object]]:
    """Write the list of all deleted documents of a segment.

    Args:
        path: The index.
        segment: From `with_deletes`.
        documents: Numbers of all its deleted documents, ascending.

    Returns:
        The new file with its size and hash.
    """
    name = segment.deletes_file
    assert name is not None
    (path / "deletes").mkdir(exist_ok=True)
    write_array(path / name, documents.astype(np.int64))
    for place in (path / name, path / "deletes", path):
        sync(place)
    return {name: entry(path / name)}


def commit(path: Path, manifest: Manifest) -> None:
    """Acknowledge a generation.

    Args:
        path: The index.
        manifest: The generation; its files are on the disk.
    """
    write_manifest(path, manifest)
