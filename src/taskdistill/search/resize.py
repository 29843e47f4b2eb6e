"""Keep less of an index: fewer dimensions or a smaller precision, made from what is stored, in one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.quantization import Int8Ranges, truncate
from taskdistill.search.settings import RESCORE_TYPES, IndexSettings, SearchDefaults
from taskdistill.search.storage.journal import change, commit, free_number, write_part
from taskdistill.search.storage.manifest import SegmentEntry
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.segment_writer import SegmentBlock, stored, write_segment
from taskdistill.search.storage.snapshot import Snapshot
from taskdistill.search.target import disk

SIZES = ("none", *RESCORE_TYPES)
"""Precisions kept for rescoring, smallest first."""

_SAMPLE = 100_000
"""Vectors from which new int8 ranges are taken."""


def resize(snapshot: Snapshot, dim: int, rescore: str) -> None:
    """Write every segment again with less in it; the caller holds the lock.

    Binary codes are prefixes of those there are. What the index is searched with by default is set back where it would no
    longer work.

    Args:
        snapshot: The current generation.
        dim: Dimensions to keep.
        rescore: Precision of the vectors kept.

    Raises:
        BadInput: If the index keeps less than is asked for.
    """
    path, manifest = snapshot.path, snapshot.manifest
    if rescore not in SIZES:
        raise BadInput(f"unknown rescore precision {rescore!r}{did_you_mean(rescore, SIZES)}")
    if not 1 <= dim <= manifest.settings.dim or SIZES.index(rescore) > SIZES.index(
        manifest.settings.rescore
    ):
        raise BadInput(
            f"the index keeps {manifest.settings.dim} dimensions and {manifest.settings.rescore} vectors, "
            f"{dim} dimensions and {rescore} cannot be made from them; build another index from the documents"
        )
    settings = replace(manifest.settings, dim=dim, rescore=rescore)
    if settings == manifest.settings:
        return
    ranges = _ranges(snapshot, dim) if rescore == "int8" else None

    def smaller(block: SegmentBlock) -> SegmentBlock:
        vectors = (
            None
            if block.vectors is None or rescore == "none"
            else truncate(_numbers(block.vectors, manifest.ranges), dim)
        )
        codes = np.packbits(np.unpackbits(block.codes, axis=1)[:, :dim], axis=1)
        return replace(
            block,
            codes=codes,
            vectors=None if vectors is None else stored(settings, ranges, vectors),
        )

    sources = [segment for segment in snapshot.segments if segment.live_count]
    entries: list[SegmentEntry] = []
    number = manifest.next_segment
    for segment in sources:
        number = free_number(path, "segments", number)
        entries.append(
            SegmentEntry(
                number, segment.entry.documents - segment.entry.deleted, segment.live_count
            )
        )
        number += 1
    with disk(path), change(path, manifest, [entry.folder for entry in entries]):
        files = dict(manifest.files)
        for segment, entry in zip(sources, entries, strict=True):
            files |= write_part(
                path,
                entry.folder,
                partial(_write, segment=segment, settings=settings, smaller=smaller),
            )
        commit(
            path,
            manifest.next(
                settings=settings,
                ranges=ranges,
                search=replace(manifest.search, oversample=None, refinement=None)
                if rescore == "none"
                else manifest.search,
                segments=tuple(entries),
                next_segment=number,
                bm25=manifest.bm25,
                files=files,
            ),
        )


def _write(
    folder: Path,
    *,
    segment: Segment,
    settings: IndexSettings,
    smaller: Callable[[SegmentBlock], SegmentBlock],
) -> None:
    documents = segment.entry.documents - segment.entry.deleted
    write_segment(folder, settings, map(smaller, segment.blocks()), segment.live_count, documents)


def check_defaults(rescore: str, defaults: SearchDefaults) -> None:
    """Refuse defaults that an index cannot follow.

    Args:
        rescore: Precision of the vectors it keeps.
        defaults: How it shall be searched.

    Raises:
        BadInput: If they need vectors and there are none, or the oversampling factor is below 1.
    """
    if rescore == "none" and (defaults.oversample is not None or defaults.refinement is not None):
        raise BadInput(
            "oversampling and refinement have no effect on an index of binary codes only (rescore none); leave them out"
        )
    if defaults.oversample is not None and defaults.oversample < 1:
        raise BadInput(f"oversample is {defaults.oversample}; give a whole number of at least 1")


def _ranges(snapshot: Snapshot, dim: int) -> Int8Ranges:
    sample = [truncate(part, dim) for part in _sampled(snapshot.segments, snapshot.manifest.ranges)]
    return (
        Int8Ranges.fit(np.concatenate(sample))
        if sample
        else Int8Ranges(-np.ones(dim, np.float32), np.ones(dim, np.float32))
    )


def _sampled(
    segments: tuple[Segment, ...], ranges: Int8Ranges | None
) -> Iterator[NDArray[np.float32]]:
    """Yield stored vectors from all over the index."""
    rows = sum(segment.entry.rows for segment in segments)
    step = max(1, rows // _SAMPLE)
    for segment in segments:
        if segment.vectors is not None and segment.entry.rows:
            yield _numbers(np.asarray(segment.vectors[::step]), ranges)


def _numbers(vectors: NDArray[Any], ranges: Int8Ranges | None) -> NDArray[np.float32]:
    return vectors.astype(np.float32) if ranges is None else ranges.decode(vectors)
