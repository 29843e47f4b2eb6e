"""An index for other engines: vectors, a schema with binary codes, rescoring as measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.io.folders import write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.quantization import normalize
from taskdistill.search.index import Index
from taskdistill.search.ranking import OVERSAMPLE
from taskdistill.search.storage.snapshot import Hit, Snapshot

BATCH = 4096
"""Passages held in memory at a time."""

TOP_K = 10
"""Passages of the queries that are written."""

MIN_EF_SEARCH, MAX_EF_SEARCH = 40, 1000
"""pgvector's default list of a graph search, and the largest that it keeps."""

MAX_OVERSAMPLE = 10
"""The largest factor that Elasticsearch's mapping takes."""

MIN_BBQ_DIM = 64
"""The fewest dimensions that Elasticsearch quantizes to bits."""

LANCE_ROWS = 256
"""Rows from which LanceDB trains an index."""

QUERY_VECTOR = "a list of numbers of length one"

COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
"""Of the text format of PostgreSQL's COPY."""


@dataclass(frozen=True)
class DatabaseSchema:
    """What the files of an engine are written from."""

    name: str
    """Of the table, collection or index."""
    dim: int
    oversample: int

    @property
    def candidates(self) -> int:
        """Passages that are rescored for the passages that are returned."""
        return TOP_K * self.oversample

    def fill(self, template: str) -> str:
        """Put the numbers into a file of `loaders/`."""
        text = (files("taskdistill.export") / "loaders" / f"{template}.txt").read_text("utf-8")
        values = {
            "name": self.name,
            "dim": self.dim,
            "top_k": TOP_K,
            "candidates": self.candidates,
            "ef_search": min(MAX_EF_SEARCH, max(MIN_EF_SEARCH, self.candidates)),
        }
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        return text


@dataclass(frozen=True)
class IndexRecords:
    """Some consecutive passages of an index."""

    first: int
    """Number of the first one."""
    hits: list[Hit]
    vectors: NDArray[np.float32]
    """`(passages, dim)`, unit rows."""


def export_index(
    path: Path,
    format_name: str,
    out: Path,
    *,
    name: str = "passages",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write an index for another engine.

    `out`: folder to write; it must not exist. `name`: of the table, collection or index; lower-case
    letters, digits and underscores. `progress`: called with the passages written and their number.
    Returns plain data: passages, dimensions, the oversampling factor and whether it was measured,
    files. Raises BadInput if the engine is unknown, the index keeps no vectors or is empty, or the
    name would have to be quoted.
    """
    if format_name not in ENGINES:
        raise BadInput(f"unknown format {format_name!r}{did_you_mean(format_name, ENGINES)}")
    if not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise BadInput(
            f"the name {name!r} would have to be quoted; give lower-case letters, digits and "
            "underscores"
        )
    index = Index.open(path)
    settings, tuned = index.settings, index.snapshot.manifest.search.oversample
    if settings.rescore == "none":
        raise BadInput(
            f"{path} keeps binary codes only (rescore none), which no engine can rescore; build it "
            "with --rescore-precision int8 or float16"
        )
    if index.snapshot.live_count == 0:
        raise BadInput(f"{path} holds no documents; add some first")
    schema = DatabaseSchema(name, settings.dim, OVERSAMPLE if tuned is None else tuned)
    summary: dict[str, Any] = {
        "format": format_name,
        "passages": index.snapshot.live_count,
        "dim": settings.dim,
        "oversample": schema.oversample,
        "oversample_is_measured": tuned is not None,
        "model": settings.model,
        "space_id": settings.space_id,
        "task": settings.task,
        "query_prompt": settings.query_prompt,
        "vectors_from": settings.rescore,
    }
    make_texts, write_records = ENGINES[format_name]
    texts = make_texts(schema)
    inputs = {"model": settings.model_hash}
    with write_folder(out, "engine-export", meta=summary, inputs=inputs) as folder:
        write_records(folder, _records(index.snapshot, progress), settings.dim)
        for file, text in texts.items():
            (folder / file).write_text(text, "utf-8")
        summary["files"] = sorted(file.name for file in folder.iterdir())
    return summary


def _records(
    snapshot: Snapshot, progress: Callable[[int, int], None] | None
) -> Iterator[IndexRecords]:
    """Read the live passages; numbers count from 0 in the order of the index."""
    rows = snapshot.rows()
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        vectors = normalize(snapshot.float_vectors(part))
        yield IndexRecords(start, snapshot.hits(part), vectors)
        if progress is not None:
            progress(start + len(part), len(rows))


def _write_parquet(folder: Path, records: Iterator[IndexRecords], dim: int) -> None:
    """Vectors are a fixed-size list of float32."""
    columns = {
        "id": pa.int64(),
        "document": pa.string(),
        "start": pa.int64(),
        "end": pa.int64(),
        "text": pa.large_string(),
        "metadata": pa.large_string(),
        "vector": pa.list_(pa.float32(), dim),
    }
    schema = pa.schema(list(columns.items()))
    with pq.ParquetWriter(folder / "points.parquet", schema) as writer:
        for batch in records:
            hits = batch.hits
            cells: list[list[Any]] = [
                list(range(batch.first, batch.first + len(hits))),
                [hit.id for hit in hits],
                [hit.start for hit in hits],
                [hit.end for hit in hits],
                [hit.text for hit in hits],
                [_json(hit.metadata) for hit in hits],
            ]
            arrays = [pa.array(*pair) for pair in zip(cells, columns.values(), strict=False)]
            flat = pa.array(batch.vectors.reshape(-1), pa.float32())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, dim))
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _write_copy(folder: Path, records: Iterator[IndexRecords], dim: int) -> None:
    """Tabs between columns, a line a row, as PostgreSQL's COPY reads it."""
    with (folder / "points.tsv").open("w", encoding="utf-8", newline="\n") as stream:
        for number, hit, vector in _rows(records):
            cells = (
                str(number),
                hit.id,
                str(hit.start),
                str(hit.end),
                hit.text,
                _json(hit.metadata),
                f"[{','.join(f'{value:.9g}' for value in vector)}]",
            )
            stream.write("\t".join(cell.translate(COPY_ESCAPES) for cell in cells) + "\n")


def _write_bulk(folder: Path, records: Iterator[IndexRecords], dim: int) -> None:
    """An action and a document, a line each, as the body of Elasticsearch's bulk request."""
    with (folder / "points.ndjson").open("w", encoding="utf-8", newline="\n") as stream:
        for number, hit, vector in _rows(records):
            body = {
                "document": hit.id,
                "start": hit.start,
                "end": hit.end,
                "text": hit.text,
                "metadata": hit.metadata,
                # Nine digits name a float32 exactly, in half the bytes of a float64's.
                "vector": [float(f"{value:.9g}") for value in vector],
            }
            stream.write(_json({"index": {"_id": str(number)}}) + "\n" + _json(body) + "\n")


def _rows(records: Iterator[IndexRecords]) -> Iterator[tuple[int, Hit, list[float]]]:
    """Yield number, passage and vector of each passage."""
    for batch in records:
        numbers = range(batch.first, batch.first + len(batch.hits))
        yield from zip(numbers, batch.hits, batch.vectors.tolist(), strict=True)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _qdrant(schema: DatabaseSchema) -> dict[str, str]:
    collection = {
        "vectors": {"size": schema.dim, "distance": "Dot", "on_disk": True},
        "quantization_config": {"binary": {"always_ram": True}},
        "on_disk_payload": True,
    }
    quantization = {"ignore": False, "rescore": True, "oversampling": float(schema.oversample)}
    query = {
        "query": QUERY_VECTOR,
        "limit": TOP_K,
        "with_payload": True,
        "params": {"quantization": quantization},
    }
    return {
        "collection.json": dump_json(collection),
        "query.json": dump_json(query),
        "load.py": schema.fill("qdrant.py"),
    }


def _lancedb(schema: DatabaseSchema) -> dict[str, str]:
    # Among unit vectors the smallest Euclidean distance is the largest dot product, and RaBitQ
    # estimates it better.
    index = {"index_type": "IVF_RQ", "num_bits": 1, "distance_type": "l2", "least_rows": LANCE_ROWS}
    query = {
        "distance_type": "l2",
        "limit": TOP_K,
        "refine_factor": schema.oversample,
        "nprobes": "a quarter of the partitions, or more",
    }
    return {
        "index.json": dump_json(index),
        "query.json": dump_json(query),
        "load.py": schema.fill("lancedb.py"),
    }


def _pgvector(schema: DatabaseSchema) -> dict[str, str]:
    return {"load.sql": schema.fill("pgvector.sql"), "query.sql": schema.fill("pgvector.query")}


def _elasticsearch(schema: DatabaseSchema) -> dict[str, str]:
    if schema.dim < MIN_BBQ_DIM:
        raise BadInput(
            f"Elasticsearch quantises vectors of at least {MIN_BBQ_DIM} dimensions to bits, the "
            f"index has {schema.dim}"
        )
    # More candidates than the mapping's factor allows come from a larger k.
    factor = min(MAX_OVERSAMPLE, schema.oversample)
    k = -(-schema.candidates // factor)
    vector = {
        "type": "dense_vector",
        "dims": schema.dim,
        "index": True,
        "similarity": "dot_product",
        "index_options": {"type": "bbq_hnsw", "rescore_vector": {"oversample": float(factor)}},
    }
    properties = {
        "document": {"type": "keyword"},
        "start": {"type": "long"},
        "end": {"type": "long"},
        "text": {"type": "text"},
        "metadata": {"type": "flattened"},
        "vector": vector,
    }
    query = {
        "size": TOP_K,
        "_source": {"excludes": ["vector"]},
        "knn": {
            "field": "vector",
            "query_vector": QUERY_VECTOR,
            "k": k,
            "num_candidates": max(k * factor, 100),
        },
    }
    mapping = {"mappings": {"dynamic": "strict", "properties": properties}}
    return {
        "mapping.json": dump_json(mapping),
        "query.json": dump_json(query),
        "load.sh": schema.fill("elasticsearch.sh"),
    }


ENGINES: Mapping[
    str,
    tuple[
        Callable[[DatabaseSchema], dict[str, str]],
        Callable[[Path, Iterator[IndexRecords], int], None],
    ],
] = {
    "qdrant": (_qdrant, _write_parquet),
    "lancedb": (_lancedb, _write_parquet),
    "pgvector": (_pgvector, _write_copy),
    "elasticsearch": (_elasticsearch, _write_bulk),
}
"""Engine to the texts of its files (how to load, how to query) and the writer of its records."""
