"""Resumable mining of hard negatives, and a folder that says what they were mined from."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.data.mining import (
    MinedBlock,
    MiningSettings,
    Relations,
    build_relations,
    mine_block,
    query_blocks,
    with_negatives,
)
from taskdistill.data.rows import Dataset, row_texts
from taskdistill.data.sources import load_source
from taskdistill.errors import BadInput, WorkFailed, did_you_mean
from taskdistill.io.atomic import remove_stale_within
from taskdistill.io.folders import (
    first_difference,
    flatten,
    open_folder,
    require_field,
    write_folder,
)
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import check_replaceable, remove_names
from taskdistill.io.protection import check_writable
from taskdistill.io.sealed import hash_json, read_sealed, write_sealed
from taskdistill.pipeline.setup import data_root
from taskdistill.progress import Progress, Stop, never
from taskdistill.recipe.recipe import Recipe
from taskdistill.types import MANIFEST, RowKind
from taskdistill.workflows.mine_vectors import (
    CandidateVectors,
    MineRequest,
    candidate_vectors,
    is_intact,
    sealed_file,
)

KIND = "mined"
_BLOCK_FILE = re.compile(
    r"fingerprint\.json|(block-\d{9}\.npz|(query|document)-\d{6}\.npy)(\.json)?"
)


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

    `out`: the folder: `pairs/<source>.train.jsonl.gz` and a manifest with the fingerprint. Returns
    counts: rows, queries, candidates, what was passed over and why, and how many rows got how many
    negatives.
    """

    def count(done: int, total: int) -> None:
        progress.count(done, total)
        _check_stop(should_stop)

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
        vectors = candidate_vectors(
            recipe, request, relations, out, progress, count=count, api_key=api_key
        )
        fingerprint = {
            "vectors": vectors.source,
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
            f"source {request.source!r} has {sources[request.source].kind} rows; hard negatives "
            "are mined for pairs"
        )
    root = data_root(
        recipe, recipe_folder, request.data_folder or out.parent / f"{out.name}-data", progress
    )
    datasets = []
    for name in dict.fromkeys((request.source, *request.candidates)):
        datasets.append(
            load_source(root, name, sources[name], max_bad=recipe.data.max_bad, seed=recipe.seed)
        )
        progress.note(f"{name}: {len(datasets[-1].rows):,} rows")
    return datasets[0], datasets[1:]


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
            f"{partial} is there and holds no blocks of an interrupted run; move it away, or "
            "give another --out"
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
    if difference := first_difference(flatten(now), flatten(before)):
        raise BadInput(
            f"{folder} was made from something else: {difference}; give another --out, or remove it"
        )


def _finished(out: Path, fingerprint: dict[str, Any], progress: Progress) -> dict[str, Any]:
    if not (out / MANIFEST).is_file():
        raise BadInput(f"{out} exists and holds no mined pairs; give another --out")
    manifest = open_folder(out, KIND, "remove it to mine again")
    _same(require_field(out, manifest, "fingerprint", dict), fingerprint, out)
    progress.note("mined before, from the same")
    return require_field(out, manifest, "counts", dict)


def _run(
    relations: Relations,
    vectors: CandidateVectors,
    settings: MiningSettings,
    partial: Path,
    progress: Progress,
    should_stop: Stop,
) -> dict[str, Any]:
    """Mine every block that is not there yet and count over all of them."""
    assert vectors.queries is not None and vectors.candidates is not None
    progress.stage(
        f"mining: {len(relations.queries):,} queries against {len(relations.candidates):,} "
        "candidates"
    )
    sizes, reasons = Counter[int](), Counter[str]()
    for block in query_blocks(len(relations.queries)):
        path = _block(partial, int(block[0]))
        if not is_intact(path):
            _check_stop(should_stop)
            mined = mine_block(
                relations, vectors.queries, vectors.candidates, block, settings, vectors.usable
            )
            if vectors.unusable_queries is not None:
                mined = _without(mined, vectors.unusable_queries[relations.query_of[mined.rows]])
            reasons_text = np.array(json.dumps(mined.reasons))
            with sealed_file(path) as stream:
                np.savez(
                    stream,
                    rows=mined.rows,
                    counts=mined.counts,
                    negatives=mined.negatives,
                    reasons=reasons_text,
                )
        with np.load(path) as stored:
            sizes.update(
                (
                    stored["counts"]
                    + np.array(
                        [len(relations.listed[row]) for row in stored["rows"]], dtype=np.int64
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


def _check_stop(should_stop: Stop) -> None:
    if should_stop():
        raise WorkFailed(
            "stopped; what is finished is kept, run the same command again to continue"
        )


def _without(block: MinedBlock, unusable: np.ndarray) -> MinedBlock:
    """Drop the negatives of rows whose query has no vector."""
    usable = np.repeat(~unusable, block.counts)
    counts = np.where(unusable, 0, block.counts)
    return MinedBlock(block.rows, counts, block.negatives[usable], block.reasons)


def _block(partial: Path, first: int) -> Path:
    return partial / f"block-{first:09d}.npz"


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
        inputs={"data": pairs.sha256, "fingerprint": hash_json(meta["fingerprint"])},
    ) as folder:
        (folder / "pairs").mkdir()
        with gzip.GzipFile(folder / "pairs" / f"{source}.train.jsonl.gz", "wb", mtime=0) as stream:
            for i, row in enumerate(pairs.rows):
                texts = [relations.candidates[n] for n in negatives[start[i] : start[i] + size[i]]]
                line = json.dumps(with_negatives(row, texts), ensure_ascii=False)
                stream.write(f"{line}\n".encode())
