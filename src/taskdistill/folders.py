"""Folders that are old or new, never half: written beside, synced, renamed, with a manifest last."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from taskdistill.atomic import remove_stale, restore, swap_in, temporary_folder
from taskdistill.atomic import sha256_file as sha256_file
from taskdistill.atomic import sync as sync
from taskdistill.atomic import write_file as write_file
from taskdistill.errors import BadInput
from taskdistill.vocabulary import MANIFEST

FORMAT_VERSION = 1


def dump_json(value: Any) -> str:
    """Return JSON text, refusing NaN and infinity.

    Args:
        value: Plain data.

    Returns:
        Indented JSON with a final newline.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers.

    Returns:
        Package name to version, for those that are installed.
    """
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in ("taskdistill", "torch", "transformers", "peft", "tokenizers", "numpy", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def file_table(folder: Path, names: Collection[str] | None = None) -> dict[str, dict[str, Any]]:
    """Hash files of a folder.

    Args:
        folder: Folder to walk.
        names: Files, relative to it; None for every file below it but its manifest.

    Returns:
        Relative path to `{"bytes": int, "sha256": str}`, sorted by path.
    """
    if names is None:
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    else:
        files = sorted(folder / name for name in names)
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}


@contextmanager
def write_folder(
    path: Path, kind: str, *, meta: Mapping[str, Any] | None = None, inputs: Mapping[str, str] | None = None, replace: bool = False
) -> Iterator[Path]:
    """Give a temporary folder to fill; on success seal it with a manifest and move it into place.

    Nothing appears at `path` if the block raises. A folder that replaces another takes over what that one holds beside the files of its
    manifest: nobody's notes are lost.

    Args:
        path: Where the folder shall appear.
        kind: What it is, such as `model` or `teacher-store`.
        meta: Further fields of the manifest.
        inputs: Name to hash of what it was made from.
        replace: Whether a folder of the same kind is replaced; otherwise it is an error.

    Yields:
        The temporary folder, on the same file system.

    Raises:
        BadInput: If what is at `path` may not be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    _replaceable(path, kind, replace)
    with temporary_folder(path) as beside:
        yield beside
        seal(beside, kind, meta=meta, inputs=inputs)
        _share_mode(beside)
        listed = _replaceable(path, kind, replace)
        taken = (name for name in _unlisted(path, listed) if os.path.lexists(beside / name))
        if in_the_way := [name for name in taken if not ((path / name).is_dir() and (beside / name).is_dir())]:
            raise BadInput(f"{path / in_the_way[0]} is not of this folder, and a new file takes its name; move it away and run this again")
        _carry(path, beside, listed)
        try:
            swap_in(beside, path, replace=bool(listed))
        except FileExistsError:
            raise BadInput(f"{path} was made by another process meanwhile; give another folder or remove it first") from None
        _carry(beside, path, listed)  # what was put in since


def remove_folder(path: Path) -> None:
    """Remove a folder that `write_folder` wrote: the files of its manifest, then the manifest, then what is empty.

    Args:
        path: The folder. What its manifest does not list stays, and without a manifest all of it.
    """
    try:
        listed = _replaceable(path, None, True)
    except BadInput:
        return
    for name in listed:
        (path / name).unlink(missing_ok=True)
    for place in sorted({parent for name in listed for parent in Path(name).parents}, key=lambda each: -len(each.parts)):
        with contextlib.suppress(OSError):
            (path / place).rmdir()


def _replaceable(path: Path, kind: str | None, replace: bool) -> list[str]:
    """List the files of a folder that the program wrote, its manifest last, or say why it is not replaced."""
    if not os.path.lexists(path):
        return []
    if not replace:
        raise BadInput(f"{path} already exists; give another folder or remove it first")
    if path.is_symlink() or not path.is_dir():
        what = f"a link to {path.readlink()}" if path.is_symlink() else "no folder"
        raise BadInput(f"{path} is {what}, which is not replaced; give the path of a folder itself")
    if not any(path.iterdir()):
        return []
    if not (path / MANIFEST).is_file():
        raise BadInput(f"{path} has no {MANIFEST}, so it is not replaced; give another folder, or move this one away")
    names = read_manifest(path, kind)["files"]
    return [*(name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts), MANIFEST]


def _unlisted(folder: Path, listed: Collection[str]) -> list[str]:
    """Name everything in a folder but some files: files, links, and folders with nothing in them."""
    ours, found = set(listed), []
    for here, folders, files in os.walk(folder):
        place = Path(here).relative_to(folder)
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        found += [(place / name).as_posix() for name in (*files, *links)]
        if not folders and not files and place.parts:
            found.append(place.as_posix())
    return sorted(name for name in found if name not in ours)


def _carry(old: Path, new: Path, listed: Collection[str]) -> None:
    """Put what a folder holds beside its listed files into its successor too, where it is not there yet."""
    for name in _unlisted(old, listed):
        source, target = old / name, new / name
        if os.path.lexists(target):
            continue
        for parent in reversed(Path(name).parents[:-1]):
            if not (new / parent).is_dir():
                (new / parent).mkdir()
                shutil.copystat(old / parent, new / parent)
        if source.is_dir() and not source.is_symlink():
            target.mkdir()
            continue
        try:
            target.hardlink_to(source) if not source.is_symlink() else target.symlink_to(source.readlink())
        except OSError:
            shutil.copy2(source, target, follow_symlinks=False)


def _share_mode(folder: Path) -> None:
    """Let the files be read by whoever may read the folder: some libraries write for their user alone."""
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

    Args:
        folder: A folder whose files are complete.
        kind: What it is.
        meta: Further fields of the manifest.
        inputs: Name to hash of what it was made from.
        names: Its files, relative to it; None for every file that is there.

    Returns:
        The manifest.
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
    write_file(folder / MANIFEST, dump_json(manifest))
    return manifest


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a folder's manifest and check kind and format version.

    Args:
        folder: The folder.
        kind: The kind it must have, or None for any.

    Returns:
        The manifest.

    Raises:
        BadInput: If the folder or manifest is missing, unreadable, of another kind or of a newer format.
    """
    path = folder / MANIFEST
    if not folder.is_dir() and not (restore(folder) and folder.is_dir()):
        raise BadInput(f"{folder} is not a folder; give the path of a {kind or 'taskdistill'} folder")
    if not path.is_file():
        raise BadInput(
            f"{folder} has no {MANIFEST}: it is not a {kind or 'taskdistill'} folder, or it was only half copied; make or copy it again"
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read as JSON ({error}); copy or make the folder again") from None
    if not isinstance(manifest, dict):
        raise BadInput(f"{path} holds no JSON object; copy or make the folder again")
    if kind is not None and manifest.get("kind") != kind:
        raise BadInput(f"{folder} is a {manifest.get('kind')!r} folder, but a {kind!r} folder is needed here")
    if not isinstance(manifest.get("format_version"), int) or manifest["format_version"] > FORMAT_VERSION:
        raise BadInput(
            f"{folder} has format version {manifest.get('format_version')!r}, this version reads up to {FORMAT_VERSION}; upgrade taskdistill"
        )
    return manifest


def check_folder(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Compare a folder's files with its manifest.

    Args:
        folder: The folder.
        manifest: What `read_manifest` returned.

    Returns:
        One sentence a fault; empty if every listed file is there with the same bytes.
    """
    faults = []
    files = manifest.get("files", {})
    if not isinstance(files, dict):
        return [f"{MANIFEST}: its table of files is no object"]
    for name, entry in files.items():
        path = folder / name
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            faults.append(f"{name}: the manifest does not say its size and SHA-256")
        elif Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"{name}: the manifest names a path outside the folder")
        elif not path.is_file():
            faults.append(f"{name}: missing")
        elif path.stat().st_size != entry["bytes"]:
            faults.append(f"{name}: {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif sha256_file(path) != entry["sha256"]:
            faults.append(f"{name}: content differs from its SHA-256")
    return faults
