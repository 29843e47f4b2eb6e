"""Where an index may be written: never through a link or among somebody's files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.atomic import check_place
from taskdistill.io.lock import writer_lock
from taskdistill.io.protection import check_writable
from taskdistill.search.storage.manifest import Manifest, load_manifest, write_manifest
from taskdistill.types import MANIFEST

LOCK = "lock"
"""The file in an index that its writer holds."""

JOURNAL = "journal.json"
"""The file in an index that names what a change under way creates."""

_PARTS = ("segments", "deletes", "bm25")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of the disk into WorkFailed; what was acknowledged stays readable."""
    try:
        yield
    except OSError as error:
        raise WorkFailed(
            f"{path} cannot be written ({error.strerror or error}); what was acknowledged is still "
            "there and can be searched; make room or give write permission, then run again"
        ) from error


def check_parts(path: Path) -> None:
    """Refuse to write to an index of which a part lies elsewhere: that is somebody else's.

    Raises BadInput if its manifest, its journal, a folder of it or a file that the manifest lists
    is a link or no plain file or folder, or the index is write-protected.
    """
    for name in _PARTS:
        _check_kind(path / name, stat.S_ISDIR, "folder")
    for name in (MANIFEST, JOURNAL):
        _check_kind(path / name, stat.S_ISREG, "file")
    files = load_manifest(path).files
    folders = sorted({name.rpartition("/")[0] for name in files})
    for folder in folders:
        _check_kind(path / folder, stat.S_ISDIR, "folder")
    for name in files:
        _check_kind(path / name, stat.S_ISREG, "file")
    check_writable(path, path / MANIFEST, *(path / name for name in (*_PARTS, *folders)))


def _check_kind(path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not is_kind(mode):
        actual = "a link" if stat.S_ISLNK(mode) else f"no {kind}"
        raise BadInput(
            f"{path} is {actual}; an index is written only where its files and folders are its "
            f"own: make it a plain {kind} first"
        )


def check_target(path: Path) -> bool:
    """Decide whether an index may be written at a path; say whether there is one already."""
    if os.path.lexists(path / MANIFEST):
        check_parts(path)
        return True
    if not os.path.lexists(path):
        check_place(path)
        return False
    if not path.is_dir():
        raise BadInput(f"{path} is no folder; give another one for the index")
    # What a creation that was killed has left is no reason to refuse.
    leftovers = f".{MANIFEST}.taskdistill-"
    others = sorted(
        each.name
        for each in path.iterdir()
        if each.name != LOCK and not each.name.startswith(leftovers)
    )
    if others:
        raise BadInput(
            f"{path} is not empty ({others[0]} lies in it) and no index; give another folder for "
            "the index"
        )
    check_writable(path)
    return False


def create_index(path: Path, manifest: Manifest) -> None:
    """Write the first generation into a folder that does not exist or is empty.

    Raises BadInput if something is there. Raises WorkFailed if it cannot be written; nothing is
    left of it then.
    """
    new_folders = missing_folders(path)

    def check() -> None:
        if check_target(path):
            raise BadInput(f"{path} is an index already; open it, or give another folder")

    check()
    try:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            with writer_lock(path / LOCK):
                check()  # again: another process may have been first
                write_manifest(path, manifest)
    except BaseException:
        _remove_empty(new_folders)
        raise


def missing_folders(path: Path) -> list[Path]:
    """List the folders that have to be created for a path, outer ones first."""
    return [folder for folder in reversed([path, *path.parents]) if not folder.exists()]


def remove_new_index(path: Path, new_folders: Sequence[Path]) -> None:
    """Remove an index that was just created, if it holds nothing yet, and its new folders."""
    with disk_errors(path), writer_lock(path / LOCK):
        if load_manifest(path).segments:
            return
        (path / MANIFEST).unlink()
    _remove_empty(new_folders)


def remove_index(path: Path) -> None:
    """Remove the files of an index's manifest, and the folders in which nothing is left then.

    Raises BadInput if it is no index, or a part of it lies elsewhere. Raises WorkFailed if another
    process writes.
    """
    check_parts(path)
    with disk_errors(path), writer_lock(path / LOCK):
        names = list(load_manifest(path).files)
        (path / MANIFEST).unlink()
        for name in names:
            (path / name).unlink(missing_ok=True)
        folders = {parent for name in names for parent in Path(name).parents if parent.parts}
        folders |= {Path(part) for part in _PARTS}
        _remove_empty([path / each for each in sorted(folders, key=lambda each: len(each.parts))])
    _remove_empty([path])


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, outer ones first in the list, as far as they are empty."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()
