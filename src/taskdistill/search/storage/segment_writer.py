"""Write a segment: an immutable folder of binary codes, rescoring vectors, passages, ids and metadata.

Files of a segment with `rows` passages of `documents` documents:

    codes.npy        (rows, code_bytes) uint8: the signs, for the first pass
    vectors.npy      (rows, dim) int8, float16 or float32, for rescoring; absent where the index keeps none
    places.npy       (rows, 3) int64: document, start, end; documents ascend, so a document's rows lie together
    texts.arrow      text of each row
    documents.arrow  id and metadata (JSON) of each document
    entries.arrow    one row a metadata value, by document: what filters read
    keys.npy         (3, documents) uint64: hash of the id (ascending), hash of the content, document
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from taskdistill.io.arrays import array_writer, table_writer, write_array
from taskdistill.quantization import Int8Ranges, pack_bits
from taskdistill.search.corpus import Document
from taskdistill.search.metadata import ENTRIES, entries_of, renumbered
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

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SegmentBlock:
    """Some consecutive documents of a segment, with document numbers that begin at 0."""

    codes: NDArray[np.uint8]
    vectors: NDArray[Any] | None
    places: Rows
    texts: pa.RecordBatch
    documents: pa.RecordBatch
    entries: pa.RecordBatch
    keys: NDArray[np.uint64]


def make_block(
    settings: IndexSettings,
    ranges: Int8Ranges | None,
    documents: Sequence[Document],
    places: Rows,
    vectors: NDArray[np.float32],
) -> SegmentBlock:
    """Bring new documents into the form of a segment.

    Args:
        settings: The index's.
        ranges: Its int8 ranges, if rescoring is int8.
        documents: The documents, ids distinct.
        places: (rows, 3) document, start, end of each passage.
        vectors: (rows, dim) unit vectors.

    Returns:
        The block.
    """
    metadata = [canonical(document) for document in documents]
    keys = np.array(
        [
            [key_of(each.id) for each in documents],
            [content_of(*pair) for pair in zip(documents, metadata, strict=True)],
            range(len(documents)),
        ],
        dtype=np.uint64,
    )
    texts = [documents[document].text[start:end] for document, start, end in places.tolist()]
    return SegmentBlock(
        codes=pack_bits(vectors),
        vectors=stored(settings, ranges, vectors),
        places=places,
        texts=pa.record_batch([pa.array(texts, pa.large_string())], schema=TEXTS),
        documents=pa.record_batch(
            [
                pa.array([each.id for each in documents], pa.string()),
                pa.array(metadata, pa.large_string()),
            ],
            schema=DOCUMENTS,
        ),
        entries=entries_of([each.metadata for each in documents]),
        keys=keys,
    )


def stored(
    settings: IndexSettings, ranges: Int8Ranges | None, vectors: NDArray[np.float32]
) -> NDArray[Any] | None:
    """Return vectors in the precision kept for rescoring.

    Args:
        settings: The index's.
        ranges: Int8 ranges, if rescoring is int8.
        vectors: (rows, dim) unit vectors.

    Returns:
        (rows, dim) numbers, or None where the index keeps none.
    """
    if settings.rescore == "none":
        return None
    return (
        vectors.astype(RESCORE_TYPES[settings.rescore])
        if ranges is None
        else ranges.encode(vectors)
    )


def canonical(document: Document) -> str:
    """Return a document's metadata as JSON with sorted keys.

    Args:
        document: Any document.

    Returns:
        One line.
    """
    return json.dumps(dict(document.metadata), ensure_ascii=False, sort_keys=True, allow_nan=False)


def key_of(text: str) -> int:
    """Return the 64-bit hash by which an id is looked up.

    Args:
        text: The id.

    Returns:
        0 to 2**64 - 1.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def content_of(document: Document, metadata: str) -> int:
    """Return the 64-bit hash by which a changed document is recognised.

    Args:
        document: The document.
        metadata: Its metadata as `canonical` returns it.

    Returns:
        0 to 2**64 - 1.
    """
    return key_of(f"{len(document.text)} {document.text}{metadata}")


def write_segment(
    folder: Path, settings: IndexSettings, blocks: Iterable[SegmentBlock], rows: int, documents: int
) -> None:
    """Write the files of a segment; memory is bounded by the largest block and the keys.

    Args:
        folder: An empty folder.
        settings: The index's.
        blocks: The documents, in order.
        rows: Passages in all blocks.
        documents: Documents in all blocks.
    """
    keys = np.empty((3, documents), np.uint64)
    at = 0
    with ExitStack() as files:
        codes = files.enter_context(
            array_writer(folder / "codes.npy", np.uint8, (rows, settings.code_bytes))
        )
        if settings.rescore != "none":
            kept = RESCORE_TYPES[settings.rescore], (rows, settings.dim)
            vectors = files.enter_context(array_writer(folder / "vectors.npy", *kept))
        places = files.enter_context(array_writer(folder / "places.npy", np.int64, (rows, 3)))
        texts = files.enter_context(table_writer(folder / "texts.arrow", TEXTS))
        names = files.enter_context(table_writer(folder / "documents.arrow", DOCUMENTS))
        entries = files.enter_context(table_writer(folder / "entries.arrow", ENTRIES))
        for block in blocks:
            codes(block.codes)
            if block.vectors is not None:
                vectors(block.vectors)
            places(block.places + np.array([at, 0, 0]))
            texts(block.texts)
            names(block.documents)
            entries(renumbered(block.entries, block.entries["document"].to_numpy() + at))
            end = at + block.documents.num_rows
            keys[:, at:end] = block.keys
            keys[2, at:end] += np.uint64(at)
            at = end
    assert at == documents
    write_array(folder / "keys.npy", keys[:, np.argsort(keys[0], kind="stable")])
