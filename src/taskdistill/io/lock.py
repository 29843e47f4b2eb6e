"""One writer at a time: a lock that the system releases when its holder dies.

A lock file holds `PID HOST` from the moment it has its name, so that whatever else lies under the
name is somebody's own file: it is neither written to nor removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskdistill.errors import BadInput, WorkFailed

_LONGEST = 300
"""Bytes of a lock file, at most."""

_ATTEMPTS = 50
"""Looks at an empty lock file: where a file cannot be made before it is named, its writer fills it
a moment later.
"""


@contextmanager
def writer_lock(path: Path) -> Iterator[list[str]]:
    """Hold a lock file that names the process and the host that write.

    The file is locked through the system (flock), so a dead writer on this host holds nothing, even
    if its process number was given to another process since. A file left by another host proves
    nothing and is respected. `path`: the lock file; its folder must exist. Raises BadInput if
    something else lies under the name: a link, a folder, a file with other content. Raises
    WorkFailed if another process writes, or another host may.
    """
    handle, notes = _acquire(path)
    try:
        yield notes
    finally:
        if _is_current(handle, path):
            path.unlink(missing_ok=True)
        os.close(handle)


def is_lock(path: Path) -> bool:
    """Say whether a file is the lock of a writer, living or dead."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(handle).st_mode) and _is_holder(_read(handle))
    finally:
        os.close(handle)


def _acquire(path: Path) -> tuple[int, list[str]]:
    notes: list[str] = []
    attempts = 0
    while True:
        created = _create(path)
        if created is not None:
            return created, notes
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise _no_lock_file(path) from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _no_lock_file(path)
            holder = _read(handle)
            if not _is_holder(holder):
                attempts += 1
                if holder or attempts > _ATTEMPTS:
                    raise _no_lock_file(path)
                time.sleep(0.01)
                continue
            _lock(handle, path)
            if _is_current(handle, path):
                notes += _take_over(_read(handle), path)
                path.unlink()
        finally:
            os.close(handle)


def _create(path: Path) -> int | None:
    """Make the lock file, locked and with its content, before it has its name; None if the name is
    taken.
    """
    content = f"{os.getpid()} {socket.gethostname()}".encode()
    handle = _unnamed(path.parent)
    if handle is not None:
        try:
            _fill(handle, content)
            parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.link(f"/proc/self/fd/{handle}", path.name, src_dir_fd=parent, dst_dir_fd=parent)
            finally:
                os.close(parent)
            return handle
        except FileExistsError:
            os.close(handle)
            return None
        except OSError:  # no /proc, or a file system without links
            os.close(handle)
        except BaseException:
            os.close(handle)
            raise
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        return None
    try:
        _fill(handle, content)
    except BaseException:
        os.close(handle)
        path.unlink(missing_ok=True)
        raise
    return handle


def _unnamed(folder: Path) -> int | None:
    if not hasattr(os, "O_TMPFILE") or not os.path.lexists("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o644)
    except OSError as error:
        if (
            error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
            and folder.is_dir()
        ):
            return None
        raise


def _fill(handle: int, content: bytes) -> None:
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.pwrite(handle, content, 0)


def _lock(handle: int, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(handle)
        raise WorkFailed(
            f"{path} is held by {_spell(holder)}; wait until it has finished, then run this command"
            " again"
        ) from None


def _no_lock_file(path: Path) -> BadInput:
    return BadInput(
        f"{path} is no lock of a writer, which is a small file with a process number and a host; "
        "it is left as it is: move it away, or give another folder, and run this command again"
    )


def _read(handle: int) -> str:
    with contextlib.suppress(UnicodeDecodeError):
        content = os.pread(handle, _LONGEST + 1, 0)
        return content.decode() if len(content) <= _LONGEST else "longer than a lock"
    return "no text"


def _is_holder(content: str) -> bool:
    pid, _, host = content.strip().partition(" ")
    return (
        pid.isdecimal()
        and pid.isascii()
        and bool(host)
        and not host.isspace()
        and len(host.split()) == 1
    )


def _spell(holder: str) -> str:
    pid, _, host = holder.strip().partition(" ")
    return f"process {pid or '?'} on host {host or '?'}"


def _is_current(handle: int, path: Path) -> bool:
    """Whether the locked file is still the one at the path: its former holder may have removed it
    meanwhile.
    """
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _take_over(holder: str, path: Path) -> list[str]:
    host = holder.strip().partition(" ")[2]
    if host != socket.gethostname():
        raise WorkFailed(
            f"{path} was left by {_spell(holder)}, which may still write; this is"
            f" {socket.gethostname()}: if that process is gone, remove the file and run this"
            " command again"
        )
    return [f"took over the lock of {_spell(holder)}, which ended without removing it"]
