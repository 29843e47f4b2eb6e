"""Folders that are old or new, never half: written beside, synced, renamed, with a
manifest last.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from taskdistill.errors import BadInput
from taskdistill.io.atomic import (
    check_place,
    remove_stale,
    restore,
    sha256_file,
    swap_in,
    sync,
    temporary_folder,
    write_file,
)
from taskdistill.io.protection import check_replacing, check_writable, folders_of, unlisted
from taskdistill.io.sealed import FORMAT_VERSION, parse_sealed, seal_json
from taskdistill.types import MANIFEST
from taskdistill.versions import versions

Value = TypeVar("Value")


def file_table(folder: Path, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Hash files of a folder.

    `names`: files, relative to it; None for every file below it but its manifest. Returns relative
    path to `{"bytes": int, "sha256": str}`, sorted by path.
    """
    if names is None:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    else:
        files = sorted(folder / name for name in names)
    return {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in files
    }


@contextmanager
def write_folder(
    path: Path,
    kind: str,
    *,
    meta: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    replace: bool = False,
) -> Iterator[Path]:
    """Give a temporary folder to fill; on success seal it with a manifest and move it into place.

    Nothing appears at `path` if the block raises. A folder that replaces another takes over what
    that one holds beside the files of its manifest: nobody's notes are lost. `path`: where the
    folder shall appear. `kind`: what it is, such as `model` or `teacher-store`. `replace`: whether
    a folder of the same kind is replaced; otherwise it is an error. Yields the temporary folder, on
    the same file system. Raises BadInput if what is at `path` may not be replaced, or there can be
    no folder.
    """
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    _replaceable(path, kind, replace)
    with temporary_folder(path) as beside:
        yield beside
        seal(beside, kind, meta=meta, inputs=inputs)
        _share_mode(beside)
        listed = _replaceable(path, kind, replace)
        taken = (name for name in unlisted(path, listed) if os.path.lexists(beside / name))
        if in_the_way := [
            name for name in taken if not ((path / name).is_dir() and (beside / name).is_dir())
        ]:
            raise BadInput(
                f"{path / in_the_way[0]} is not of this folder, and a new file takes its name; move"
                " it away and run this again"
            )
        _carry(path, beside, listed)
        try:
            swap_in(beside, path, replace=bool(listed))
        except FileExistsError:
            raise BadInput(
                f"{path} was made by another process meanwhile; give another folder or remove it"
                " first"
            ) from None
        _carry(beside, path, listed)  # what was put in since


def remove_folder(path: Path) -> None:
    """Remove a folder that `write_folder` wrote: the files of its manifest, then the manifest, then
    what is empty.

    `path`: the folder. What its manifest does not list stays, and without a manifest all of it.
    """
    try:
        listed = _replaceable(path, None, True)
    except BadInput:
        return
    for name in listed:
        (path / name).unlink(missing_ok=True)
    for place in sorted(
        {parent for name in listed for parent in Path(name).parents},
        key=lambda each: -len(each.parts),
    ):
        with contextlib.suppress(OSError):
            (path / place).rmdir()


def _replaceable(path: Path, kind: str | None, replace: bool) -> list[str]:
    """List the files of a folder that the program wrote, its manifest last, or say why it is not
    replaced.
    """
    if not os.path.lexists(path):
        return []
    if not replace:
        raise BadInput(f"{path} already exists; give another folder or remove it first")
    if path.is_symlink() or not path.is_dir():
        what = f"a link to {path.readlink()}" if path.is_symlink() else "no folder"
        raise BadInput(f"{path} is {what}, which is not replaced; give the path of a folder itself")
    check_replacing(path)
    if not any(path.iterdir()):
        return []
    if not (path / MANIFEST).is_file():
        raise BadInput(
            f"{path} has no {MANIFEST}, so it is not replaced; give another folder, or move this"
            " one away"
        )
    names = read_manifest(path, kind)["files"]
    check_writable(*folders_of(path, names))
    return [
        *(name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts),
        MANIFEST,
    ]


def _carry(old: Path, new: Path, listed: Collection[str]) -> None:
    """Put what a folder holds beside its listed files into its successor too, where it is not there
    yet.
    """
    created: list[Path] = []
    for name in unlisted(old, listed):
        source, target = old / name, new / name
        if os.path.lexists(target):
            continue
        for parent in reversed(Path(name).parents[:-1]):
            if not (new / parent).is_dir():
                (new / parent).mkdir()
                created.append(parent)
        if source.is_dir() and not source.is_symlink():
            target.mkdir()
            created.append(Path(name))
            continue
        try:
            os.link(
                source, target, follow_symlinks=False
            )  # the same file under another name: nothing about it changes
        except (OSError, NotImplementedError):
            shutil.copy2(source, target, follow_symlinks=False)
    for each in reversed(created):  # the mode last: it may say that nothing is written there
        shutil.copystat(old / each, new / each)


def _share_mode(folder: Path) -> None:
    """Let the files be read by whoever may read the folder: some libraries write for their user
    alone.
    """
    needed = folder.stat().st_mode & 0o666
    for here, _, files in os.walk(folder):
        for name in files:
            path = Path(here) / name
            if path.stat().st_mode & needed != needed:
                path.chmod(path.stat().st_mode | needed)


def seal(
    folder: Path,
    kind: str,
    *,
    meta: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Any]:
    """Sync every file of a folder and write its manifest last.

    `names`: its files, relative to it; None for every file that is there.
    """
    files = file_table(folder, names)
    for name in files:
        sync(folder / name)
    for place, _, _ in os.walk(folder, topdown=False):
        sync(Path(place))
    manifest = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        **dict(meta or {}),
        "inputs": dict(inputs or {}),
        "created_by": versions(),
        "files": files,
    }
    write_file(folder / MANIFEST, seal_json(manifest))
    return manifest


def read_manifest(
    folder: Path, kind: str | None = None, *, always_sealed: bool = False
) -> dict[str, Any]:
    """Read a folder's manifest and check its hash, kind and format version.

    `kind`: the kind it must have, or None for any. `always_sealed`: whether no folder of this kind
    was ever written without the hash of its manifest. Returns the manifest, without the hash of
    itself. Raises BadInput if the folder or manifest is missing, damaged, of another kind or of a
    newer format.
    """
    path, advice = folder / MANIFEST, "copy or make the folder again"
    if not folder.is_dir() and not (restore(folder) and folder.is_dir()):
        raise BadInput(
            f"{folder} is not a folder; give the path of a {kind or 'taskdistill'} folder"
        )
    if not path.is_file():
        raise BadInput(
            f"{folder} has no {MANIFEST}: it is not a {kind or 'taskdistill'} folder, or it was"
            f" only half copied; {advice}"
        )
    manifest, sealed = parse_sealed(path, path.read_bytes(), advice)
    if not isinstance(manifest, dict):
        raise BadInput(f"{path} holds no JSON object; {advice}")
    if kind is not None and manifest.get("kind") != kind:
        raise BadInput(
            f"{folder} is a {manifest.get('kind')!r} folder, but a {kind!r} folder is needed here"
        )
    if (
        not isinstance(manifest.get("format_version"), int)
        or manifest["format_version"] > FORMAT_VERSION
    ):
        raise BadInput(
            f"{folder} has format version {manifest.get('format_version')!r}, this version reads up"
            f" to {FORMAT_VERSION}; upgrade taskdistill"
        )
    if always_sealed and not sealed:
        raise BadInput(f"{path} is damaged: it does not end with its SHA-256; {advice}")
    for name in ("inputs", "created_by", "files"):
        if not isinstance(manifest.get(name, None if name == "files" else {}), dict):
            raise BadInput(f"{path}: {name} is no table of names; {advice}")
    return manifest


def check_folder(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Compare a folder's files with its manifest.

    Returns one sentence a fault; empty if every listed file is there with the same bytes.
    """
    files = manifest.get("files", {})
    if not isinstance(files, dict):
        return [f"{MANIFEST}: its table of files is no object"]
    return [fault for name, entry in files.items() if (fault := file_fault(folder, name, entry))]


def file_fault(folder: Path, name: str, entry: Any) -> str | None:
    """Compare one file with its entry in the manifest.

    Returns what is wrong, beginning with the file's name; None if it is there with the same bytes.
    """
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
        return f"{name}: the manifest does not say its size and SHA-256"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name}: the manifest names a path outside the folder"
    path = folder / name
    if not path.is_file():
        return f"{name}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{name}: {path.stat().st_size} bytes instead of {entry['bytes']}"
    return (
        None
        if sha256_file(path) == entry["sha256"]
        else f"{name}: content differs from its SHA-256"
    )


DATA_KINDS = ("data", "mined")
"""Kinds of folders with rows in them, whose files are read one by one."""


def check_listed(path: Path) -> None:
    """Compare a file of rows with the manifest of the data folder that it lies in; a file that none
    lists is taken as it is.

    Raises BadInput if it is not the file that was written.
    """
    for folder in list(path.parents)[:3]:
        if not (folder / MANIFEST).is_file():
            continue
        manifest, name = read_manifest(folder), path.relative_to(folder).as_posix()
        if (
            manifest.get("kind") in DATA_KINDS
            and name in manifest["files"]
            and (fault := file_fault(folder, name, manifest["files"][name]))
        ):
            raise BadInput(
                f"{folder} is damaged: {fault}; make or copy it again, or remove its {MANIFEST} if"
                " you changed the file and want it so"
            )


def open_folder(folder: Path, kind: str, advice: str) -> dict[str, Any]:
    """Read a folder's manifest and compare every file with it.

    `kind`: the kind it must have. `advice`: what to do where it is damaged. Raises BadInput as
    `read_manifest`, and if a file is missing or other than it was written.
    """
    manifest = read_manifest(folder, kind)
    if faults := check_folder(folder, manifest):
        raise BadInput(f"{folder} is damaged: {faults[0]}; {advice}")
    return manifest


def flatten(value: object, name: str = "") -> dict[str, Any]:
    """Spell the keys of nested fields with dots."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: item
        for part, inner in value.items()
        for key, item in flatten(inner, f"{name}.{part}" if name else str(part)).items()
    }


def first_difference(needed: Mapping[str, Any], actual: Mapping[str, Any]) -> str | None:
    """Name the first field that has not the needed value, with both values.

    Returns such as `revision is 'b', needed 'a'`; None if every needed field is equal.
    """
    for name, value in needed.items():
        if actual.get(name) != value:
            return f"{name} is {actual.get(name)!r}, needed {value!r}"
    return None


def require_same(
    folder: Path,
    manifest: Mapping[str, Any],
    needed: Mapping[str, Any],
    advice: str = "use a new --out",
) -> None:
    """Refuse a folder that was made from something else.

    `needed`: field to the value that it must have. Raises BadInput naming the first field that
    differs, and both values.
    """
    for key, value in needed.items():
        if manifest.get(key) != value:
            raise BadInput(
                f"{folder} was made with {key} = {manifest.get(key)!r}, this run has {value!r};"
                f" {advice}"
            )


def require_field(folder: Path, manifest: Mapping[str, Any], name: str, kind: type[Value]) -> Value:
    """Read a field that a manifest must have; those of the time before manifests had a hash may
    lack it.

    Raises BadInput if it is missing or of another type.
    """
    value = manifest.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadInput(
            f"{folder / MANIFEST}: {name} is {value!r}, needs {kind.__name__}; copy or make the"
            " folder again"
        )
    return value
