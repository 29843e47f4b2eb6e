"""Migration: maps recover what made the spaces differ, recall decides, the way back is open."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny
from helpers.search_fakes import FakeEncoder

from taskdistill.cli.main import run as command
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.folders import read_manifest
from taskdistill.model.folder import write_model
from taskdistill.quantization import normalize
from taskdistill.search.alignment.maps import (
    AlignedEncoder,
    AlignmentMap,
    fit_maps,
    held_out_cosine,
    load_map,
    low_rank,
    procrustes,
)
from taskdistill.search.alignment.migration import (
    Migration,
    calibrate,
    count_to_migrate,
    read_migration,
    recall_retention,
    recalls,
    sample_pairs,
    set_state,
    unit_stored_vectors,
    write_migration,
)
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.devset import DevSet
from taskdistill.search.index import Index
from taskdistill.search.settings import StorageOptions

TOPICS = {name: words.split() for name, words in tiny.TOPICS.items()}


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    return normalize(np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32))


class Turned(FakeEncoder):
    """The fake encoder in another space: turned, so that a rotation brings it back."""

    def __init__(self, **kw):
        super().__init__(space_id="space-b", model_hash="hash-b", name="turned", **kw)
        self.turn = np.linalg.qr(
            np.random.default_rng(3).standard_normal((self.embedding_dim, self.embedding_dim))
        )[0]

    def encode(self, texts, **kw):
        return (super().encode(texts, **kw) @ self.turn).astype(np.float32)


def documents(count: int = 160) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(f"d{n}", tiny.sentence(list(TOPICS)[n % 8], rng, 9)) for n in range(count)]


@pytest.fixture
def old(tmp_path):
    return build_index(
        FakeEncoder(),
        documents(),
        tmp_path / "old",
        task=None,
        storage=StorageOptions(rescore="float32"),
    )[0]


def test_procrustes_recovers_a_rotation_and_one_into_more_dimensions():
    new = unit(300, 16, 1)
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((16, 16)))[0].astype(np.float32)
    assert held_out_cosine(
        procrustes(new[:200], new[:200] @ turn), new[200:], new[200:] @ turn
    ) == pytest.approx(1, abs=1e-5)
    wide = np.hstack([new @ turn, np.zeros((300, 8), np.float32)])
    mapping = procrustes(new, wide)
    assert (mapping.source_dim, mapping.target_dim) == (16, 24) and held_out_cosine(
        mapping, new, wide
    ) == pytest.approx(1, abs=1e-5)


def test_low_rank_recovers_an_affine_map_that_no_rotation_is():
    new = unit(400, 12, 1)
    old = normalize(
        new
        @ (
            np.random.default_rng(2).standard_normal((12, 3))
            @ np.random.default_rng(4).standard_normal((3, 10))
        )
        + 0.5
    )
    assert np.linalg.matrix_rank(low_rank(new, old, 3, 1e-4).arrays["matrix"], tol=1e-4) == 3
    best = {each.map.kind: each.cosine for each in fit_maps(new, old.astype(np.float32))}
    assert best["low-rank"] > best["procrustes"] + 0.05


def test_the_residual_network_learns_what_no_linear_map_can():
    new = unit(1500, 8, 1)
    old = normalize(np.hstack([new, 2 * np.abs(new)])).astype(np.float32)
    fitted = fit_maps(new, old)
    scores = {each.map.kind: each.cosine for each in fitted}
    assert fitted[0].map.kind == "residual" and scores["residual"] > scores["low-rank"] + 0.02
    again = fit_maps(new, old, kind="residual")[0]
    assert again.cosine == scores["residual"]


def test_too_few_texts_and_unknown_maps_are_refused():
    with pytest.raises(BadInput, match="50 texts are too few"):
        fit_maps(unit(50, 4, 0), unit(50, 4, 1))
    with pytest.raises(BadInput, match="unknown map 'affine'"):
        fit_maps(unit(200, 4, 0), unit(200, 4, 1), kind="affine")


def test_recall_kept_is_a_ratio_with_its_interval():
    retention = recall_retention(np.array([1.0, 1.0, 0.5, 0.0]), np.array([1.0, 0.5, 0.5, 0.0]))
    assert (retention.old, retention.mapped, retention.queries) == (
        0.625,
        0.5,
        4,
    ) and retention.share == pytest.approx(0.8)
    assert retention.low <= 0.8 <= retention.high
    same = recall_retention(np.ones(5), np.ones(5))
    assert (same.share, same.low, same.high) == (1, 1, 1)


def test_a_new_model_finds_through_the_map_what_the_old_one_finds(old):
    new = Turned()
    new_vectors, old_vectors = sample_pairs(
        old, new, task=None, count=150, seed=1, progress=lambda *_: None
    )
    assert new_vectors.shape == old_vectors.shape == (150, 64)
    mapping = fit_maps(new_vectors, old_vectors, seed=1)[0]
    queries = {f"q{n}": " ".join(each.text.split()[:4]) for n, each in enumerate(documents()[:40])}
    qrels = {f"q{n}": {f"d{n}": 1} for n in range(40)}
    mapped = AlignedEncoder(new, mapping.map, space_id="space-a", model_hash="hash-b", task=None)
    before, after = (
        recalls(old, FakeEncoder(), queries, qrels),
        recalls(old, mapped, queries, qrels),
    )
    assert before.mean() > 0.5 and recall_retention(before, after).share > 0.97
    blind = AlignedEncoder(
        new,
        AlignmentMap(
            "none", {"matrix": np.eye(64, dtype=np.float32), "bias": np.zeros(64, np.float32)}
        ),
        space_id="space-a",
        model_hash="hash-b",
        task=None,
    )
    assert recall_retention(before, recalls(old, blind, queries, qrels)).share < 0.5
    with pytest.raises(BadInput, match="fitted to a model of hash hash-b"):
        AlignedEncoder(
            FakeEncoder(), mapping.map, space_id="space-a", model_hash="hash-b", task=None
        )


def test_stored_vectors_of_int8_are_decoded(tmp_path):
    index = build_index(
        FakeEncoder(),
        documents(40),
        tmp_path / "i",
        task=None,
        storage=StorageOptions(rescore="int8"),
    )[0]
    fitted = unit_stored_vectors(index.snapshot, index.snapshot.rows())
    exact = normalize(FakeEncoder().encode([each.text for each in documents(40)]))
    assert (fitted * exact).sum(1).min() > 0.99
    bare = build_index(
        FakeEncoder(),
        documents(40),
        tmp_path / "b",
        task=None,
        storage=StorageOptions(rescore="none"),
    )[0]
    with pytest.raises(BadInput, match="binary codes only"):
        unit_stored_vectors(bare.snapshot, bare.snapshot.rows())


def migration(old, path, into) -> Migration:
    new = Turned()
    new_vectors, old_vectors = sample_pairs(
        old, new, task=None, count=160, seed=1, progress=lambda *_: None
    )
    mapping = fit_maps(new_vectors, old_vectors, kind="procrustes", seed=1)[0].map
    meta = {
        "state": "both",
        "old_index": str(old.path),
        "new_index": str(into),
        "old_space": "space-a",
        "model_hash": "hash-b",
        "task": None,
    }
    write_migration(
        path, mapping, meta | {"calibration": list(calibrate(mapping, new_vectors, old_vectors))}
    )
    return read_migration(path)


def test_both_spaces_are_searched_as_one_while_documents_move(old, tmp_path):
    read, new = migration(old, tmp_path / "m", tmp_path / "new"), Turned()
    slope, intercept = read.meta["calibration"]
    assert slope == pytest.approx(1, abs=0.05) and intercept == pytest.approx(0, abs=0.05)
    query = documents()[3].text
    alone = [hit.id for hit in read.search(query, 10, old=old, new=None, encoder=new)]
    assert alone[0] == "d3"
    moved, _ = build_index(
        new,
        documents()[:80],
        tmp_path / "new",
        task=None,
        storage=StorageOptions(rescore="float32"),
    )
    both = read.search(query, 10, old=old, new=moved, encoder=new)
    assert both[0].id == "d3" and len({hit.id for hit in both}) == 10
    assert {hit.id for hit in both} == set(alone)
    assert count_to_migrate(old, moved) == 80 and count_to_migrate(old, None) == 160
    old.delete(["d100"])
    assert count_to_migrate(old, moved) == 79


def test_the_way_on_waits_for_every_document_and_the_way_back_is_open(old, tmp_path):
    read, new = migration(old, tmp_path / "m", tmp_path / "new"), Turned()
    moved, _ = build_index(
        new,
        documents()[:80],
        tmp_path / "new",
        task=None,
        storage=StorageOptions(rescore="float32"),
    )
    with pytest.raises(WorkFailed, match=r"80 of 160 documents .* are not in the new index yet"):
        set_state(read, "new", old, moved)
    assert read_migration(tmp_path / "m").state == "both"
    set_state(read, "old", old, moved)
    back = read_migration(tmp_path / "m")
    assert back.state == "old" and [
        hit.id
        for hit in back.search(documents()[3].text, 1, old=old, new=moved, encoder=FakeEncoder())
    ] == ["d3"]
    build_index(
        new, documents(), tmp_path / "new", task=None, storage=StorageOptions(rescore="float32")
    )
    moved.refresh()
    set_state(back, "new", old, moved)
    done = read_migration(tmp_path / "m")
    assert (
        done.state == "new"
        and done.search(documents()[5].text, 1, old=None, new=moved, encoder=new)[0].id == "d5"
    )
    set_state(done, "both", old, moved)
    assert read_manifest(tmp_path / "m")["state"] == "both"
    with pytest.raises(BadInput, match="unknown state 'neww'; did you mean 'new'"):
        set_state(done, "neww", old, moved)


def test_a_damaged_map_is_refused(old, tmp_path):
    migration(old, tmp_path / "m", tmp_path / "new")
    data = bytearray((tmp_path / "m/map.npz").read_bytes())
    data[200] ^= 1
    (tmp_path / "m/map.npz").write_bytes(data)
    with pytest.raises(BadInput, match="is damaged"):
        read_migration(tmp_path / "m")
    np.savez(tmp_path / "map.npz", matrix=np.eye(2))
    with pytest.raises(BadInput, match="instead of finite numbers of a map"):
        load_map(tmp_path, "procrustes")


def test_a_dev_set_must_be_of_the_index(old):
    assert DevSet([], {"a": "x", "b": "y"}, {"a": {"d1": 1}, "b": {"other": 1}}).judged_over(
        old.snapshot
    ) == {"a": "x"}
    with pytest.raises(BadInput, match="no query of the dev set has its relevant documents"):
        DevSet([], {"a": "x"}, {"a": {"other": 1}}).judged_over(old.snapshot)


def write_named(folder: Path, seed: int) -> Path:
    """Write a random model with the id of its space."""
    mapping = tiny.model(
        tiny.student(seed=seed),
        tiny.write_tokenizer(folder.with_name(f"{folder.name}-tok")),
        prompts={},
    )
    write_model(folder, mapping)
    return folder


def test_the_commands_fit_measure_refuse_and_search(tmp_path, capsys):
    first, second = (write_named(tmp_path / f"model-{seed}", seed) for seed in (5, 8))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": each.id, "text": each.text}) + "\n" for each in documents(120))
    )
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "corpus.jsonl").write_text(corpus.read_text())
    (dev / "queries.jsonl").write_text(
        "".join(
            json.dumps({"_id": f"q{n}", "text": documents(120)[n].text}) + "\n" for n in range(30)
        )
    )
    (dev / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(30))
    )
    assert command(["index", str(first), str(corpus), "--out", str(tmp_path / "i"), "--quiet"]) == 0
    words = [
        "migrate",
        str(tmp_path / "i"),
        str(second),
        "--dev",
        str(dev),
        "--into",
        str(tmp_path / "n"),
    ]
    assert command([*words, "--out", str(tmp_path / "no"), "--threshold", "1.5"]) == 1
    assert "nothing was written" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert (
        command(
            [
                *words,
                "--out",
                str(tmp_path / "m"),
                "--threshold",
                "0",
                "--json",
                str(tmp_path / "told.json"),
            ]
        )
        == 0
    )
    result = json.loads((tmp_path / "told.json").read_text())
    assert (
        set(result["cosines"]) == {"procrustes", "low-rank", "residual"}
        and result["recall"]["queries"] == 30
        and result["sample"] == 120
    )
    assert (
        command(["index", str(second), str(corpus), "--out", str(tmp_path / "n"), "--quiet"]) == 0
    )
    capsys.readouterr()
    assert command(["search", str(tmp_path / "m"), documents(120)[7].text, "-k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert command(["search", str(tmp_path / "m"), "x", "--hybrid"]) == 2
    assert command(["migrate", "state", str(tmp_path / "m"), "--to", "new"]) == 0
    assert "120 of 120 documents" in capsys.readouterr().out
    assert command([*words[:2], str(first), *words[3:], "--out", str(tmp_path / "same")]) == 2
    assert "of the space of" in capsys.readouterr().err
    assert Index.open(tmp_path / "i").documents == 120
