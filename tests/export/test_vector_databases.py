"""An index for other engines: the engines that are installed load the files and agree with it.

Qdrant and LanceDB run embedded where their packages are installed. PostgreSQL with pgvector 0.7 or
later is used at the address in TASKDISTILL_TEST_POSTGRES, such as `host=/var/run/postgresql
dbname=test`. Elasticsearch is not run: its mapping is compared with what is documented of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.search_fakes import numbered, random_vectors, settings

from taskdistill.cli.main import run
from taskdistill.errors import BadInput
from taskdistill.export.vector_databases import export_index
from taskdistill.io.folders import check_folder, read_manifest
from taskdistill.quantization import normalize
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.settings import SearchDefaults

ODD = Document(
    "tab\there",
    'a line\nbreak, a "quote", a back\\slash and \u2028',
    {"tags": ["x", "y"], "deep": {"é": 1}},
)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = Index.create(tmp_path_factory.mktemp("engines") / "index", settings("float16"))
    vectors = random_vectors(801)
    index.add_vectors([*numbered(800), ODD], vectors, space_id="s")
    index.delete(["d3", "d700"])
    index.set_defaults(SearchDefaults(oversample=40))
    return index


NOISE = np.random.default_rng(1).standard_normal((20, 64))
QUERIES = normalize(random_vectors(801)[:20] + 0.08 * NOISE)


def expected(index):
    return [
        [(hit.id, hit.start) for hit in hits] for hits in index.search(QUERIES, 10, oversample=800)
    ]


def overlap(results, index):
    return float(
        np.mean(
            [
                len(set(exact) & set(engine)) / 10
                for exact, engine in zip(expected(index), results, strict=True)
            ]
        )
    )


def load(folder, *argv):
    done = subprocess.run(
        [sys.executable, "load.py", *map(str, argv)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(module):
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"{module} is not installed"
    )


def test_the_points_are_the_live_passages_with_unit_vectors(index, tmp_path):
    summary = export_index(index.path, "qdrant", tmp_path / "out", name="notes")
    assert (
        summary["passages"],
        summary["dim"],
        summary["oversample"],
        summary["oversample_is_measured"],
    ) == (
        799,
        64,
        40,
        True,
    )
    assert check_folder(tmp_path / "out", read_manifest(tmp_path / "out", "engine-export")) == []
    rows = pq.read_table(tmp_path / "out" / "points.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(range(799)) and "d3" not in {
        row["document"] for row in rows
    }
    assert (
        rows[-1]["document"] == ODD.id
        and rows[-1]["text"] == ODD.text
        and json.loads(rows[-1]["metadata"]) == dict(ODD.metadata)
    )
    live = np.delete(random_vectors(801), [3, 700], axis=0)
    vectors = np.array([row["vector"] for row in rows], np.float32)
    np.testing.assert_allclose(vectors, live, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    query = json.loads((tmp_path / "out" / "query.json").read_text())
    assert query["params"]["quantization"] == {
        "ignore": False,
        "rescore": True,
        "oversampling": 40.0,
    }
    assert json.loads((tmp_path / "out" / "collection.json").read_text())[
        "quantization_config"
    ] == {"binary": {"always_ram": True}}


def test_the_text_format_of_copy_is_escaped(index, tmp_path):
    export_index(index.path, "pgvector", tmp_path / "out")
    lines = (tmp_path / "out" / "points.tsv").read_text("utf-8").split("\n")
    assert (
        len(lines) == 800 and lines[-1] == "" and all(line.count("\t") == 6 for line in lines[:-1])
    )
    cells = lines[798].split("\t")
    assert (
        cells[1] == "tab\\there"
        and cells[4] == 'a line\\nbreak, a "quote", a back\\\\slash and \u2028'
    )
    query = (tmp_path / "out" / "query.sql").read_text()
    assert (
        "bit(64)" in query
        and "LIMIT 400" in query
        and "hnsw.ef_search = 400" in query
        and "@" not in query
    )


def test_elasticsearchs_mapping_is_as_documented(index, tmp_path):
    """bbq_hnsw takes 64 dimensions or more, oversample 1 to 10, k <= num_candidates <= 10,000."""
    export_index(index.path, "elasticsearch", tmp_path / "out")
    vector = json.loads((tmp_path / "out" / "mapping.json").read_text())["mappings"]["properties"][
        "vector"
    ]
    assert (vector["type"], vector["dims"], vector["similarity"]) == (
        "dense_vector",
        64,
        "dot_product",
    )
    assert vector["index_options"] == {"type": "bbq_hnsw", "rescore_vector": {"oversample": 10.0}}
    knn = json.loads((tmp_path / "out" / "query.json").read_text())["knn"]
    assert (knn["k"], knn["num_candidates"]) == (40, 400)
    lines = (tmp_path / "out" / "points.ndjson").read_text("utf-8").split("\n")[:-1]
    assert len(lines) == 2 * 799 and json.loads(lines[0]) == {"index": {"_id": "0"}}
    body = json.loads(lines[-1])
    assert (
        body["document"] == ODD.id
        and body["metadata"] == dict(ODD.metadata)
        and len(body["vector"]) == 64
    )
    assert abs(np.linalg.norm(body["vector"]) - 1) < 1e-4
    done = subprocess.run(
        ["sh", "-n", str(tmp_path / "out" / "load.sh")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    small = Index.create(tmp_path / "small", settings(dim=32))
    small.add_vectors(numbered(3), random_vectors(3, dim=32), space_id="s")
    with pytest.raises(BadInput, match="at least 64 dimensions"):
        export_index(small.path, "elasticsearch", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_exported_is_refused(index, tmp_path, capsys):
    codes = Index.create(tmp_path / "codes", settings("none"))
    with pytest.raises(BadInput, match="binary codes only"):
        export_index(codes.path, "qdrant", tmp_path / "out")
    with pytest.raises(BadInput, match="holds no documents"):
        export_index(Index.create(tmp_path / "empty", settings()).path, "qdrant", tmp_path / "out")
    with pytest.raises(BadInput, match="would have to be quoted"):
        export_index(index.path, "pgvector", tmp_path / "out", name="drop table; --")
    assert (
        run(["export", str(index.path), "--format", "qdrnt", "--out", str(tmp_path / "out")]) == 2
    )
    assert "did you mean 'qdrant'?" in capsys.readouterr().err
    assert (
        run(
            [
                "export",
                str(index.path),
                "--format",
                "qdrant",
                "--task",
                "retrieval",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "--task retrieval has no effect" in capsys.readouterr().err
    assert (
        run(
            [
                "export",
                str(index.path),
                "--format",
                "lancedb",
                "--out",
                str(tmp_path / "out"),
                "--quiet",
            ]
        )
        == 0
    )
    assert (
        "799 passages of 64 dimensions; 40 candidates rescored a passage (as tuned)"
        in capsys.readouterr().out
    )


@needs("qdrant_client")
def test_qdrant_loads_it_and_finds_the_same(index, tmp_path):
    from qdrant_client import QdrantClient, models

    export_index(index.path, "qdrant", tmp_path / "out")
    assert load(tmp_path / "out", tmp_path / "db") == "799 points\n"
    spec = json.loads((tmp_path / "out" / "query.json").read_text())
    client = QdrantClient(path=str(tmp_path / "db"))
    parameters = models.SearchParams(**spec["params"])
    results = [
        client.query_points(
            "passages", query=query.tolist(), limit=10, search_params=parameters
        ).points
        for query in QUERIES
    ]
    assert (
        overlap(
            [[(p.payload["document"], p.payload["start"]) for p in points] for points in results],
            index,
        )
        == 1.0
    )
    odd = client.scroll(
        "passages",
        models.Filter(
            must=[models.FieldCondition(key="document", match=models.MatchValue(value=ODD.id))]
        ),
    )
    assert odd[0][0].payload["text"] == ODD.text and odd[0][0].payload["metadata"] == dict(
        ODD.metadata
    )
    client.close()


@needs("lancedb")
def test_lancedb_loads_it_and_finds_the_same(index, tmp_path):
    import lancedb

    export_index(index.path, "lancedb", tmp_path / "out")
    assert load(tmp_path / "out", tmp_path / "db") == "799 rows indexed\n"
    spec = json.loads((tmp_path / "out" / "query.json").read_text())
    table = lancedb.connect(str(tmp_path / "db")).open_table("passages")
    results = [
        table.search(query)
        .distance_type(spec["distance_type"])
        .nprobes(1000)
        .refine_factor(spec["refine_factor"])
        .limit(10)
        .to_list()
        for query in QUERIES
    ]
    assert (
        overlap([[(row["document"], row["start"]) for row in rows] for rows in results], index)
        >= 0.98
    )
    row = table.search().where("document = 'tab\there'").to_list()[0]
    assert row["text"] == ODD.text and json.loads(row["metadata"]) == dict(ODD.metadata)


ADDRESS = os.environ.get("TASKDISTILL_TEST_POSTGRES")


@needs("psycopg")
@pytest.mark.skipif(
    ADDRESS is None, reason="TASKDISTILL_TEST_POSTGRES names no PostgreSQL with pgvector"
)
def test_pgvector_loads_it_and_finds_the_same(index, tmp_path):
    import psycopg

    export_index(index.path, "pgvector", tmp_path / "out", name="engine_test")
    with psycopg.connect(ADDRESS, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS engine_test")
    command = ["psql", "-v", "ON_ERROR_STOP=1", "-q", "-f", "load.sql", ADDRESS]
    done = subprocess.run(
        command, cwd=tmp_path / "out", capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    with psycopg.connect(ADDRESS, autocommit=True) as connection:
        connection.execute((tmp_path / "out" / "query.sql").read_text())
        connection.execute("SET enable_seqscan = off")
        plan = "\n".join(
            row[0]
            for row in connection.execute(
                f"EXPLAIN EXECUTE nearest('{QUERIES[0].tolist()}')"
            ).fetchall()
        )
        assert "Index Scan using engine_test_codes" in plan, plan
        results = [
            connection.execute(f"EXECUTE nearest('{query.tolist()}')").fetchall()
            for query in QUERIES
        ]
        assert overlap([[(row[0], row[1]) for row in rows] for rows in results], index) >= 0.98
        best = index.search(QUERIES[:1], 1)[0][0]
        assert abs(results[0][0][4] - best.score) < 1e-3
        text, metadata = connection.execute(
            "SELECT text, metadata FROM engine_test WHERE document = %s", (ODD.id,)
        ).fetchone()
        assert text == ODD.text and metadata == dict(ODD.metadata)
        connection.execute("DROP TABLE engine_test")
