"""Where a command may write: what lies there already stays, unless an earlier run of the program
wrote it.

A folder is the program's by its manifest, a file by its form: a JSON result names the program under
`created_by` or `versions`, a report and a picture name it as their generator, a file of vectors
begins as our writers begin one. Everything is decided before a command does anything, and once more
at the moment of writing.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from taskdistill.errors import BadInput
from taskdistill.io.atomic import check_place, remove_stale, replacing, sync, write_file
from taskdistill.io.folders import read_manifest, seal
from taskdistill.io.json import MAX_FILE_BYTES, JsonError, open_regular, read_value
from taskdistill.io.lock import is_lock
from taskdistill.io.protection import check_replacing, check_writable, folders_of, unlisted
from taskdistill.io.sealed import dump_json
from taskdistill.types import MANIFEST

GENERATOR = '<meta name="generator" content="taskdistill">'
"""What a report says of itself."""

_EARLIER_REPORT = b'<p class="eyebrow">taskdistill report</p>'
_HEAD = 65_536
_STATE = (MANIFEST, "journal.json", "job.json", "log.jsonl", "recipe.yaml", "lock")
"""Files in folders of the program that it reads again; a result under such a name would be taken
for them.
"""

IsReplaceable = Callable[[BinaryIO], bool]
"""Says of a file, open at its beginning, whether the program wrote it."""


def is_result(file: BinaryIO) -> bool:
    """Say whether a file is a JSON result of the program."""
    value = _read_json(file)
    makers = (
        [value.get(name) for name in ("created_by", "versions")] if isinstance(value, dict) else []
    )
    return any(
        isinstance(each, dict) and isinstance(each.get("taskdistill"), str) for each in makers
    )


def is_list_of(*fields: str) -> IsReplaceable:
    """Make what says whether a file is a list of objects that a command wrote; an empty list is
    ours only as we write one.
    """

    def known(file: BinaryIO) -> bool:
        value = _read_json(file)
        if value == []:
            file.seek(0)
            return file.read(_HEAD) == b"[]\n"
        return isinstance(value, list) and all(
            isinstance(each, dict) and set(each) == set(fields) for each in value
        )

    return known


def is_report(file: BinaryIO) -> bool:
    """Say whether a file is a report of the program."""
    head = file.read(_HEAD)
    return GENERATOR.encode() in head or _EARLIER_REPORT in head


def is_log(file: BinaryIO) -> bool:
    """Say whether a file is the log of a run.

    Returns whether it is empty or its first line is a record of a run: with a checksum, or as older
    versions wrote it.
    """
    first = file.readline(_HEAD)
    try:
        record = json.loads(first) if first else {"check": ""}
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and bool({"check", "part", "phase", "teacher"} & record.keys())


def _read_json(file: BinaryIO) -> Any:
    try:
        return read_value(file.read(MAX_FILE_BYTES).decode("utf-8"), max_elements=20_000_000)
    except (UnicodeDecodeError, JsonError):
        return None


FORMS: Mapping[str, IsReplaceable] = {".json": is_result, ".html": is_report}
"""Ending of a file that commands write to what says whether it is ours."""


def check_output(path: Path, is_replaceable: IsReplaceable | None = None) -> None:
    """Refuse a path at which a file cannot be written without taking somebody's place.

    `is_ours`: what is recognised as written by an earlier run; None for what its ending says.
    Raises BadInput if something is there that the program did not write.
    """
    if path.name == MANIFEST:
        raise BadInput(f"{path} is the name of a folder's manifest; give another path")
    if not os.path.lexists(path):
        check_place(path)
        return
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        what = (
            "a link"
            if stat.S_ISLNK(mode)
            else "a folder"
            if stat.S_ISDIR(mode)
            else "no plain file"
        )
        raise BadInput(f"{path} is {what}, which is not written over; give another path")
    known = is_replaceable or FORMS.get(path.suffix)
    with open_regular(path) as stream:
        recognized = known is not None and known(stream)
    if not recognized:
        raise BadInput(
            f"{path} is there and was not written by an earlier run of this command; it stays as it"
            " is: give another path, or move it"
        )
    if (owner := _listed_by(path)) is not None:
        raise BadInput(
            f"{path} is a part of the folder {owner}, whose {MANIFEST} lists it; give another path"
        )
    check_replacing(path)


def check_result(path: Path, is_replaceable: IsReplaceable, out: Path | None) -> None:
    """Refuse a path for the JSON result of a command, before the command does anything.

    `out`: the folder that the command writes, if it writes one. In other folders of the program no
    result is written over: each is of the command that made the folder. Raises BadInput if
    something is there that the command did not write, or that a folder of the program needs.
    """
    check_output(path, is_replaceable)
    inside, out_folder = path.resolve().parent, None if out is None else out.resolve()
    if inside != out_folder and not (inside / MANIFEST).is_file():
        if out_folder is None or out_folder not in inside.parents:  # the command makes that folder
            check_parent(path)
        return
    if path.name in _STATE:
        raise BadInput(
            f"{path} is a name that folders of this program use themselves; give another path"
        )
    if inside != out_folder and os.path.lexists(path):
        raise BadInput(
            f"{path} is a result of the folder {path.parent}, which another command wrote; give"
            " another path"
        )


def _listed_by(path: Path) -> Path | None:
    """Find the folder of the program whose manifest lists a file."""
    place = path.parent.resolve() / path.name
    for folder in place.parents:
        if (folder / MANIFEST).is_file():
            with contextlib.suppress(BadInput):
                if place.relative_to(folder).as_posix() in read_manifest(folder)["files"]:
                    return folder
    return None


def check_parent(path: Path) -> None:
    """Refuse a path whose folder is missing. Raises BadInput if there is no such folder."""
    if not path.parent.is_dir():
        raise BadInput(
            f"{path.parent} is no folder; make it first, or give another path than {path}"
        )


@contextmanager
def output(path: Path, is_replaceable: IsReplaceable | None = None) -> Iterator[Path]:
    """Give a temporary file to write; on success it takes its place, if that is still nobody
    else's.

    Yields an empty file beside it. Raises BadInput if something is there that the program did not
    write.
    """
    check_output(path, is_replaceable)
    remove_stale(path)
    with replacing(path) as beside:
        yield beside
        check_output(path, is_replaceable)


def write_output(
    path: Path, data: bytes | str, is_replaceable: IsReplaceable | None = None
) -> None:
    """Write a file whole, if its place is nobody else's.

    `data`: bytes, or text that is written as UTF-8. Raises BadInput if something is there that the
    program did not write.
    """
    check_output(path, is_replaceable)
    remove_stale(path)
    write_file(path, data)


def write_result(
    path: Path,
    value: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    is_replaceable: IsReplaceable = is_result,
) -> None:
    """Write the result of a command as JSON; an object names the program, so that the next run may
    write over it.

    Raises BadInput if something is there that the program did not write.
    """
    check_parent(path)
    if isinstance(value, Mapping) and not {"versions", "created_by"} & value.keys():
        value = {**value, "created_by": {"taskdistill": metadata.version("taskdistill")}}
    write_output(path, dump_json(value), is_replaceable)


def copy_result(source: Path, path: Path) -> None:
    """Write the result file of a command a second time.

    `source`: where the command wrote it. `path`: where else it shall be. Raises BadInput if
    something is there that the program did not write.
    """
    check_parent(path)
    write_output(path, source.read_bytes(), is_result)


def claim(
    path: Path,
    kind: str,
    *,
    earlier: Callable[[Path], bool],
    files: Mapping[str, IsReplaceable | None] | Sequence[str] = (),
    folders: Mapping[str, str] | None = None,
    parts: Sequence[str] = (),
) -> None:
    """Take a folder into which a command writes over several runs, or refuse it before anything in
    it is touched.

    `earlier`: whether a folder without a manifest was written by a version that gave it none.
    Raises BadInput if it holds somebody's files and is not of this kind, one of these names is
    somebody's, or it is write-protected.
    """
    check_claim(path, kind, earlier=earlier, files=files, folders=folders, parts=parts)
    path.mkdir(parents=True, exist_ok=True)
    remove_stale(path / MANIFEST, *(path / name for name in files))
    if not (path / MANIFEST).is_file():
        seal(path, kind, names=())


def check_claim(
    path: Path,
    kind: str,
    *,
    earlier: Callable[[Path], bool],
    files: Mapping[str, IsReplaceable | None] | Sequence[str] = (),
    folders: Mapping[str, str] | None = None,
    parts: Sequence[str] = (),
) -> None:
    """Do what `claim` does but for taking the folder. Raises BadInput see `claim`."""
    if not os.path.lexists(path):
        check_place(path)
        return
    if not path.is_dir():
        raise BadInput(f"{path} is no folder; give another --out")
    if os.path.lexists(path / MANIFEST):
        read_manifest(path, kind)
    elif (others := foreign_names(path)) and not earlier(path):
        raise BadInput(
            f"{path} is not empty ({others[0]} lies in it) and was not written by this command;"
            " give another --out"
        )
    check_writable(path, path / MANIFEST, *(path / name for name in parts))
    for name, is_replaceable in (
        files.items() if isinstance(files, Mapping) else ((name, None) for name in files)
    ):
        check_output(path / name, is_replaceable)
    for name, inner in (folders or {}).items():
        check_replaceable(path / name, inner)


def foreign_names(path: Path, first: str = MANIFEST) -> list[str]:
    """List what lies in a folder but what a writer that was killed at its very start leaves."""
    names = (
        each.name for each in path.iterdir() if not each.name.startswith(f".{first}.taskdistill-")
    )
    return sorted(name for name in names if name != "lock" or not is_lock(path / name))


def check_replaceable(path: Path, kind: str, *, replaces: bool = True) -> None:
    """Refuse a path at which a folder of a kind will be written, if something else is there.

    `replaces`: whether a folder of this kind that is there will be replaced; otherwise it is read
    only. Raises BadInput if something else is there, or it is write-protected.
    """
    if not os.path.lexists(path):
        check_place(path)
        return
    if path.is_symlink() or not path.is_dir():
        raise BadInput(
            f"{path} is no folder of this program, and a {kind} has its place there; move it away"
        )
    if any(path.iterdir()):
        if not (path / MANIFEST).is_file():
            raise BadInput(
                f"{path} has no {MANIFEST}, and a {kind} has its place there; move it away"
            )
        listed = read_manifest(path, kind)["files"]
        if replaces:
            check_writable(*folders_of(path, listed))
            unlisted(path, listed)
    if replaces:
        check_replacing(path)


def remove_names(folder: Path, names: Sequence[str]) -> None:
    """Remove plain files of known names from a folder, and the folder if nothing is left in it.

    `folder`: the folder; a link is left as it is.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in names:
        path = folder / name
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
        sync(folder.parent)
