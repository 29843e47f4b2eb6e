"""Folders that are old or new, never half: written beside, synced, renamed, with a manifest last."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput
from taskdistill.vocabulary import MANIFEST

FORMAT_VERSION = 1


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex.

    Args:
        path: A readable file.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to the disk.

    Args:
        path: File or folder to sync.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all: beside it, synced, then renamed over it.

    Args:
        path: Target; its folder must exist.
        data: Bytes, or text that is written as UTF-8.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)
        sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


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
    found = {"python": sys.version.split()[0]}
    for name in ("taskdistill", "torch", "transformers", "peft", "tokenizers", "numpy", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """List every file below a folder but its manifest.

    Args:
        folder: Folder to walk.

    Returns:
        Relative path to `{"bytes": int, "sha256": str}`, sorted by path.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in files}


@contextmanager
def write_folder(
    path: Path, kind: str, *, meta: Mapping[str, Any] | None = None, inputs: Mapping[str, str] | None = None, replace: bool = False
) -> Iterator[Path]:
    """Give a temporary folder to fill; on success seal it with a manifest and rename it into place.

    Nothing appears at `path` if the block raises.

    Args:
        path: Where the folder shall appear.
        kind: What it is, such as `model` or `teacher-store`.
        meta: Further fields of the manifest.
        inputs: Name to hash of what it was made from.
        replace: Whether an existing folder is replaced; otherwise it is an error.

    Yields:
        The temporary folder, on the same file system.

    Raises:
        BadInput: If `path` exists and `replace` is false.
    """
    if path.exists() and not replace:
        raise BadInput(f"{path} already exists; give another folder or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    beside.mkdir()
    try:
        yield beside
        seal(beside, kind, meta=meta, inputs=inputs)
        old = None
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            path.rename(old)
        beside.rename(path)
        sync(path.parent)
        if old is not None:
            shutil.rmtree(old)
    finally:
        if beside.exists():
            shutil.rmtree(beside)


def remove_leftovers(*parents: Path) -> list[str]:
    """Remove the temporary files and folders of writers that were killed; no writer may be at work there.

    Args:
        *parents: Folders to look into, not below them; those that do not exist are passed over.

    Returns:
        Names of what was removed.
    """
    found = []
    for parent in parents:
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if re.fullmatch(r"\..+\.[0-9a-f]{8}(\.old)?", path.name):
                found.append(path.name)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
    return found


def seal(folder: Path, kind: str, *, meta: Mapping[str, Any] | None = None, inputs: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Sync every file of a folder and write its manifest last.

    Args:
        folder: A folder whose files are complete.
        kind: What it is.
        meta: Further fields of the manifest.
        inputs: Name to hash of what it was made from.

    Returns:
        The manifest.
    """
    files = file_table(folder)
    for name in files:
        sync(folder / name)
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
    if not folder.is_dir():
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
