"""Commands in child processes whose disk can be made to fail: killed, full, read-only or protected
at any call that changes it.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from taskdistill.cli.main import run

KILLED = 9
COMPUTED = 77
"""Exit code of a child that should not have computed anything and has."""

PRELOADED = (
    "taskdistill.cli.main",
    "taskdistill.pipeline.train",
    "taskdistill.pipeline.evaluate_run",
    "taskdistill.model.folder",
)
NAMES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.utime",
    "os.truncate",
}
"""Audit events of calls that change names or attributes; `os.rename` stands for `os.replace` too.
"""

BOTH = {"os.rename", "os.link", "os.symlink"}
"""Those whose second argument is a path as well."""

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Fault:
    """What becomes of the calls that change something below a folder."""

    root: Path
    at: int = 0
    """The call, counted from 1, at which it begins; 0 for never."""
    number: int | None = None
    """Error of that call; None kills the process there."""
    lasting: bool = True
    """Whether all later calls fail too, as on a disk that has become read-only, or this one alone.
    """


@dataclass(frozen=True)
class Ended:
    """How a command has ended in the child."""

    code: int
    calls: int
    said: str
    """What it wrote to stderr."""


def in_child(line: str, fault: Fault) -> Ended:
    """Run a command line in a child with a disk that fails."""
    return started(_faulty, line, fault)


def with_limit(line: str, size: int) -> Ended:
    """Run a command line in a child that cannot write files larger than this: the call that writes
    the bytes fails, in any language.
    """
    return started(_limited, line, size)


def protected(lines: Sequence[str], *, computes: bool = False) -> list[tuple[int, str]]:
    """Run command lines one after the other in a child that obeys permissions, root or not; code
    and words of each.

    It may not run any model, unless `computes` says so.
    """
    ended, results = _started(_protected, list(lines), computes)
    assert ended == 0, (
        f"the child ended with {ended}: a model was run for a target that is write-protected"
    )
    return results


def started(target: Callable[..., None], *arguments: object) -> Ended:
    code, answer = _started(target, *arguments)
    calls, said = answer or (0, "")
    return Ended(code, calls, said)


def _started(target: Callable[..., None], *arguments: object):
    """The child is a fork of a server that has only imported the program: this process may hold
    threads of autograd, which no fork can have.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "disk_child"])
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*arguments, writing))
    process.start()
    writing.close()
    try:
        answer = reading.recv()
    except EOFError:
        answer = None
    process.join()
    assert process.exitcode is not None
    return process.exitcode, answer


def _faulty(line: str, fault: Fault, writing: Connection) -> None:
    words = sys.stderr = _Words()
    sys.stdout = _Words()
    root, count, busy = f"{fault.root.resolve()}/", 0, False

    def below(place: object, fd: object = None) -> bool:
        """A name without a folder goes by the folder that the call holds open, which no other code
        here does than ours.
        """
        if isinstance(place, int):
            return False
        name = os.fsdecode(place)  # type: ignore[arg-type]
        return (
            f"{name}/".startswith(root) if name.startswith("/") else isinstance(fd, int) and fd >= 0
        )

    def changed() -> None:
        nonlocal count
        count += 1
        if not fault.at or count < fault.at or (count > fault.at and not fault.lasting):
            return
        if fault.number is None:
            os._exit(KILLED)
        raise OSError(fault.number, os.strerror(fault.number), str(fault.root))

    def hook(event: str, arguments: tuple) -> None:
        if busy or (event not in NAMES and event != "open"):
            return
        if event == "open":
            change = (
                isinstance(arguments[2], int)
                and bool(arguments[2] & WRITES)
                and below(arguments[0])
            )
        else:
            folders = [each for each in arguments[1:] if isinstance(each, int)]
            change = any(
                below(place, folders[-1] if folders else None)
                for place in arguments[: 2 if event in BOTH else 1]
            )
        if change:
            changed()

    synced = os.fsync

    def fsync(handle: int) -> None:
        changed()
        synced(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    code = finished(line)
    busy = True
    writing.send((count, words.text))
    os._exit(code)


def finished(line: str) -> int:
    """Run a command line as the program does, with a traceback and exit code 1 where nothing
    catches an error.
    """
    try:
        return run(line.split())
    except BaseException:
        traceback.print_exc()
        return 1


def _limited(line: str, size: int, writing: Connection) -> None:
    words = sys.stderr = _Words()
    sys.stdout = _Words()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    code = finished(line)
    writing.send((0, words.text))
    os._exit(code)


class _Words:
    """Takes what is said without a file, which the limit would hold for too."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def _protected(lines: list[str], computes: bool, writing: Connection) -> None:
    import torch

    obey_permissions()

    def computed(*_: object, **__: object) -> None:
        os._exit(COMPUTED)

    if not computes:
        torch.nn.Module.__call__ = computed
        torch.nn.Module._wrapped_call_impl = computed
    found = []
    sys.stdout = _Words()
    for line in lines:
        words = sys.stderr = _Words()
        code = finished(line)
        found.append((code, words.text))
    writing.send(found)
    os._exit(0)


def obey_permissions() -> None:
    """Give up what lets root pass by the permissions of files; any other user has nothing to give
    up.
    """
    if os.geteuid() != 0:
        return

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = (
            ("effective", ctypes.c_uint32),
            ("permitted", ctypes.c_uint32),
            ("inheritable", ctypes.c_uint32),
        )

    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = Header(0x20080522, 0), (Sets * 2)()
    kept = 0xFFFFFFFF & ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for name in ("effective", "permitted"):
        setattr(sets[0], name, getattr(sets[0], name) & kept)
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "protected": errno.EACCES}
