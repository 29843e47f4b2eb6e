"""One writer at a time: a lock that the system releases when its holder dies."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskdistill.errors import WorkFailed


@contextmanager
def writer_lock(path: Path) -> Iterator[list[str]]:
    """Hold a lock file that names the process and the host that write.

    The file is locked through the system (flock), so a dead writer on this host holds nothing,
    even if its process number was given to another process since. A file left by another host
    proves nothing and is respected.

    Args:
        path: The lock file; its folder must exist.

    Yields:
        Sentences to report: a lock that was taken over.

    Raises:
        WorkFailed: If another process writes, or another host may.
    """
    import fcntl

    me = f"{os.getpid()} {socket.gethostname()}"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(handle)
            os.close(handle)
            raise WorkFailed(f"{path} is held by {_spell(holder)}; wait until it has finished, then run this command again") from None
        if _is_current(handle, path):
            break
        os.close(handle)
    try:
        notes = _take_over(_read(handle), path)
        os.ftruncate(handle, 0)
        os.pwrite(handle, me.encode(), 0)
        yield notes
        path.unlink(missing_ok=True)
    except BaseException:
        if _read(handle) == me:
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _read(handle: int) -> str:
    return os.pread(handle, 300, 0).decode("utf-8", "replace").strip()


def _spell(holder: str) -> str:
    pid, _, host = holder.partition(" ")
    return f"process {pid or '?'} on host {host or '?'}"


def _is_current(handle: int, path: Path) -> bool:
    """Whether the locked file is still the one at the path: its former holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _take_over(holder: str, path: Path) -> list[str]:
    if not holder:
        return []
    host = holder.partition(" ")[2]
    if host != socket.gethostname():
        raise WorkFailed(
            f"{path} was left by {_spell(holder)}, which may still write; this is {socket.gethostname()}: "
            f"if that process is gone, remove the file and run this command again"
        )
    return [f"took over the lock of {_spell(holder)}, which ended without removing it"]
