"""The teacher store: each distinct (teacher, instruction, text) is embedded once, ever (section
11.1).

Layout: `ROOT/<model>-<fingerprint>/taskdistill.json` with the teacher's identity, and
`shards/NNNNN.npy` (float16 rows), `NNNNN.keys.npy` (16 bytes of each text's SHA-256) and
`NNNNN.json` (sizes and hashes, written last).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput
from taskdistill.io.atomic import sha256_file
from taskdistill.io.folders import first_difference, read_manifest, require_field, write_folder
from taskdistill.io.lock import writer_lock
from taskdistill.io.protection import check_writable
from taskdistill.io.sealed import hash_json
from taskdistill.recipe.teacher import InstructionConfig
from taskdistill.teacher.keys import KEY_BYTES, KEY_DTYPE, KeyIndex, Keys, first_seen, text_keys
from taskdistill.teacher.protocol import (
    FLOAT32,
    VIEWS,
    Teacher,
    TeacherIdentity,
    View,
    prompt_template,
    slug,
)
from taskdistill.teacher.shards import (
    Shard,
    Vectors,
    broken,
    leftovers,
    read_shard,
    shard_files,
    write_shard,
)
from taskdistill.types import MANIFEST

KIND = "teacher-store"
_FORMAT = {"dtype": "float16", "key": f"sha256 of the UTF-8 text, first {KEY_BYTES} bytes"}


class StoreReport(TypedDict):
    """What a store's folder is, and whether it is whole."""

    teacher: dict[str, str | int | None] | None
    """Fields of the teacher's identity."""
    instruction: str | None
    """The form of a text; None for raw texts."""
    embedding_dim: int | None
    dtype: str | None
    texts: int
    shards: int
    """Whole ones."""
    bytes: int
    whole: bool
    faults: list[str]
    leftovers: list[str]
    """Files that a killed writer left."""


class TeacherStore:
    """Vectors of one teacher under one instruction, found by text."""

    def __init__(
        self,
        folder: Path,
        identity: TeacherIdentity,
        instruction: str | None,
        embedding_dim: int | None,
    ) -> None:
        """Open a store; its folder appears with the first shard.

        `folder`: the store's folder, which may not exist yet. `instruction`: the form of a text,
        from `prompt_template`; None for raw texts. `embedding_dim`: size that the vectors must
        have; None takes what comes. Raises BadInput if the folder holds something else, naming the
        field that differs, or is damaged.
        """
        self.folder = folder
        self.identity = identity
        self.instruction = instruction
        self.embedding_dim = embedding_dim
        self._maps: dict[str, Vectors] = {}
        self.refresh()

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def lock_path(self) -> Path:
        """The file beside the folder that names the process that writes."""
        return _lock_path(self.folder)

    def refresh(self) -> None:
        """Look at the disk again: other processes may have added shards.

        Raises BadInput if the folder holds something else or is damaged.
        """
        self._shards: list[Shard] = []
        if self.folder.exists():
            self._compare(read_manifest(self.folder, KIND))
            self._shards = [read_shard(path) for path in shard_files(self.folder / "shards")]
            manifest = sha256_file(self.folder / MANIFEST)
        for shard in self._shards:
            shard.check_sizes()
            if result := shard.stranger(manifest):
                raise broken(shard.folder, shard.name, result)
            if shard.embedding_dim != self.embedding_dim:
                raise broken(
                    shard.folder,
                    shard.name,
                    f"embedding_dim is {shard.embedding_dim}, the store's is {self.embedding_dim}",
                )
        self._offsets = np.cumsum([0, *(shard.rows for shard in self._shards)])
        self._index = KeyIndex(
            np.concatenate([np.empty(0, KEY_DTYPE), *(shard.keys() for shard in self._shards)])
        )

    def locate(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Find the rows of texts; rows stay the same as long as nothing is repaired.

        `texts`: raw texts, without instruction. Returns (n,) row numbers for `take`, -1 where a
        text is missing.
        """
        return self.locate_keys(text_keys(texts))

    def locate_keys(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Find the rows of texts by their keys.

        Returns (n,) row numbers, -1 where a text is missing.
        """
        return self._index.rows(keys)

    def take(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """Read rows.

        `rows`: (n,) numbers from `locate`. Returns Float16 (n, dim), as stored: unit rows up to the
        rounding of float16. Raises BadInput if a number is not a row, or a shard is damaged
        (checked at its first read).
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise BadInput(
                f"{int((rows < 0).sum())} of {len(rows)} texts are not in the teacher store"
                f" {self.folder}; fill it with them first"
            )
        out = np.empty((len(rows), self.embedding_dim or 0), np.float16)
        # Shard by shard, and ascending within each, so that a memory-mapped file is read forwards.
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self._offsets)
        for shard, offset, start, stop in zip(
            self._shards, self._offsets, cuts, cuts[1:], strict=False
        ):
            if start < stop:
                here = order[start:stop]
                out[here] = self._vectors(shard)[rows[here] - offset]
        return out

    def get(self, texts: Sequence[str]) -> Vectors:
        """Read the vectors of texts.

        `texts`: raw texts, without instruction. Returns Float16 (n, dim), in the order of the
        texts. Raises BadInput if a text is missing or a shard damaged.
        """
        return self.take(self.locate(texts))

    def missing(self, texts: Sequence[str]) -> list[str]:
        """List the distinct texts that have no vector yet.

        `texts`: raw texts, without instruction. Returns texts in the order of first sight.
        """
        keys = text_keys(texts)
        order = first_seen(keys)
        return [texts[i] for i in order[self.locate_keys(keys[order]) < 0]]

    def append(self, keys: Keys, vectors: Vectors) -> None:
        """Write one shard; `refresh` makes it readable here. Only the holder of the lock may call
        this.
        """
        if not self.folder.exists():
            meta = {
                "teacher": self.identity.fields(),
                "instruction": self.instruction,
                "embedding_dim": vectors.shape[1],
                **_FORMAT,
            }
            with write_folder(self.folder, KIND, meta=meta) as folder:
                (folder / "shards").mkdir()
        number = (
            max((int(path.stem) for path in shard_files(self.folder / "shards")), default=-1) + 1
        )
        write_shard(
            self.folder / "shards",
            number,
            keys=keys,
            vectors=vectors,
            store=sha256_file(self.folder / MANIFEST),
        )

    def check(self) -> list[str]:
        """Compare every shard with its hashes.

        Returns one sentence a damaged shard; empty if the store is whole.
        """
        return [
            f"shard {shard.name}: {fault}" for shard in self._shards if (fault := shard.fault())
        ]

    def _vectors(self, shard: Shard) -> Vectors:
        name = f"{shard.name} {shard.files['vectors']['sha256']}"
        if name not in self._maps:
            self._maps[name] = shard.vectors()
        return self._maps[name]

    def _compare(self, manifest: dict[str, Any]) -> None:
        teacher = require_field(self.folder, manifest, "teacher", dict)
        result = {"instruction": None, "embedding_dim": None, **FLOAT32, **manifest, **teacher}
        needed = {**FLOAT32, **self.identity.fields(), "instruction": self.instruction, **_FORMAT}
        if self.embedding_dim is not None:
            needed["embedding_dim"] = self.embedding_dim
        if difference := first_difference(needed, result):
            raise BadInput(
                f"the teacher store {self.folder} is of another teacher or instruction:"
                f" {difference}; give another folder as teacher.store, or correct the recipe's"
                " teacher"
            )
        self.embedding_dim = require_field(self.folder, result, "embedding_dim", int)


def open_store(
    root: Path,
    identity: TeacherIdentity,
    instruction: str | None,
    *,
    embedding_dim: int | None = None,
) -> TeacherStore:
    """Open the store of a teacher and an instruction, to be made at the first fill.

    `root`: folder of stores; or the folder of one store, which must then be this one.
    `instruction`: the form of a text, from `prompt_template`; None for raw texts. `embedding_dim`:
    size that the vectors must have; None takes what comes. Raises BadInput if what is there belongs
    to another teacher, or is damaged.
    """
    return TeacherStore(
        store_folder(root, identity, instruction), identity, instruction, embedding_dim
    )


def store_folder(root: Path, identity: TeacherIdentity, instruction: str | None) -> Path:
    """Say where the store of a teacher and an instruction is.

    Returns its folder, which may not exist yet.
    """
    if (root / MANIFEST).is_file():
        return root
    digest = hash_json({**identity.fields(), "instruction": instruction})
    return root / f"{slug(identity.model)}-{digest[:12]}"


def stores_of(
    root: Path, identity: TeacherIdentity, instructions: InstructionConfig | None
) -> list[Path]:
    """List the stores of a teacher that are there.

    Returns folders of its views; one that says it is of another arithmetic is none of them.
    """
    result = dict.fromkeys(
        store_folder(root, identity, prompt_template(instructions, view)) for view in VIEWS
    )
    stores = [folder for folder in result if (folder / MANIFEST).is_file()]
    return [
        folder
        for folder in stores
        if read_manifest(folder, KIND).get("teacher", {}).get("arithmetic") == identity.arithmetic
    ]


def open_views(
    root: Path, teacher: Teacher, instructions: InstructionConfig | None
) -> dict[View, TeacherStore]:
    """Open a store for each view; views in which the teacher reads the same share one object.

    `instructions`: what the recipe tells it; None for a teacher that knows no instruction.
    """
    forms = {view: prompt_template(instructions, view) for view in VIEWS}
    stores = {
        form: open_store(root, teacher.identity, form, embedding_dim=teacher.embedding_dim)
        for form in dict.fromkeys(forms.values())
    }
    return {view: stores[form] for view, form in forms.items()}


def describe(folder: Path) -> StoreReport:
    """Say what a store's folder is and whether it is whole, reading every byte.

    Raises BadInput if it is no teacher store.
    """
    manifest = read_manifest(folder, KIND)
    shards, faults = _inspect(folder)
    return {
        "teacher": manifest.get("teacher"),
        "instruction": manifest.get("instruction"),
        "embedding_dim": manifest.get("embedding_dim"),
        "dtype": manifest.get("dtype"),
        "texts": sum(shard.rows for shard in shards),
        "shards": len(shards),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "whole": not faults,
        "faults": [f"shard {name}: {fault}" for name, fault in faults.items()],
        "leftovers": [path.name for path in leftovers(folder / "shards")],
    }


def repair(folder: Path) -> list[str]:
    """Drop damaged shards and what a killed writer left, so that the next fill embeds those texts
    again.

    Returns one sentence for each thing dropped; empty if the store was whole. Raises BadInput if it
    is no teacher store, or is write-protected.
    """
    read_manifest(folder, KIND)
    check_writable(folder.parent, purpose=_lock_path(folder))
    check_writable(folder / "shards")
    with writer_lock(_lock_path(folder)) as notes:
        lines = list(notes)
        for name, fault in _inspect(folder)[1].items():
            (folder / "shards" / f"{name}.json").unlink()
            lines.append(f"dropped shard {name}: {fault}")
        for path in leftovers(folder / "shards"):
            path.unlink()
            lines.append(f"removed {path.name}")
    return lines


def _lock_path(folder: Path) -> Path:
    # Beside the folder, not in it: the first writer makes the folder while it holds the lock.
    return folder.with_name(f"{folder.name}.lock")


def _inspect(folder: Path) -> tuple[list[Shard], dict[str, str]]:
    """Return the shards that are whole, and the name and fault of each that is not."""
    shards, faults, manifest = [], {}, sha256_file(folder / MANIFEST)
    for path in shard_files(folder / "shards"):
        try:
            shard = read_shard(path)
        except BadInput:
            faults[path.stem] = "its JSON file cannot be read, or is not what was written"
            continue
        if fault := shard.stranger(manifest) or shard.fault():
            faults[path.stem] = fault
        else:
            shards.append(shard)
    return shards, faults
