"""One writer an index: a lock the system frees when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskdistill.errors import WorkFailed

LOCK = "lock"


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Hold the only right to write to an index.

    The file names process and host while the lock is held. A process that was killed on this host leaves its name but not
    its lock, so the next writer goes on. The name of another host is respected, because locks do not reach over every
    network file system.

    Args:
        path: The index.

    Yields:
        None.

    Raises:
        WorkFailed: If another process writes, or the name of another host is in the file.
    """
    file = path / LOCK
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkFailed(
                f"{path} is being written by {_owner(handle)}; wait until it has finished or stop it, then run again"
            ) from None
        owner = _read(handle)
        if owner and owner.get("host") != socket.gethostname():
            raise WorkFailed(
                f"{path} was locked by {_owner(handle)}, which cannot be seen from here; if it no longer runs, remove {file} and run again"
            )
        _write(handle, {"pid": os.getpid(), "host": socket.gethostname()})
        try:
            yield
        finally:
            _write(handle, {})
    finally:
        os.close(handle)


def _read(handle: int) -> dict[str, object]:
    text = os.pread(handle, 4096, 0)
    try:
        value = json.loads(text or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _owner(handle: int) -> str:
    owner = _read(handle)
    return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'this host')}"


def _write(handle: int, owner: dict[str, object]) -> None:
    os.ftruncate(handle, 0)
    if owner:
        os.pwrite(handle, json.dumps(owner).encode(), 0)
