"""An index for other search engines: its vectors, a schema with binary quantisation, and rescoring as it was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.export.index_records import points_of, write_bulk, write_copy, write_parquet
from taskdistill.io.folders import write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.search.index import Index
from taskdistill.search.ranking import OVERSAMPLE

TOP_K = 10
"""Passages of the queries that are written."""

EF_SEARCH = 1000
"""The largest list that pgvector's graph search keeps."""

MOST_OVERSAMPLE = 10
"""The largest factor that Elasticsearch's mapping takes."""

LEAST_BBQ = 64
"""The fewest dimensions that Elasticsearch quantises to bits."""

LANCE_ROWS = 256
"""Rows from which LanceDB trains an index."""


@dataclass(frozen=True)
class DatabaseSchema:
    """What the files of an engine are made of."""

    name: str
    """Of the table, collection or index."""
    dim: int
    oversample: int

    @property
    def candidates(self) -> int:
        """Passages that are rescored for the passages that are returned."""
        return TOP_K * self.oversample

    def fill(self, template: str) -> str:
        """Put the numbers into a file of `loaders/`.

        Args:
            template: Its name.

        Returns:
            The text.
        """
        text = (files("taskdistill.export") / "loaders" / f"{template}.txt").read_text("utf-8")
        values = {
            "name": self.name,
            "dim": self.dim,
            "top_k": TOP_K,
            "candidates": self.candidates,
            "ef_search": min(EF_SEARCH, max(40, self.candidates)),
        }
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        return text


def export_index(
    path: Path,
    format_name: str,
    out: Path,
    *,
    name: str = "passages",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write an index for another engine.

    Args:
        path: The index.
        format_name: One of `ENGINES`.
        out: Folder to write; it must not exist.
        name: Of the table, collection or index; letters, digits and underscores.
        progress: Told the passages written and their number.

    Returns:
        Plain data: passages, dimensions, the oversampling factor and whether it was measured, files.

    Raises:
        BadInput: If the engine is unknown, the index keeps no vectors or is empty, or the name would have to be quoted.
    """
    if format_name not in ENGINES:
        raise BadInput(f"unknown format {format_name!r}{did_you_mean(format_name, ENGINES)}")
    if not (name.isascii() and name.isidentifier() and name == name.lower()):
        raise BadInput(
            f"the name {name!r} would have to be quoted; give lower-case letters, digits and underscores"
        )
    index = Index.open(path)
    settings, tuned = index.settings, index.snapshot.manifest.search.oversample
    if settings.rescore == "none":
        raise BadInput(
            f"{path} keeps binary codes only (rescore none), which no engine can rescore; build it with --rescore-precision int8 or float16"
        )
    if index.snapshot.live_count == 0:
        raise BadInput(f"{path} holds no documents; add some first")
    schema = DatabaseSchema(name, settings.dim, OVERSAMPLE if tuned is None else tuned)
    told = {
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
    with write_folder(
        out, "engine-export", meta=told, inputs={"model": settings.model_hash}
    ) as folder:
        texts = ENGINES[format_name](schema)
        points = points_of(index.snapshot, progress)
        match format_name:
            case "pgvector":
                write_copy(folder / "points.tsv", points)
            case "elasticsearch":
                write_bulk(folder / "points.ndjson", points)
            case _:
                write_parquet(folder / "points.parquet", points, settings.dim)
        for file, text in texts.items():
            (folder / file).write_text(text, "utf-8")
        told["files"] = sorted(file.name for file in folder.iterdir())
    return told


def _qdrant(schema: DatabaseSchema) -> dict[str, str]:
    collection = {
        "vectors": {"size": schema.dim, "distance": "Dot", "on_disk": True},
        "quantization_config": {"binary": {"always_ram": True}},
        "on_disk_payload": True,
    }
    query = {
        "query": "a list of numbers of length one",
        "limit": TOP_K,
        "with_payload": True,
        "params": {
            "quantization": {
                "ignore": False,
                "rescore": True,
                "oversampling": float(schema.oversample),
            }
        },
    }
    return {
        "collection.json": dump_json(collection),
        "query.json": dump_json(query),
        "load.py": schema.fill("qdrant.py"),
    }


def _lancedb(schema: DatabaseSchema) -> dict[str, str]:
    """Among vectors of length one the smallest Euclidean distance is the largest dot product, and RaBitQ estimates it better."""
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
    if schema.dim < LEAST_BBQ:
        raise BadInput(
            f"Elasticsearch quantises vectors of at least {LEAST_BBQ} dimensions to bits, the index has {schema.dim}"
        )
    factor = min(MOST_OVERSAMPLE, schema.oversample)
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
            "query_vector": "a list of numbers of length one",
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


ENGINES: Mapping[str, Callable[[DatabaseSchema], dict[str, str]]] = {
    "qdrant": _qdrant,
    "lancedb": _lancedb,
    "pgvector": _pgvector,
    "elasticsearch": _elasticsearch,
}
"""Engine to the texts of its files: how to load, and how to ask."""
