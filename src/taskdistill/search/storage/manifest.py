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
from taskdistill.io.folders import read_manifest, versions
from taskdistill.io.sealed import seal_json
from taskdistill.quantization import Int8Ranges
from taskdistill.search.settings import IndexSettings, SearchDefaults
from taskdistill.types import MANIFEST

KIND = "search-index"
VERSION = 2
"""Since 2 the settings have `former_space_ids`. An index has had the hash of its manifest from the first version on."""

_FILE = re.compile(
    r"(segments/\d{8}/[a-z]+\.(npy|arrow)|deletes/\d{8}-\d{8}\.npy|bm25/\d{8}/[a-z0-9]+(\.[a-z0-9]+)*)"
)


_Natural = Annotated[int, Field(ge=0, lt=2**53)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _FileFields(TypedDict):
    bytes: _Natural
    sha256: str


class _SegmentFields(TypedDict):
    number: Annotated[int, Field(ge=0, lt=10**8)]
    documents: _Natural
    rows: _Natural
    deleted: _Natural
    deletes: _Natural | None


class _Fields(TypedDict):
    """What a manifest must hold, field by field."""

    generation: _Natural
    building: bool
    settings: dict[str, Any]
    ranges: dict[str, list[_Number]] | None
    search: dict[str, Any]
    next_segment: _Natural
    segments: list[_SegmentFields]
    bm25: _Natural | None
    files: dict[str, _FileFields]


_FIELDS = TypeAdapter(_Fields)


@dataclass(frozen=True)
class SegmentEntry:
    """A segment of a generation.

    Attributes:
        number: Names its folder.
        documents: Documents it was written with.
        rows: Passages it was written with.
        deleted: Documents of it that are deleted.
        deletes: Generation whose file lists them, or None.
    """

    number: int
    documents: int
    rows: int
    deleted: int = 0
    deletes: int | None = None

    @property
    def folder(self) -> str:
        """Path of its files inside the index."""
        return f"segments/{self.number:08}"

    @property
    def deletes_file(self) -> str | None:
        """Path of its list of deleted documents, or None."""
        return None if self.deletes is None else f"deletes/{self.number:08}-{self.deletes:08}.npy"


Content = tuple[
    SegmentEntry, int, str, frozenset[tuple[str, int, str]], frozenset[tuple[str, int, str]]
]


_SETTINGS = TypeAdapter(IndexSettings)
_DEFAULTS = TypeAdapter(SearchDefaults)


@dataclass(frozen=True)
class Manifest:
    """One generation: everything a reader may look at.

    Attributes:
        settings: How the index was made.
        ranges: Int8 ranges of its vectors, where rescoring is int8.
        search: How it is searched where a search does not say.
        generation: Counts commits.
        next_segment: First number that no segment has had.
        building: Whether a build began and has not ended.
        segments: In order of writing.
        bm25: Generation at which the lexical part was built over these segments, or None.
        files: Path inside the index to `{"bytes", "sha256"}`.
    """

    settings: IndexSettings
    ranges: Int8Ranges | None = None
    search: SearchDefaults = field(default_factory=SearchDefaults)
    generation: int = 0
    next_segment: int = 0
    building: bool = False
    segments: tuple[SegmentEntry, ...] = ()
    bm25: int | None = None
    files: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def contents(self) -> dict[str, frozenset[tuple[str, int, str]]]:
        """Folder of a part, or list of deleted documents, to name, size and hash of its files: equal for equal content only."""
        found: dict[str, set[tuple[str, int, str]]] = {}
        for name, each in self.files.items():
            part = name if name.startswith("deletes/") else name.rpartition("/")[0]
            found.setdefault(part, set()).add((name, each["bytes"], each["sha256"]))
        return {part: frozenset(files) for part, files in found.items()}

    def content_of(self, entry: SegmentEntry) -> Content:
        """Return what decides how a segment reads: its entry, the storage of the index, and name, size and hash of its files.

        Args:
            entry: A segment of this generation.

        Returns:
            Equal values for segments that may stand for each other.
        """
        files = (
            self.contents.get(entry.folder, frozenset()),
            self.contents.get(entry.deletes_file or "", frozenset()),
        )
        return entry, self.settings.dim, self.settings.rescore, *files

    def next(self, **changes: Any) -> Manifest:
        """Return the manifest of the next generation, listing only files it still uses.

        Other segments end the lexical part: it was built over the rows of the old ones.

        Args:
            **changes: Fields to change.

        Returns:
            A manifest.
        """
        if "segments" in changes:
            changes = {"bm25": None, **changes}
        new = replace(self, generation=self.generation + 1, **changes)
        folders = {segment.folder for segment in new.segments} | (
            {f"bm25/{new.bm25:08}"} if new.bm25 is not None else set()
        )
        single = {segment.deletes_file for segment in new.segments}
        return replace(
            new,
            files={
                name: each
                for name, each in new.files.items()
                if name in single or name.rpartition("/")[0] in folders
            },
        )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Make a generation the current one: from the rename on, readers see it.

    Args:
        path: The index.
        manifest: The generation; its files are on the disk.
    """
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
    """Read the current generation.

    Args:
        path: The index.

    Returns:
        Its manifest, checked against its own hash.

    Raises:
        BadInput: If there is none, or it is damaged, of another kind or of a newer format.
    """
    value, file = read_manifest(path, KIND, always_sealed=True), path / MANIFEST
    wrong = [name for name in value["files"] if not _FILE.fullmatch(name)]
    if wrong:
        raise damaged(file, f"it names the file {wrong[0]!r}")
    try:
        found = _FIELDS.validate_json(json.dumps({"search": {}, **value}), strict=True)
        settings = IndexSettings.from_json(found["settings"])
        return Manifest(
            settings=_SETTINGS.validate_json(json.dumps(settings.to_json()), strict=True),
            ranges=_ranges(found["ranges"], settings.dim),
            search=_DEFAULTS.validate_json(
                json.dumps(SearchDefaults.from_json(found["search"]).to_json()), strict=True
            ),
            generation=found["generation"],
            next_segment=found["next_segment"],
            building=found["building"],
            segments=tuple(SegmentEntry(**segment) for segment in found["segments"]),
            bm25=found["bm25"],
            files={name: dict(each) for name, each in found["files"].items()},
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"{file} does not hold what an index needs ({place}: {first['msg']}); build the index again"
        ) from None
    except (KeyError, TypeError) as error:
        raise BadInput(
            f"{file} lacks what an index needs ({error}); build the index again"
        ) from None


def _ranges(given: Mapping[str, list[float]] | None, dim: int) -> Int8Ranges | None:
    if given is None:
        return None
    found = Int8Ranges.from_json(given)
    if found.minimum.shape != (dim,) or found.maximum.shape != (dim,):
        raise BadInput(
            f"the int8 ranges of the index have {found.minimum.shape} numbers instead of {dim}; build the index again"
        )
    return found
