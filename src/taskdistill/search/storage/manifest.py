"""The manifest of an index: one generation of it, with the hash of every file and of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from taskdistill.errors import BadInput
from taskdistill.io.arrays import damaged
from taskdistill.io.atomic import write_file
from taskdistill.io.folders import read_manifest
from taskdistill.io.sealed import seal_json
from taskdistill.quantization import Int8Ranges
from taskdistill.search.settings import IndexSettings, SearchDefaults
from taskdistill.types import MANIFEST
from taskdistill.versions import versions

KIND = "search-index"
VERSION = 2
"""Since 2 the settings have `former_space_ids`; the manifest has had a hash of itself from 1 on."""

_FILE = re.compile(
    r"(segments/\d{8}/[a-z]+\.(npy|arrow)|deletes/\d{8}-\d{8}\.npy"
    r"|bm25/\d{8}/[a-z0-9]+(\.[a-z0-9]+)*)"
)

Natural = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True, kw_only=True)
class SegmentEntry:
    """A segment of a generation."""

    number: Annotated[int, Field(ge=0, lt=10**8)]
    """Names its folder."""
    documents: Natural
    """Documents it was written with."""
    rows: Natural
    """Passages it was written with."""
    deleted: Natural
    """Documents of it that are deleted."""
    deletes: Natural | None
    """Generation whose file lists them, or None."""

    @property
    def live_documents(self) -> int:
        """Documents that are not deleted."""
        return self.documents - self.deleted

    @property
    def folder(self) -> str:
        """Path of its files inside the index."""
        return f"segments/{self.number:08}"

    @property
    def deletes_file(self) -> str | None:
        """Path of its list of deleted documents, or None."""
        return None if self.deletes is None else f"deletes/{self.number:08}-{self.deletes:08}.npy"


class FileEntry(TypedDict):
    """Size and SHA-256 of a file."""

    bytes: Natural
    sha256: str


class _Body(TypedDict):
    generation: Natural
    building: bool
    settings: IndexSettings
    ranges: dict[str, list[Annotated[float, Field(allow_inf_nan=False)]]] | None
    search: SearchDefaults
    next_segment: Natural
    segments: tuple[SegmentEntry, ...]
    bm25: Natural | None
    files: dict[str, FileEntry]


_BODY = TypeAdapter(_Body)

Files = frozenset[tuple[str, int, str]]
"""Name, size and SHA-256 of some files."""

Content = tuple[SegmentEntry, int, str, Files, Files]


def part_of(name: str) -> str:
    """Return the part of an index that a file belongs to: its folder, or a list of deletes."""
    return name if name.startswith("deletes/") else name.rpartition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One generation: everything a reader may look at."""

    settings: IndexSettings
    ranges: Int8Ranges | None = None
    """Int8 ranges of the vectors, where rescoring is int8."""
    search: SearchDefaults = field(default_factory=SearchDefaults)
    generation: int = 0
    """Counts commits."""
    next_segment: int = 0
    """First number that no segment has had."""
    building: bool = False
    """Whether a build began and has not ended."""
    segments: tuple[SegmentEntry, ...] = ()
    """In the order of writing."""
    bm25: int | None = None
    """Number of the lexical part over these segments, or None."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    """Path inside the index to size and hash."""

    @cached_property
    def contents(self) -> dict[str, Files]:
        """Part of the index to its files: equal for equal content only."""
        contents: dict[str, set[tuple[str, int, str]]] = {}
        for name, entry in self.files.items():
            contents.setdefault(part_of(name), set()).add((name, entry["bytes"], entry["sha256"]))
        return {part: frozenset(files) for part, files in contents.items()}

    def content_of(self, entry: SegmentEntry) -> Content:
        """Return what decides how a segment reads: equal for segments that are interchangeable."""
        segment = self.contents.get(entry.folder, frozenset())
        deletes = self.contents.get(entry.deletes_file or "", frozenset())
        return entry, self.settings.dim, self.settings.rescore, segment, deletes

    def next(self, **changes: Any) -> Manifest:
        """Return the manifest of the next generation, listing only files it still uses.

        Other segments end the lexical part, which was built over the rows of the old ones, unless
        `changes` says that it stays.
        """
        if "segments" in changes:
            changes = {"bm25": None, **changes}
        new = replace(self, generation=self.generation + 1, **changes)
        parts = {segment.folder for segment in new.segments}
        parts |= {segment.deletes_file or "" for segment in new.segments}
        if new.bm25 is not None:
            parts.add(f"bm25/{new.bm25:08}")
        # What is not listed any more is removed once this manifest is on the disk.
        files = {name: entry for name, entry in new.files.items() if part_of(name) in parts}
        return replace(new, files=files)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Make a generation the current one: from the rename on, readers see it."""
    body = {
        "kind": KIND,
        "format_version": VERSION,
        "generation": manifest.generation,
        "building": manifest.building,
        "settings": manifest.settings.to_json(),
        "ranges": None if manifest.ranges is None else manifest.ranges.to_json(),
        "search": manifest.search.to_json(),
        "next_segment": manifest.next_segment,
        "segments": [vars(segment) for segment in manifest.segments],
        "bm25": manifest.bm25,
        "created_by": versions(),
        "files": dict(sorted(manifest.files.items())),
    }
    write_file(path / MANIFEST, seal_json(body))


def load_manifest(path: Path) -> Manifest:
    """Read the current generation, checked against its own hash."""
    value, file = read_manifest(path, KIND, always_sealed=True), path / MANIFEST
    wrong = [name for name in value["files"] if not _FILE.fullmatch(name)]
    if wrong:
        raise damaged(file, f"it names the file {wrong[0]!r}")
    try:
        # Strictly, from JSON text: Python values would let lists pass for tuples and 1 for true.
        body = _BODY.validate_json(json.dumps({"search": {}, **value}), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"{file} does not hold what an index needs ({place}: {first['msg']}); build the index "
            "again"
        ) from None
    fields: dict[str, Any] = {**body, "ranges": _ranges(body["ranges"], body["settings"].dim)}
    return Manifest(**fields)


def _ranges(value: Mapping[str, list[float]] | None, dim: int) -> Int8Ranges | None:
    if value is None:
        return None
    ranges = Int8Ranges.from_json(value)
    if ranges.minimum.shape != (dim,) or ranges.maximum.shape != (dim,):
        raise BadInput(
            f"the int8 ranges of the index have {ranges.minimum.shape} numbers instead of {dim}; "
            "build the index again"
        )
    return ranges
