"""Write a segment: an immutable folder of codes, vectors, passages, ids and metadata.

Files of a segment with `rows` passages of `documents` documents:

    codes.npy        (rows, code_bytes) uint8: the signs, for the first pass
    vectors.npy      (rows, dim) int8, float16 or float32, for rescoring; absent with rescore none
    places.npy       (rows, 3) int64: document, start, end; documents ascend
    texts.arrow      text of each row
    documents.arrow  id and metadata (JSON) of each document
    entries.arrow    one row a metadata value, by document: what filters read
    keys.npy         (3, documents) uint64: hash of id (ascending), hash of content, document
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taskdistill.io.arrays import array_writer, table_writer, write_array
from taskdistill.quantization import Int8Ranges, pack_bits
from taskdistill.search.candidates import Codes, Rows
from taskdistill.search.corpus import Document
from taskdistill.search.filters import ENTRIES, metadata_entries
from taskdistill.search.prf import Floats
from taskdistill.search.settings import RESCORE_TYPES, IndexSettings

TEXTS = pa.schema([("text", pa.large_string())])
DOCUMENTS = pa.schema([("id", pa.string()), ("metadata", pa.large_string())])

SEGMENT_FILES = frozenset(
    {
        "codes.npy",
        "vectors.npy",
        "places.npy",
        "texts.arrow",
        "documents.arrow",
        "entries.arrow",
        "keys.npy",
    }
)
"""Every file that a segment may have."""


@dataclass(frozen=True, kw_only=True)
class SegmentBlock:
    """Some consecutive documents of a segment, with document numbers that begin at 0."""

    codes: Codes
    vectors: NDArray[np.generic] | None
    spans: Rows
    """`(rows, 3)` document, start, end."""
    texts: pa.RecordBatch
    documents: pa.RecordBatch
    entries: pa.RecordBatch
    keys: NDArray[np.uint64]


def make_block(
    settings: IndexSettings,
    ranges: Int8Ranges | None,
    documents: Sequence[Document],
    *,
    spans: Rows,
    vectors: Floats,
) -> SegmentBlock:
    """Bring new documents with distinct ids, and their unit vectors, into a segment's form."""
    metadata = [canonical_metadata(document) for document in documents]
    keys = [
        [id_hash(document.id) for document in documents],
        [content_hash(*pair) for pair in zip(documents, metadata, strict=True)],
        range(len(documents)),
    ]
    texts = [documents[document].text[start:end] for document, start, end in spans.tolist()]
    ids = pa.array([document.id for document in documents], pa.string())
    return SegmentBlock(
        codes=pack_bits(vectors),
        vectors=stored_vectors(settings, ranges, vectors),
        spans=spans,
        texts=pa.record_batch([pa.array(texts, pa.large_string())], schema=TEXTS),
        documents=pa.record_batch([ids, pa.array(metadata, pa.large_string())], schema=DOCUMENTS),
        entries=metadata_entries([document.metadata for document in documents]),
        keys=np.array(keys, dtype=np.uint64),
    )


def stored_vectors(
    settings: IndexSettings, ranges: Int8Ranges | None, vectors: Floats
) -> NDArray[np.generic] | None:
    """Return vectors in the precision kept for rescoring, or None where the index keeps none."""
    if settings.rescore == "none":
        return None
    if ranges is not None:
        return ranges.encode(vectors)
    return vectors.astype(RESCORE_TYPES[settings.rescore])


def decoded_vectors(stored: NDArray[np.generic], ranges: Int8Ranges | None) -> Floats:
    """Return stored vectors as float32; rounding has left their length near one."""
    if ranges is None:
        return stored.astype(np.float32)
    return ranges.decode(np.asarray(stored, np.int8))


def canonical_metadata(document: Document) -> str:
    """Return a document's metadata as one line of JSON with sorted keys."""
    return json.dumps(dict(document.metadata), ensure_ascii=False, sort_keys=True, allow_nan=False)


def id_hash(text: str) -> int:
    """Return the 64-bit hash by which an id is looked up."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def content_hash(document: Document, metadata: str) -> int:
    """Return the 64-bit hash by which a changed document is recognised; `metadata` is canonical."""
    return id_hash(f"{len(document.text)} {document.text}{metadata}")


def renumbered(entries: pa.RecordBatch, documents: Rows) -> pa.RecordBatch:
    """Return metadata entries with other document numbers."""
    return pa.record_batch([pa.array(documents, pa.int64()), *entries.columns[1:]], schema=ENTRIES)


def write_segment(
    folder: Path,
    settings: IndexSettings,
    blocks: Iterable[SegmentBlock],
    *,
    rows: int,
    documents: int,
) -> None:
    """Write the files of a segment; memory is bounded by the largest block and the keys.

    `rows`: passages in all blocks. `documents`: documents in all blocks.
    """
    keys = np.empty((3, documents), np.uint64)
    start = 0
    with ExitStack() as stack:
        codes = stack.enter_context(
            array_writer(folder / "codes.npy", np.uint8, (rows, settings.code_bytes))
        )
        if settings.rescore != "none":
            dtype, shape = RESCORE_TYPES[settings.rescore], (rows, settings.dim)
            vectors = stack.enter_context(array_writer(folder / "vectors.npy", dtype, shape))
        spans = stack.enter_context(array_writer(folder / "places.npy", np.int64, (rows, 3)))
        texts = stack.enter_context(table_writer(folder / "texts.arrow", TEXTS))
        names = stack.enter_context(table_writer(folder / "documents.arrow", DOCUMENTS))
        entries = stack.enter_context(table_writer(folder / "entries.arrow", ENTRIES))
        for block in blocks:
            codes(block.codes)
            if block.vectors is not None:
                vectors(block.vectors)
            spans(block.spans + np.array([start, 0, 0]))
            texts(block.texts)
            names(block.documents)
            entries(renumbered(block.entries, block.entries["document"].to_numpy() + start))
            stop = start + block.documents.num_rows
            keys[:, start:stop] = block.keys
            keys[2, start:stop] += np.uint64(start)
            start = stop
    assert start == documents
    write_array(folder / "keys.npy", keys[:, np.argsort(keys[0], kind="stable")])
