"""The vectors that decide which candidates are hard negatives.

The teacher's through its store, or a model's in sealed files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from taskdistill.data.mining import MiningSettings, Relations, Vectors
from taskdistill.device import AUTO, dtype_name
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.io.atomic import replacing, sha256_file
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.progress import Progress
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.tasks import Role, Task
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.local import make_teacher
from taskdistill.teacher.protocol import release
from taskdistill.teacher.store import TeacherStore, open_views

SHARD = 4096
"""Texts of one file of a model's vectors; what a kill can lose."""

Count = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class MineRequest:
    """What is mined from where."""

    source: str
    """Source of pairs in the recipe."""
    candidates: tuple[str, ...] = ()
    """Further sources whose texts are candidates."""
    model: str | None = None
    """Model whose vectors decide; None: the recipe's teacher through its store."""
    store: Path | None = None
    """Folder of teacher stores; None: `teacher.store`, or `teacher-store` beside the output."""
    settings: MiningSettings = field(default_factory=MiningSettings)
    data_folder: Path | None = None
    """Embedded default: the folder of an earlier run's data; None builds it beside the output."""
    device: str = AUTO
    """Where the model or a local teacher runs; `auto` leaves a teacher where the recipe puts it."""
    dtype: str = AUTO
    """Arithmetic of the model or a local teacher; `auto` leaves a teacher's to the recipe."""


@dataclass(kw_only=True)
class CandidateVectors:
    """Vectors of queries and candidates, once `fill` has been called with the work folder."""

    source: dict[str, Any]
    """What they depend on, for the fingerprint."""
    fill: Callable[[Path], None]
    queries: Vectors | None = None
    candidates: Vectors | None = None
    unusable_queries: np.ndarray | None = None
    usable: np.ndarray | None = None


def candidate_vectors(
    recipe: Recipe,
    request: MineRequest,
    relations: Relations,
    out: Path,
    progress: Progress,
    *,
    count: Count,
    api_key: str | None,
) -> CandidateVectors:
    """Open the vectors of a request; nothing is embedded before `fill`.

    `count`: called with (done, total); may raise where a stop was requested.
    """
    if request.model is not None:
        return _model_vectors(request, recipe.threads, relations, progress, count)
    root = request.store or Path(recipe.teacher.store or out.parent / "teacher-store")
    settings = _placed(recipe.teacher, request)
    teacher = make_teacher(settings, api_key=api_key, threads=recipe.threads, root=root)
    stores = open_views(root, teacher, recipe.teacher.instructions)
    vectors = CandidateVectors(
        source={
            "teacher": {"arithmetic": None, **teacher.identity.fields()},
            "query_instruction": stores["query"].instruction,
            "document_instruction": stores["document"].instruction,
        },
        fill=lambda _: None,
    )

    def fill(_: Path) -> None:
        for store, name, texts in (
            (stores["query"], "query", relations.queries),
            (stores["document"], "document", relations.candidates),
        ):
            progress.stage(f"{name} vectors of the teacher: {len(texts):,} texts")
            report = fill_store(store, texts, teacher, progress=count)
            progress.note(
                f"{report.found:,} already in the store, {report.embedded:,} embedded, "
                f"{len(report.quarantined):,} set aside"
            )
        release(teacher)
        query_rows = stores["query"].locate(relations.queries)
        candidate_rows = stores["document"].locate(relations.candidates)
        vectors.queries = _StoreVectors(stores["query"], query_rows)
        vectors.candidates = _StoreVectors(stores["document"], candidate_rows)
        vectors.unusable_queries, vectors.usable = query_rows < 0, candidate_rows >= 0

    vectors.fill = fill
    return vectors


def _placed(settings: TeacherConfig, request: MineRequest) -> TeacherConfig:
    """Let the request decide where a local teacher runs."""
    fields = {
        name: value
        for name, value in (("device", request.device), ("dtype", request.dtype))
        if value != AUTO
    }
    if fields and settings.kind != "local":
        raise BadInput(
            f"--{next(iter(fields))} has no effect: the recipe's teacher is of kind "
            f"{settings.kind} "
            "and does not run here; leave it out"
        )
    return TeacherConfig.model_validate(settings.model_dump() | fields)


@dataclass(frozen=True)
class _StoreVectors:
    """Rows of a teacher store by the number of their text.

    A text without vector has that of the first one.
    """

    store: TeacherStore
    rows: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.store.take(np.maximum(self.rows[rows], 0))


@dataclass(frozen=True)
class _ShardVectors:
    """Vectors of a model in files of `SHARD` rows, mapped into memory."""

    shards: list[np.ndarray]

    def take(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shards[0].shape[1]), np.float32)
        for shard in np.unique(rows // SHARD).tolist():
            here = rows // SHARD == shard
            out[here] = self.shards[shard][rows[here] - shard * SHARD]
        return out


def _model_vectors(
    request: MineRequest,
    threads: int | None,
    relations: Relations,
    progress: Progress,
    count: Count,
) -> CandidateVectors:
    assert request.model is not None
    encoder = Encoder.load(
        request.model, threads=threads, device=request.device, dtype=request.dtype
    )
    progress.note(encoder.placement)
    task = Task.RETRIEVAL.value if Task.RETRIEVAL in encoder.tasks else None
    source = {
        "model": encoder.name,
        "hash": encoder.model_hash,
        "task": task,
        "prompts": {role.value: encoder.prompt_text(role.value) for role in Role},
    }
    if encoder.dtype is not torch.float32:
        source["dtype"] = dtype_name(encoder.dtype)

    def embed(texts: Sequence[str], role: Role, partial: Path) -> _ShardVectors:
        progress.stage(f"{role} vectors of {encoder.name}: {len(texts):,} texts")
        shards = []
        for start in range(0, len(texts), SHARD):
            path = partial / f"{role}-{start // SHARD:06d}.npy"
            if not is_intact(path):
                chunk = texts[start : start + SHARD]
                with sealed_file(path) as stream:
                    np.save(stream, encoder.encode(chunk, task=task, prompt_name=role.value))
            shards.append(np.load(path, mmap_mode="r"))
            count(min(start + SHARD, len(texts)), len(texts))
        return _ShardVectors(shards)

    vectors = CandidateVectors(source=source, fill=lambda _: None)

    def fill(partial: Path) -> None:
        vectors.queries = embed(relations.queries, Role.QUERY, partial)
        vectors.candidates = embed(relations.candidates, Role.DOCUMENT, partial)

    vectors.fill = fill
    return vectors


@contextmanager
def sealed_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside to write, move it into place, and last seal its hash: now it counts."""
    with replacing(path) as beside, beside.open("wb") as stream:
        yield stream
    write_sealed(_hash_file(path), {"file": path.name, "hash": sha256_file(path)})


def is_intact(path: Path) -> bool:
    """Say whether a file was written before and is still the same."""
    try:
        stored = read_sealed(_hash_file(path), "it is made anew")
        return bool(stored["file"] == path.name and stored["hash"] == sha256_file(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
