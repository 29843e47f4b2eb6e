"""Whether this process may write at a place and replace what is there, decided before any work; and
what a disk that fails later says.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from taskdistill.errors import BadInput, WorkFailed

_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "make the file system writable",
    errno.EIO: "check the disk",
    errno.EACCES: "give this user permission",
    errno.EPERM: "give this user permission",
}
"""Number of an error of the disk to what helps."""

_FOREIGN = re.compile(r"\(os error (\d+)\)")
_IN_PART = re.compile(r"\d+ requested and \d+ written")


def check_writable(*places: Path, purpose: Path | None = None) -> None:
    """Refuse files and folders that this process may not write to, before anything is computed for
    them.

    Permissions can change and disks fill up, so a writer may still fail later; that is
    `WorkFailed`. `*places`: files to be replaced or extended, and folders in which names are made
    or removed. One that is missing, or a link to nothing, is passed over. `purpose`: what shall be
    made in the places, for the error; None if it is the place itself. Raises BadInput naming the
    first place that is write-protected, and why.
    """
    for place in places:
        if (reason := _protection(place)) is not None:
            target = "" if purpose is None else f", so {purpose} cannot be made in it"
            raise BadInput(
                f"{place} is write-protected ({reason}){target}; make it writable for this user, or"
                " give another path"
            )


def check_replacing(path: Path) -> None:
    """Refuse a file or folder that is there and that this process may not replace, as
    `check_writable` does.

    `path`: the file or folder. A new one is made beside it and takes its name. Raises BadInput
    naming what is write-protected, and why.
    """
    check_writable(path.parent, purpose=path)
    check_writable(path)
    above, status = path.parent.stat(), path.lstat()
    if above.st_mode & stat.S_ISVTX and os.geteuid() not in (0, status.st_uid, above.st_uid):
        raise BadInput(
            f"{path} belongs to user {status.st_uid}, and in {path.parent} only the owner of a file"
            " replaces it (sticky bit); give another path"
        )


def _protection(place: Path) -> str | None:
    """Say what keeps this process from writing to a file or folder; None if nothing is known to."""
    try:
        status = place.stat()
    except OSError:
        return None
    needed = os.W_OK | os.X_OK if stat.S_ISDIR(status.st_mode) else os.W_OK
    # The effective user is the one that writes. A read-only file system and an immutable file
    # answer here too, also to root.
    if os.access(place, needed, effective_ids=os.access in os.supports_effective_ids):
        return None
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return "its file system is mounted read-only"
    immutable = (
        "; its mode allows it, so see lsattr"
        if status.st_uid == os.geteuid() and status.st_mode & stat.S_IWUSR
        else ""
    )
    return (
        f"mode {stat.filemode(status.st_mode)} of user {status.st_uid}, this process is user"
        f" {os.geteuid()}{immutable}"
    )


def folders_of(path: Path, names: Collection[str]) -> list[Path]:
    """List the folders in which the files of a manifest lie, which nobody removes without
    permission to write into them.
    """
    inner = {
        parent
        for name in names
        if not Path(name).is_absolute() and ".." not in Path(name).parts
        for parent in Path(name).parents
    }
    return [
        path / each for each in sorted(inner, key=lambda each: (len(each.parts), each.as_posix()))
    ]


def unlisted(folder: Path, listed: Collection[str]) -> list[str]:
    """Name everything in a folder but some files: files, links, and folders with nothing in them.

    Raises BadInput if a folder in it cannot be read. What is not known is not carried over when the
    folder is replaced, and would be lost.
    """

    def unreadable(error: OSError) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return
        raise BadInput(
            f"{error.filename} cannot be read ({error.strerror}), so {folder} is not replaced: what"
            " lies in it would be lost; make it readable for this user, or move it away"
        )

    names, result = set(listed), []
    for here, folders, files in os.walk(folder, onerror=unreadable):
        place = Path(here).relative_to(folder)
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        result += [(place / name).as_posix() for name in (*files, *links)]
        if not folders and not files and place.parts:
            result.append(place.as_posix())
    return sorted(name for name in result if name not in names)


@contextmanager
def as_system_error(path: Path) -> Iterator[None]:
    """Let a failure of the disk be an `OSError` with its number and a path, whatever wrote:
    safetensors and numpy raise it otherwise.

    Raises OSError if the disk is full, read-only or failing.
    """
    try:
        yield
    except (BadInput, WorkFailed):
        raise
    except OSError as error:
        if error.errno is None and _IN_PART.fullmatch(str(error)):
            raise OSError(
                errno.ENOSPC, f"no space for the whole file, {error}", str(path)
            ) from error
        if error.errno in _ADVICE and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except Exception as error:
        result = _FOREIGN.search(str(error))
        if result is None or int(result[1]) not in _ADVICE:
            raise
        raise OSError(int(result[1]), os.strerror(int(result[1])), str(path)) from error


def spell(error: OSError) -> str:
    """Say in one line what the system refused, and what to do."""
    text = f"{error.filename or 'file system'}: {error.strerror or error}"
    advice = _ADVICE.get(error.errno or 0)
    return (
        text
        if advice is None
        else f"{text}; nothing is half-written: {advice} and run this command again"
    )
