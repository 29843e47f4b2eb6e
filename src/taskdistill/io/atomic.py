"""Files and folders that are old or new, never half: written under a temporary name beside their
target, then moved into place.

A temporary name is `.NAME.taskdistill-XXXXXXXX`, and its writer holds a lock (flock) on it, which
the system releases when the writer dies. So whoever finds such a name knows whose it is, what it
was to become, and whether its writer still lives.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.protection import as_system_error, check_writable

_TEMPORARY = re.compile(r"\.(?P<target>.+)\.taskdistill-[0-9a-f]{8}(?P<old>\.old)?", re.DOTALL)
_PATIENCE = 2.0
"""Seconds to wait for another writer that is between two renames; it needs microseconds."""


def check_place(path: Path) -> None:
    """Refuse a path that nothing can be made at, because what should be a folder above it is none.

    `path`: where something shall be made; folders above it may be missing. Raises BadInput naming
    what is in the way.
    """
    for parent in path.parents:
        if os.path.lexists(parent):
            if not parent.is_dir():
                what = "a link that leads to no folder" if parent.is_symlink() else "no folder"
                raise BadInput(f"{parent} is {what}, so there can be no {path}; give another path")
            check_writable(parent, purpose=path)
            return


def check_free(path: Path) -> None:
    """Refuse a path at which a new folder cannot be made.

    Raises BadInput if something is there, be it a link to nothing, or what should be a folder above
    it is none.
    """
    if os.path.lexists(path):
        raise BadInput(f"{path} already exists; give another folder or remove it first")
    check_place(path)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex. Returns 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all.

    `path`: target; its folder must exist. `data`: bytes, or text that is written as UTF-8.
    """
    with replacing(path) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; on success sync it and rename it over its target.

    `path`: target; its folder must exist. A link there is replaced, not followed. Yields an empty
    file beside the target; nothing appears at the target if the block raises. Raises BadInput if a
    device, a pipe or a socket is there, such as /dev/null, whose place a file would take.
    """
    if os.path.lexists(path) and not any(
        kind(path.lstat().st_mode) for kind in (stat.S_ISREG, stat.S_ISLNK, stat.S_ISDIR)
    ):
        raise BadInput(f"{path} is no plain file, so it is not written over; give another path")
    beside, handle = _claim(path, _create_file)
    try:
        with as_system_error(path):
            yield beside
            sync(beside)
            beside.replace(path)
    finally:
        with contextlib.suppress(
            OSError
        ):  # a disk that takes nothing any more; `remove_stale` finds it later
            beside.unlink(missing_ok=True)
        os.close(handle)
    sync(path.parent)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside a target, locked while the block runs and removed after it.

    `path`: what the folder shall become, by `swap_in`; its parent must exist. Yields an empty
    folder on the same file system.
    """
    beside, handle = _claim(path, Path.mkdir)
    try:
        with as_system_error(path):
            yield beside
    finally:
        remove_tree(beside)
        os.close(handle)


def swap_in(beside: Path, path: Path, *, replace: bool) -> None:
    """Move a finished folder to its target; what is there gets the temporary name, so that the
    target never lacks a whole folder.

    The two names are exchanged by one system call where kernel and file system have it. Elsewhere
    there are two renames; a kill between them leaves the old folder under a name with `.old`, from
    which `restore` puts it back. Raises FileExistsError if there is a folder and none is to be
    replaced. Raises WorkFailed if the file system moves no folders.
    """
    if not replace:
        try:
            beside.rename(path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FileExistsError(error.errno, error.strerror, str(path)) from None
            raise
    elif not exchange(beside, path):
        _swap_by_renames(beside, path)
    sync(path.parent)


def exchange(one: Path, two: Path) -> bool:
    """Exchange two names of one folder at once.

    Returns whether it was done; false where kernel or file system cannot, and nothing has changed
    then.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(two)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(first, second, ctypes.c_uint(2)) == 0)  # RENAME_SWAP
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        return bool(
            libc.renameat2(here, first, here, second, ctypes.c_uint(2)) == 0
        )  # RENAME_EXCHANGE
    return False


def restore(path: Path) -> bool:
    """Put back a folder whose writer was killed between the two renames of a file system without
    exchange.

    `path`: where the folder should be. Returns whether there is something at `path` now.
    """
    end = time.monotonic() + _PATIENCE
    while not os.path.lexists(path):
        moved = [each for each, result in _temporaries(path.parent, {path.name}) if result["old"]]
        if not moved:
            return False
        with _dead(moved[0]) as dead:
            # Where nothing can be locked nobody is shown to be dead; the folder goes back all the
            # same, for that removes nothing.
            if (dead or time.monotonic() > end) and not os.path.lexists(path):
                with contextlib.suppress(FileNotFoundError):
                    moved[0].rename(path)
                    sync(path.parent)
        time.sleep(0.001)
    return True


def remove_stale(*targets: Path) -> list[str]:
    """Remove what killed writers of some files or folders left beside them; put back a target that
    is missing.

    Only the temporary names that our own writers make for exactly these targets are removed, never
    a link, and none whose writer lives or cannot be shown to be dead. `*targets`: files or folders,
    which need not exist, nor their parents.
    """
    names: dict[Path, set[str]] = {}
    for target in targets:
        names.setdefault(target.parent, set()).add(target.name)
    return [
        name for parent, requested in names.items() for name in _remove_stale(parent, requested)
    ]


def remove_stale_within(folder: Path) -> list[str]:
    """Remove what killed writers left in a folder that only this program writes to, as
    `remove_stale` does for single targets.

    `folder`: the folder, not those below it; it need not exist.
    """
    return _remove_stale(folder, None)


def remove_tree(path: Path) -> None:
    """Remove a folder of our own making as far as that is possible; what cannot be removed stays,
    for `remove_stale`.

    `path`: the folder; it need not exist, and a link is not followed.
    """

    def insist(function: Callable[..., Any], name: str, fault: Any) -> None:
        # A folder in it that somebody protected: it was carried over to the successor, and this one
        # of the same name goes.
        if (
            function in (os.unlink, os.rmdir)
            and Path(name) != path
            and isinstance(fault[1], PermissionError)
        ):
            with contextlib.suppress(OSError):
                Path(name).parent.chmod(0o700)
                function(name)

    shutil.rmtree(path, onerror=insist)


def _remove_stale(parent: Path, names: set[str] | None) -> list[str]:
    removed = []
    for path, result in _temporaries(parent, names):
        if result["old"] and not restore(parent / result["target"]):
            continue  # the last copy of its target
        with _dead(path) as dead:
            if dead:
                remove_tree(path)
                with contextlib.suppress(OSError):
                    path.unlink()
                if not os.path.lexists(path):
                    removed.append(path.name)
    return removed


def _temporaries(parent: Path, names: set[str] | None) -> list[tuple[Path, re.Match[str]]]:
    """List temporary names of our writers in a folder, for these targets or for any."""
    try:
        entries = sorted(parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    result = ((path, _TEMPORARY.fullmatch(path.name)) for path in entries)
    return [
        (path, match)
        for path, match in result
        if match and (names is None or match["target"] in names)
    ]


@contextmanager
def _dead(path: Path) -> Iterator[bool]:
    """Say whether the writer of a temporary file or folder is dead, and keep others from it
    meanwhile.

    No writer makes a link or a special file, so those are never ours. Where the file system locks
    no folders (NFS), nothing is shown to be dead.
    """
    import fcntl

    try:
        mode = path.lstat().st_mode
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            yield False
            return
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The name may have moved into place since it was listed.
            dead = _is_at(handle, path)
        except OSError:
            dead = False
        yield dead
    finally:
        os.close(handle)


def _claim(path: Path, create: Callable[[Path], None]) -> tuple[Path, int]:
    """Create a temporary file or folder and lock it."""
    import fcntl

    while True:
        beside = path.with_name(f".{path.name}.taskdistill-{uuid.uuid4().hex[:8]}")
        try:
            create(beside)
            handle = os.open(beside, os.O_RDONLY)
        except (FileExistsError, FileNotFoundError):
            # The name is taken, or one who removes stale names came between creation and lock.
            if not path.parent.is_dir():
                raise
            continue
        try:
            with contextlib.suppress(
                OSError
            ):  # no locks here (NFS): others then take the writer for living
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, beside):
                return beside, handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _create_file(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _swap_by_renames(beside: Path, path: Path) -> None:
    """Swap where names cannot be exchanged; the old folder is locked while it is nowhere to be
    found under its own name.
    """
    import fcntl

    old = beside.with_name(f"{beside.name}.old")
    while os.path.lexists(path):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_at(handle, path):
                continue  # another writer was faster
            _move_away(path, old)
            try:
                beside.rename(path)
            except OSError:
                if not os.path.lexists(old):
                    continue  # another process has put it back
                raise
            finally:
                if not os.path.lexists(path):
                    old.rename(path)
            old.rename(beside)  # from here on it is nobody's last copy
            return
        finally:
            os.close(handle)
    beside.rename(path)


def _move_away(path: Path, old: Path) -> None:
    try:
        path.rename(old)
    except OSError as error:
        raise WorkFailed(
            f"{path} cannot be replaced: this file system does not move the folder"
            f" ({error.strerror}); write to another folder"
        ) from error
