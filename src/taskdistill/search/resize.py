"""Keep fewer dimensions or a smaller precision, made from what is stored, in one commit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.quantization import Int8Ranges, truncate
from taskdistill.search.settings import RESCORES
from taskdistill.search.storage.commit import commit, new_segment
from taskdistill.search.storage.manifest import SegmentEntry
from taskdistill.search.storage.segment import Segment
from taskdistill.search.storage.segment_writer import (
    SegmentBlock,
    decoded_vectors,
    stored_vectors,
    write_segment,
)
from taskdistill.search.storage.snapshot import Snapshot

_SAMPLE = 100_000
"""Vectors from which new int8 ranges are taken."""


def resize(snapshot: Snapshot, dim: int, rescore: str) -> None:
    """Write every segment again with less in it; the caller holds the lock.

    Binary codes are prefixes of those there are. What the index is searched with by default is set
    back where it would no longer work.
    """
    manifest = snapshot.manifest
    old = manifest.settings
    if rescore not in RESCORES:
        raise BadInput(f"unknown rescore precision {rescore!r}{did_you_mean(rescore, RESCORES)}")
    if not 1 <= dim <= old.dim or RESCORES.index(rescore) > RESCORES.index(old.rescore):
        raise BadInput(
            f"the index keeps {old.dim} dimensions and {old.rescore} vectors, {dim} dimensions and "
            f"{rescore} cannot be made from them; build another index from the documents"
        )
    settings = replace(old, dim=dim, rescore=rescore)
    if settings == old:
        return
    ranges = _fit_ranges(snapshot, dim) if rescore == "int8" else None

    def smaller(block: SegmentBlock) -> SegmentBlock:
        vectors = None
        if block.vectors is not None and rescore != "none":
            cut = truncate(decoded_vectors(block.vectors, manifest.ranges), dim)
            vectors = stored_vectors(settings, ranges, cut)
        codes = np.packbits(np.unpackbits(block.codes, axis=1)[:, :dim], axis=1)
        return replace(block, codes=codes, vectors=vectors)

    def write(folder: Path, *, source: Segment, entry: SegmentEntry) -> None:
        blocks = map(smaller, source.blocks())
        write_segment(folder, settings, blocks, rows=entry.rows, documents=entry.documents)

    entries: list[SegmentEntry] = []
    writers = {}
    number = manifest.next_segment
    for source in snapshot.segments:
        if source.live_count:
            entry = new_segment(
                snapshot.path,
                number,
                documents=source.entry.live_documents,
                rows=source.live_count,
            )
            entries.append(entry)
            writers[entry.folder] = partial(write, source=source, entry=entry)
            number = entry.number + 1
    defaults = manifest.search
    if rescore == "none":
        defaults = replace(defaults, oversample=None, refinement=None)
    commit(
        snapshot,
        writers,
        settings=settings,
        ranges=ranges,
        search=defaults,
        segments=tuple(entries),
        next_segment=number,
        bm25=manifest.bm25,  # the rows are the same, in the same order
    )


def _fit_ranges(snapshot: Snapshot, dim: int) -> Int8Ranges:
    """Fit int8 ranges to stored vectors from all over the index."""
    step = max(1, sum(segment.entry.rows for segment in snapshot.segments) // _SAMPLE)
    sample = [
        truncate(decoded_vectors(segment.vectors[::step], snapshot.manifest.ranges), dim)
        for segment in snapshot.segments
        if segment.vectors is not None and segment.entry.rows
    ]
    if sample:
        return Int8Ranges.fit(np.concatenate(sample))
    return Int8Ranges(-np.ones(dim, np.float32), np.ones(dim, np.float32))
