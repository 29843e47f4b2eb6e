"""Mining as a job: vectors of the teacher or of a model, blocks that a killed run keeps, and a folder that says what made it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from taskdistill.data.mining import (
    MinedBlock,
    MiningSettings,
    Relations,
    Vectors,
    build_relations,
    mine_block,
    query_blocks,
    with_negatives,
)
from taskdistill.data.rows import Dataset, row_texts
from taskdistill.data.sources import load_source
from taskdistill.device import AUTO, dtype_name
from taskdistill.errors import BadInput, WorkFailed, did_you_mean
from taskdistill.io.atomic import remove_stale_within, replacing, sha256_file
from taskdistill.io.folders import open_folder, require_field, write_folder
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import check_replaceable, remove_names
from taskdistill.io.protection import check_writable
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.pipeline.setup import data_root
from taskdistill.progress import Progress, Stop, never
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.tasks import Role, Task
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.make import make_teacher
from taskdistill.teacher.protocol import first_difference, release
from taskdistill.teacher.store import TeacherStore, open_views
from taskdistill.types import MANIFEST, RowKind

if TYPE_CHECKING:
    from taskdistill.encode.encoder import Encoder
    from taskdistill.recipe.recipe import Recipe

KIND = "mined"
_BLOCK_FILE = re.compile(
    r"fingerprint\.json|(block-\d{9}\.npz|(query|document)-\d{6}\.npy)(\.json)?"
)
SHARD = 4096
"""Texts of one file of a model's vectors; what a kill can lose."""


@dataclass(frozen=True)
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


def mine(
    recipe: Recipe,
    recipe_folder: Path,
    request: MineRequest,
    out: Path,
    progress: Progress,
    *,
    should_stop: Stop = never,
    api_key: str | None = None,
) -> dict[str, Any]:
    """Mine hard negatives into a folder; run again after any interruption, it continues.

    Args:
        recipe_folder: Where its relative paths start.
        request: What is mined from where.
        out: The folder: `pairs/<source>.train.jsonl.gz` and a manifest with the fingerprint.

    Returns:
        Counts: rows, queries, candidates, what was passed over and why, and how many rows got how many negatives.

    Raises:
        BadInput: If the folder was made from something else, naming the field that differs, or the source holds no pairs.
        WorkFailed: If a stop was asked for; what is finished is kept.
    """
    check_replaceable(out, KIND, replaces=False)
    check_writable(out.parent, purpose=out)
    partial = out.with_name(f"{out.name}.partial")
    check_writable(partial, partial / "fingerprint.json")
    settings = request.settings.fields()
    pairs, others = _load(recipe, recipe_folder, request, out, progress)
    relations = build_relations(
        pairs.rows, [text for dataset in others for row in dataset.rows for text in row_texts(row)]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with writer_lock(out.with_name(f"{out.name}.lock")):
        vectors = _vectors(recipe, request, relations, out, progress, should_stop, api_key)
        fingerprint = {
            "vectors": vectors.made_by,
            "data": pairs.sha256,
            "candidates": {dataset.name: dataset.sha256 for dataset in others},
            "settings": settings,
        }
        if out.exists():
            return _finished(out, fingerprint, progress)
        _begin(partial, fingerprint, progress)
        vectors.fill(partial)
        counts = _run(relations, vectors, request.settings, partial, progress, should_stop)
        counts = {
            "rows": len(pairs.rows),
            "queries": len(relations.queries),
            "candidates": len(relations.candidates),
        } | counts
        _write(
            out,
            request.source,
            pairs,
            relations,
            partial,
            {"fingerprint": fingerprint, "counts": counts},
        )
        _remove_partial(partial)
    return counts


def _load(
    recipe: Recipe, recipe_folder: Path, request: MineRequest, out: Path, progress: Progress
) -> tuple[Dataset, list[Dataset]]:
    sources = recipe.data.sources
    for name in (request.source, *request.candidates):
        if name not in sources:
            raise BadInput(f"the recipe has no source {name!r}{did_you_mean(name, sources)}")
    if sources[request.source].kind is not RowKind.PAIRS:
        raise BadInput(
            f"source {request.source!r} has {sources[request.source].kind} rows; hard negatives are mined for pairs"
        )
    root = data_root(
        recipe, recipe_folder, request.data_folder or out.parent / f"{out.name}-data", progress
    )
    result = []
    for name in dict.fromkeys((request.source, *request.candidates)):
        result.append(
            load_source(root, name, sources[name], max_bad=recipe.data.max_bad, seed=recipe.seed)
        )
        progress.note(f"{name}: {len(result[-1].rows):,} rows")
    return result[0], result[1:]


@dataclass
class _CandidateVectors:
    """Vectors of queries and candidates, and what made them."""

    made_by: dict[str, Any]
    fill: Callable[[Path], None]
    queries: Vectors | None = None
    candidates: Vectors | None = None
    unusable_queries: np.ndarray | None = None
    usable: np.ndarray | None = None


def _vectors(
    recipe: Recipe,
    request: MineRequest,
    relations: Relations,
    out: Path,
    progress: Progress,
    should_stop: Stop,
    api_key: str | None,
) -> _CandidateVectors:
    def count(done: int, total: int) -> None:
        progress.count(done, total)
        if should_stop():
            raise WorkFailed(
                "stopped; what is finished is kept, run the same command again to continue"
            )

    if request.model is not None:
        return _model_vectors(request, recipe.threads, relations, progress, count)
    root = request.store or Path(recipe.teacher.store or out.parent / "teacher-store")
    teacher = make_teacher(
        _placed(recipe.teacher, request), api_key=api_key, threads=recipe.threads, root=root
    )
    stores = open_views(root, teacher, recipe.teacher.instructions)
    result = _CandidateVectors(
        {
            "teacher": {"arithmetic": None, **teacher.identity.fields()},
            "query_instruction": stores["query"].instruction,
            "document_instruction": stores["document"].instruction,
        },
        lambda _: None,
    )

    def fill(_: Path) -> None:
        for view, texts in (("query", relations.queries), ("document", relations.candidates)):
            progress.stage(f"{view} vectors of the teacher: {len(texts):,} texts")
            report = fill_store(stores[view], texts, teacher, progress=count)  # type: ignore[index]
            progress.note(
                f"{report.found:,} already in the store, {report.embedded:,} embedded, {len(report.quarantined):,} set aside"
            )
        release(teacher)
        result.queries, missing = _stored(stores["query"], relations.queries)
        result.candidates, lost = _stored(stores["document"], relations.candidates)
        result.unusable_queries, result.usable = missing, ~lost

    result.fill = fill
    return result


def _placed(settings: TeacherConfig, request: MineRequest) -> TeacherConfig:
    """Let the request decide where a local teacher runs."""
    fields = {
        name: value
        for name, value in (("device", request.device), ("dtype", request.dtype))
        if value != AUTO
    }
    if fields and settings.kind != "local":
        raise BadInput(
            f"--{next(iter(fields))} has no effect: the recipe's teacher is of kind {settings.kind} and does not run here; leave it out"
        )
    return TeacherConfig.model_validate(settings.model_dump() | fields)


@dataclass(frozen=True)
class _StoreVectors:
    """Rows of a teacher store by the number of their text; a text without vector has that of the first one."""

    store: TeacherStore
    rows: np.ndarray

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self.store.take(np.maximum(self.rows[rows], 0))


def _stored(store: TeacherStore, texts: Sequence[str]) -> tuple[_StoreVectors, np.ndarray]:
    rows = store.locate(texts)
    return _StoreVectors(store, rows), rows < 0


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
    count: Callable[[int, int], None],
) -> _CandidateVectors:
    from taskdistill.encode.encoder import Encoder

    assert request.model is not None
    encoder = Encoder.load(
        request.model, threads=threads, device=request.device, dtype=request.dtype
    )
    progress.note(encoder.placement)
    task = Task.RETRIEVAL.value if Task.RETRIEVAL in encoder.tasks else None
    prompts = {role.value: encoder.prompt_text(role.value) for role in Role}
    arithmetic = {} if encoder.dtype is torch.float32 else {"dtype": dtype_name(encoder.dtype)}
    made_by = {
        "model": encoder.name,
        "hash": encoder.model_hash,
        "task": task,
        "prompts": prompts,
        **arithmetic,
    }
    result = _CandidateVectors(made_by, lambda _: None)

    def fill(partial: Path) -> None:
        for role, texts in ((Role.QUERY, relations.queries), (Role.DOCUMENT, relations.candidates)):
            progress.stage(f"{role} vectors of {encoder.name}: {len(texts):,} texts")
            filed = _file(encoder, texts, task, role, partial, count)
            if role is Role.QUERY:
                result.queries = filed
            else:
                result.candidates = filed

    result.fill = fill
    return result


def _file(
    encoder: Encoder,
    texts: Sequence[str],
    task: str | None,
    role: Role,
    partial: Path,
    count: Callable[[int, int], None],
) -> _ShardVectors:
    shards = []
    for start in range(0, len(texts), SHARD):
        path = partial / f"{role}-{start // SHARD:06d}.npy"
        if not _is_whole(path):
            with _saved(path) as stream:
                np.save(
                    stream,
                    encoder.encode(texts[start : start + SHARD], task=task, prompt_name=role.value),
                )
        shards.append(np.load(path, mmap_mode="r"))
        count(min(start + SHARD, len(texts)), len(texts))
    return _ShardVectors(shards)


def _begin(partial: Path, fingerprint: dict[str, Any], progress: Progress) -> None:
    """Make the folder of finished blocks, or go on in it if it was made from the same."""
    path = partial / "fingerprint.json"
    if path.is_file():
        _same(read_sealed(path, f"remove {partial} to begin anew"), fingerprint, partial)
        progress.note("going on where the run before stopped")
        return
    if os.path.lexists(partial) and (
        partial.is_symlink() or not partial.is_dir() or any(partial.iterdir())
    ):
        raise BadInput(
            f"{partial} is there and holds no blocks of an interrupted run; move it away, or give another --out"
        )
    partial.mkdir(exist_ok=True)
    write_sealed(path, fingerprint)


def _remove_partial(partial: Path) -> None:
    """Remove the blocks of a finished run; what somebody else has put beside them stays."""
    remove_stale_within(partial)
    remove_names(
        partial, [path.name for path in partial.iterdir() if _BLOCK_FILE.fullmatch(path.name)]
    )


def _same(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    if difference := first_difference(_flat(now), _flat(before)):
        raise BadInput(
            f"{folder} was made from something else: {difference}; give another --out, or remove it"
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Spell nested fields with dots; the keys that either side may lack come as None."""
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: item
        for part, inner in value.items()
        for key, item in _flat(inner, f"{name}.{part}" if name else part).items()
    }


def _finished(out: Path, fingerprint: dict[str, Any], progress: Progress) -> dict[str, Any]:
    if not (out / MANIFEST).is_file():
        raise BadInput(f"{out} exists and holds no mined pairs; give another --out")
    manifest = open_folder(out, KIND, "remove it to mine again")
    _same(require_field(out, manifest, "fingerprint", dict), fingerprint, out)
    progress.note("mined before, from the same")
    return require_field(out, manifest, "counts", dict)


def _run(
    relations: Relations,
    vectors: _CandidateVectors,
    settings: MiningSettings,
    partial: Path,
    progress: Progress,
    should_stop: Stop,
) -> dict[str, Any]:
    """Mine every block that is not there yet and count over all of them."""
    assert vectors.queries is not None and vectors.candidates is not None
    progress.stage(
        f"mining: {len(relations.queries):,} queries against {len(relations.candidates):,} candidates"
    )
    sizes, reasons = Counter[int](), Counter[str]()
    for block in query_blocks(len(relations.queries)):
        path = _block(partial, int(block[0]))
        if not _is_whole(path):
            if should_stop():
                raise WorkFailed(
                    "stopped; what is finished is kept, run the same command again to continue"
                )
            result = mine_block(
                relations, vectors.queries, vectors.candidates, block, settings, vectors.usable
            )
            if vectors.unusable_queries is not None:
                result = _without(result, vectors.unusable_queries[relations.query_of[result.rows]])
            reasons_text = np.array(json.dumps(result.reasons))
            with _saved(path) as stream:
                np.savez(
                    stream,
                    rows=result.rows,
                    counts=result.counts,
                    negatives=result.negatives,
                    reasons=reasons_text,
                )
        with np.load(path) as stored:
            sizes.update(
                (
                    stored["counts"]
                    + np.array(
                        [len(relations.given[row]) for row in stored["rows"]], dtype=np.int64
                    )
                ).tolist()
            )
            reasons.update(json.loads(str(stored["reasons"])))
        progress.count(int(block[-1]) + 1, len(relations.queries))
    rows = sum(sizes.values())
    negatives = sum(size * number for size, number in sizes.items())
    return {
        "equal texts merged": relations.merged,
        "known positives kept out": sum(map(len, relations.excluded)),
        "siblings among them": relations.siblings,
        **{f"passed over by {reason}": number for reason, number in sorted(reasons.items())},
        "texts without a vector": 0 if vectors.usable is None else int((~vectors.usable).sum()),
        "negatives": negatives,
        f"rows with {settings.negatives}": sum(
            number for size, number in sizes.items() if size >= settings.negatives
        ),
        "rows with fewer": sum(
            number for size, number in sizes.items() if 0 < size < settings.negatives
        ),
        "rows with none": sizes[0],
        "negatives a row": round(negatives / max(1, rows), 2),
    }


def _without(result: MinedBlock, bad: np.ndarray) -> MinedBlock:
    keep = np.repeat(~bad, result.counts)
    return MinedBlock(
        result.rows, np.where(bad, 0, result.counts), result.negatives[keep], result.reasons
    )


def _block(partial: Path, first: int) -> Path:
    return partial / f"block-{first:09d}.npz"


@contextmanager
def _saved(path: Path) -> Iterator[IO[bytes]]:
    """Give a file beside to write, move it into place, and last write down its hash, which makes it count."""
    with replacing(path) as beside, beside.open("wb") as stream:
        yield stream
    write_sealed(_hash_file(path), {"file": path.name, "hash": sha256_file(path)})


def _is_whole(path: Path) -> bool:
    """Say whether a file was written before and is still the same."""
    try:
        stored = read_sealed(_hash_file(path), "it is made anew")
        return bool(stored["file"] == path.name and stored["hash"] == sha256_file(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _hash_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write(
    out: Path,
    source: str,
    pairs: Dataset,
    relations: Relations,
    partial: Path,
    meta: dict[str, Any],
) -> None:
    """Write the rows with their negatives, in the order in which they came."""
    start = np.zeros(len(pairs.rows), np.int64)
    size = np.zeros(len(pairs.rows), np.int64)
    flat, at = list[np.ndarray](), 0
    for block in query_blocks(len(relations.queries)):
        with np.load(_block(partial, int(block[0]))) as mined:
            size[mined["rows"]] = mined["counts"]
            start[mined["rows"]] = at + np.cumsum(mined["counts"]) - mined["counts"]
            flat.append(mined["negatives"])
            at += len(flat[-1])
    negatives = np.concatenate(flat) if flat else np.zeros(0, np.int64)
    with write_folder(
        out,
        KIND,
        meta=meta,
        inputs={"data": pairs.sha256, "fingerprint": _hash(meta["fingerprint"])},
    ) as folder:
        (folder / "pairs").mkdir()
        with gzip.GzipFile(folder / "pairs" / f"{source}.train.jsonl.gz", "wb", mtime=0) as stream:
            for i, row in enumerate(pairs.rows):
                result = [relations.candidates[n] for n in negatives[start[i] : start[i] + size[i]]]
                stream.write(
                    (json.dumps(with_negatives(row, result), ensure_ascii=False) + "\n").encode()
                )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
