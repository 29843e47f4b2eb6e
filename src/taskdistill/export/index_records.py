"""The passages of an index as points: number, document, place, text, metadata and a float32 vector of length one, in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taskdistill.quantization import normalize
from taskdistill.search.storage.snapshot import Hit, Snapshot

BATCH = 4096
"""Points held at a time."""


@dataclass(frozen=True)
class IndexRecords:
    """Some consecutive points."""

    first: int
    """Number of the first one."""
    hits: list[Hit]
    vectors: NDArray[np.float32]
    """(points, dim), rows of length one."""

    def rows(self) -> Iterator[tuple[int, Hit, NDArray[np.float32]]]:
        """Yield number, passage and vector of each point."""
        for at, (hit, vector) in enumerate(zip(self.hits, self.vectors, strict=True)):
            yield self.first + at, hit, vector


def points_of(
    snapshot: Snapshot, progress: Callable[[int, int], None] | None = None
) -> Iterator[IndexRecords]:
    """Read the live passages of an index; numbers count from 0 in its order.

    Args:
        snapshot: A generation of an index that keeps vectors.
        progress: Told the points read and their number.

    Yields:
        A batch of points.

    Raises:
        BadInput: If the index keeps binary codes only.
    """
    rows, ranges = snapshot.rows(), snapshot.manifest.ranges
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        stored = snapshot.vectors(part)
        vectors = normalize(stored if ranges is None else ranges.decode(stored))
        yield IndexRecords(start, snapshot.hits(part, np.zeros(len(part), np.float32)), vectors)
        if progress is not None:
            progress(start + len(part), len(rows))


def write_parquet(path: Path, points: Iterator[IndexRecords], dim: int) -> None:
    """Write points as a Parquet file with a fixed-size list of float32.

    Args:
        path: File to create.
        points: The points.
        dim: Their dimensions.
    """
    schema = pa.schema(
        [
            ("id", pa.int64()),
            ("document", pa.string()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("text", pa.large_string()),
            ("metadata", pa.large_string()),
            ("vector", pa.list_(pa.float32(), dim)),
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for each in points:
            columns = [
                pa.array(range(each.first, each.first + len(each.hits)), pa.int64()),
                pa.array([hit.id for hit in each.hits], pa.string()),
                pa.array([hit.start for hit in each.hits], pa.int64()),
                pa.array([hit.end for hit in each.hits], pa.int64()),
                pa.array([hit.text for hit in each.hits], pa.large_string()),
                pa.array([_json(hit.metadata) for hit in each.hits], pa.large_string()),
                pa.FixedSizeListArray.from_arrays(
                    pa.array(each.vectors.reshape(-1), pa.float32()), dim
                ),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def write_copy(path: Path, points: Iterator[IndexRecords]) -> None:
    """Write points in the text format of PostgreSQL's COPY: tabs between columns, a line a row.

    Args:
        path: File to create.
        points: The points.
    """
    escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for each in points:
            for number, hit, vector in each.rows():
                numbers = f"[{','.join(f'{value:.9g}' for value in vector.tolist())}]"
                cells = (
                    str(number),
                    hit.id,
                    str(hit.start),
                    str(hit.end),
                    hit.text,
                    _json(hit.metadata),
                    numbers,
                )
                stream.write("\t".join(cell.translate(escapes) for cell in cells) + "\n")


def write_bulk(path: Path, points: Iterator[IndexRecords]) -> None:
    """Write points as the body of Elasticsearch's bulk request: an action and a document, a line each.

    Args:
        path: File to create.
        points: The points.
    """
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for each in points:
            for number, hit, vector in each.rows():
                body: dict[str, Any] = {
                    "document": hit.id,
                    "start": hit.start,
                    "end": hit.end,
                    "text": hit.text,
                    "metadata": hit.metadata,
                    "vector": [float(f"{value:.9g}") for value in vector.tolist()],
                }
                stream.write(_json({"index": {"_id": str(number)}}) + "\n" + _json(body) + "\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
