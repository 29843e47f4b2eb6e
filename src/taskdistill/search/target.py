"""Where an index may be written: decided before anything is touched, and never through a link or among somebody's files."""

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
"""The file in an index that names what a change under way makes."""

_PARTS = ("segments", "deletes", "bm25")


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


def check_own(path: Path) -> None:
    """Refuse to write to an index of which a part lies elsewhere: what is changed would be somebody else's.

    Args:
        path: The index.

    Raises:
        BadInput: If its manifest, its journal, a folder of it or a file that the manifest lists is a link or no plain file or folder, or
            the index is write-protected.
    """
    for name in _PARTS:
        _check_kind(path / name, stat.S_ISDIR, "folder")
    for name in (MANIFEST, JOURNAL):
        _check_kind(path / name, stat.S_ISREG, "file")
    files = load_manifest(path).files
    for folder in {name.rpartition("/")[0] for name in files}:
        _check_kind(path / folder, stat.S_ISDIR, "folder")
    for name in files:
        _check_kind(path / name, stat.S_ISREG, "file")
    check_writable(
        path,
        path / MANIFEST,
        *(path / name for name in (*_PARTS, *sorted({name.rpartition("/")[0] for name in files}))),
    )


def _check_kind(path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not is_kind(mode):
        what = "a link" if stat.S_ISLNK(mode) else f"no {kind}"
        raise BadInput(
            f"{path} is {what}; an index is written only where its files and folders are its own: make it a plain {kind} first"
        )


def check_target(path: Path) -> bool:
    """Decide whether an index may be written at a path, before anything there is touched.

    Args:
        path: Where the index is or shall be.

    Returns:
        Whether there is one already.

    Raises:
        BadInput: If something else is there.
    """
    if os.path.lexists(path / MANIFEST):
        check_own(path)
        return True
    if not os.path.lexists(path):
        check_place(path)
        return False
    if not path.is_dir():
        raise BadInput(f"{path} is no folder; give another one for the index")
    others = sorted(
        each.name
        for each in path.iterdir()
        if each.name != LOCK and not each.name.startswith(f".{MANIFEST}.taskdistill-")
    )
    if others:
        raise BadInput(
            f"{path} is not empty ({others[0]} lies in it) and no index; give another folder for the index"
        )
    check_writable(path)
    return False


def create(path: Path, manifest: Manifest) -> None:
    """Make an index folder.

    Args:
        path: A folder that does not exist or is empty.
        manifest: Its first generation.

    Raises:
        BadInput: If something is there.
        WorkFailed: If it cannot be written; nothing is left of it then.
    """
    made = missing_folders(path)

    def check() -> None:
        if check_target(path):
            raise BadInput(f"{path} is an index already; open it, or give another folder")

    check()
    try:
        with disk(path):
            path.mkdir(parents=True, exist_ok=True)
            with writer_lock(path / LOCK):
                check()
                write_manifest(path, manifest)
    except BaseException:
        _remove_folders(made)
        raise


def missing_folders(path: Path) -> list[Path]:
    """List the folders that have to be made for a path.

    Args:
        path: A folder.

    Returns:
        Those that are not there, outer ones first.
    """
    return [folder for folder in reversed([path, *path.parents]) if not folder.exists()]


def take_back(path: Path, made: Sequence[Path]) -> None:
    """Remove an index that was just made, if it holds nothing yet.

    Args:
        path: The index.
        made: Folders that were made for it, from `missing_folders`.
    """
    with disk(path), writer_lock(path / LOCK):
        if load_manifest(path).segments:
            return
        (path / MANIFEST).unlink()
    _remove_folders(made)


def remove_index(path: Path) -> None:
    """Remove an index: the files of its manifest, and the folders in which nothing is left then.

    Args:
        path: The index; what somebody else has put there stays.

    Raises:
        BadInput: If it is no index, or a part of it lies elsewhere.
        WorkFailed: If another process writes.
    """
    check_own(path)
    with disk(path), writer_lock(path / LOCK):
        names = list(load_manifest(path).files)
        (path / MANIFEST).unlink()
        for name in names:
            (path / name).unlink(missing_ok=True)
        parts = {parent for name in names for parent in Path(name).parents if parent.parts}
        _remove_folders(
            [
                path / part
                for part in sorted(
                    parts | {Path(part) for part in _PARTS}, key=lambda part: len(part.parts)
                )
            ]
        )
    _remove_folders([path])


def _remove_folders(folders: Sequence[Path]) -> None:
    """Remove folders that were made by the caller, as far as they are empty.

    Args:
        folders: The folders, outer ones first.
    """
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()
