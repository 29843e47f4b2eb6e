"""The writing side: new files beside, synced and renamed, then a manifest that makes them the next generation.

There is no log to replay: whatever the current manifest does not list never happened, and the next writer removes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from taskdistill.errors import WorkFailed
from taskdistill.folders import sync
from taskdistill.lock import writer_lock
from taskdistill.search.blocks import Rows
from taskdistill.search.files import entry, write_array
from taskdistill.search.manifest import Manifest, SegmentEntry, load_manifest, write_manifest
from taskdistill.vocabulary import MANIFEST

LOCK = "lock"
"""The file in an index that its writer holds."""

_PARTS = ("segments", "deletes", "bm25")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the writer's lock on an index; what a killed writer left half-written is removed first.

    Args:
        path: The index; its folder exists.

    Yields:
        None.

    Raises:
        WorkFailed: If another process writes, or the folder cannot be written.
    """
    with ExitStack() as stack:
        with disk(path):
            stack.enter_context(writer_lock(path / LOCK))
            clean(path)
        yield


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into an error for people.

    Args:
        path: The index that is written.

    Yields:
        None.

    Raises:
        WorkFailed: If the disk is full, read-only or failing; what was acknowledged stays readable.
    """
    try:
        yield
    except OSError as error:
        raise WorkFailed(
            f"{path} cannot be written ({error.strerror or error}); what was acknowledged is still there and can be searched; "
            "make room or give write permission, then run again"
        ) from error


def clean(path: Path) -> None:
    """Remove every file that the current generation does not list; the caller holds the lock.

    Args:
        path: The index.
    """
    listed: set[str] = set()
    if (path / MANIFEST).exists():
        manifest = load_manifest(path)
        listed = {name for name in manifest.files if name.startswith("deletes/")} | {name.rpartition("/")[0] for name in manifest.files}
    for part in _PARTS:
        for each in sorted((path / part).glob("*")) if (path / part).is_dir() else []:
            if f"{part}/{each.name}" not in listed:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
    for each in path.glob(f".{MANIFEST}.*"):
        each.unlink()


def write_part(path: Path, folder: str, write: Callable[[Path], None]) -> dict[str, dict[str, object]]:
    """Write a folder of files beside and rename it into place.

    Args:
        path: The index.
        folder: Where it shall be, inside the index.
        write: Fills a folder.

    Returns:
        Path inside the index of each new file to its size and hash.
    """
    target = path / folder
    target.parent.mkdir(exist_ok=True)
    beside = target.with_name(f".{target.name}")
    beside.mkdir()
    try:
        write(beside)
        for file in beside.iterdir():
            sync(file)
        sync(beside)
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(target.parent)
    sync(path)
    return {f"{folder}/{file.name}": entry(file) for file in sorted(target.iterdir())}


def write_deletes(path: Path, generation: int, segment: SegmentEntry, documents: Rows) -> tuple[SegmentEntry, dict[str, dict[str, object]]]:
    """Write the list of all deleted documents of a segment.

    Args:
        path: The index.
        generation: The generation that will list it.
        segment: The segment.
        documents: Numbers of all its deleted documents, ascending.

    Returns:
        The segment's new entry, and the new file with its size and hash.
    """
    new = SegmentEntry(segment.number, segment.documents, segment.rows, len(documents), generation)
    name = f"deletes/{segment.number:08}-{generation:08}.npy"
    (path / "deletes").mkdir(exist_ok=True)
    write_array(path / name, documents.astype(np.int64))
    sync(path / name)
    sync(path / "deletes")
    return new, {name: entry(path / name)}


def commit(path: Path, manifest: Manifest) -> None:
    """Acknowledge a generation, then remove files that only older ones used.

    Args:
        path: The index.
        manifest: The generation; its files are on the disk.
    """
    write_manifest(path, manifest)
    clean(path)
