"""Folders written by earlier versions of every format still load and give the same vectors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.search_fakes import FakeEncoder
from helpers.teacher_fakes import FakeTeacher, stored

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.vectors import VectorFolder
from taskdistill.errors import BadInput
from taskdistill.io.folders import check_folder, read_manifest
from taskdistill.model.folder import read_model
from taskdistill.model.golden import check_golden, embed_with, golden_vectors, read_golden
from taskdistill.search.index import Index
from taskdistill.search.query import query_vectors
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.store import open_store
from taskdistill.train.checkpoint import list_checkpoints, load_checkpoint
from taskdistill.train.phase_folder import load_phase
from taskdistill.workflows.info import describe_folder

KEPT = Path(__file__).parents[1] / "kept"
sys.path.insert(0, str(KEPT))
from write import WORDS, trained  # noqa: E402

MODELS = ("model", "jina-v5", "sentence-transformers", "static")
LAYOUTS = sorted(KEPT.glob("jina-v5-*[0-9]"))


@pytest.mark.parametrize(
    "folder",
    sorted(p for p in KEPT.iterdir() if p.is_dir() and p.name.startswith(MODELS)),
    ids=lambda p: p.name,
)
def test_every_kept_folder_is_whole_and_read(folder):
    assert check_folder(folder, read_manifest(folder)) == []
    model = read_model(folder)
    assert len(model.settings.space_id) == 32
    assert model.module.embedding_dim == 32


@pytest.mark.parametrize("folder", LAYOUTS, ids=lambda p: p.name)
def test_kept_layouts_give_their_golden_vectors(folder):
    golden = json.loads(folder.with_name(f"{folder.name}.golden.json").read_text())
    model = read_model(folder)
    found = check_golden(golden, embed_with(model))
    assert found.keys() == {"base", "retrieval", "clustering"}
    assert min(found.values()) >= 1 - 1e-6
    encoder = Encoder.load(folder, threads=1)
    found = check_golden(
        {**golden, "vectors": {"retrieval": golden["vectors"]["retrieval"]}},
        lambda texts, task: encoder.encode(texts, task=task),
    )
    assert found["retrieval"] >= 1 - 1e-6


@pytest.mark.parametrize(
    "folder", sorted([*KEPT.glob("model-*"), *KEPT.glob("static-*")]), ids=lambda p: p.name
)
def test_kept_models_carry_their_own_golden_vectors(folder):
    golden = read_golden(folder)
    assert golden is not None
    assert min(check_golden(golden, embed_with(read_model(folder))).values()) >= 1 - 1e-6


def test_a_merged_folder_equals_the_adapter_it_was_made_of():
    golden = json.loads((KEPT / "jina-v5-eurobert-1.golden.json").read_text())
    merged = embed_with(read_model(KEPT / "sentence-transformers-1"))(golden["texts"], None)
    assert np.abs(merged - np.array(golden["vectors"]["clustering"])).max() <= 1e-5


def test_golden_vectors_tell_another_model_apart(tmp_path):
    golden = json.loads((KEPT / "jina-v5-eurobert-1.golden.json").read_text())
    other = embed_with(read_model(KEPT / "jina-v5-qwen3-1"))
    assert min(check_golden(golden, other).values()) < 0.9
    with pytest.raises(BadInput, match="belong to another model"):
        check_golden({"texts": golden["texts"], "vectors": {"base": [[1.0, 2.0]]}}, other)
    assert golden_vectors(other, ["retrieval"])["vectors"].keys() == {"base", "retrieval"}
    (tmp_path / "golden.json").write_text("{")
    with pytest.raises(BadInput, match="holds no golden vectors"):
        read_golden(tmp_path)
    assert read_golden(KEPT) is None


def kept(pattern: str) -> list[Path]:
    found = sorted(KEPT.glob(pattern))
    assert found, f"no folder of this format is kept: {pattern}"
    return found


@pytest.mark.parametrize(
    "pattern",
    [
        "teacher-store-*/*",
        "search-index-*",
        "phase-*",
        "shards-*",
        "model-*",
        "static-*",
        "checkpoints-*/step-*",
    ],
)
def test_info_finds_every_kept_folder_whole(pattern):
    for folder in kept(pattern):
        assert describe_folder(folder)["faults"] == [], folder


def test_kept_teacher_stores_give_their_vectors_and_ask_for_none_again():
    for folder in kept("teacher-store-*"):
        teacher = FakeTeacher()
        store = open_store(folder, teacher.identity, "find it: {text}")
        assert len(store) == len(WORDS) and store.missing(WORDS) == []
        assert np.array_equal(store.get(WORDS), stored([f"find it: {word}" for word in WORDS]))
        assert fill_store(store, WORDS, teacher).embedded == 0 and not teacher.seen


def test_kept_checkpoints_and_phases_give_the_weights_and_moments_back():
    expected, made = trained()
    for folder in kept("checkpoints-*"):
        parameters, optimiser = trained()
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.zero_()
        optimiser.state.clear()
        assert (
            load_checkpoint(list_checkpoints(folder)[-1], parameters, optimiser, {"recipe": "kept"})
            == 7
        )
        for name, parameter in parameters.items():
            assert torch.equal(parameter, expected[name])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                assert torch.equal(optimiser.state[parameter][key], made.state[expected[name]][key])
    for folder in kept("phase-*"):
        parameters, _ = trained()
        with torch.no_grad():
            parameters["a"].zero_()
        assert load_phase(
            folder,
            SimpleNamespace(name="stage1", trained=parameters, moving_heads=dict),
            {"recipe": "kept"},
        )
        assert torch.equal(parameters["a"], expected["a"])


def test_kept_indexes_answer():
    for folder in kept("search-index-*"):
        opened = Index.open(folder)
        assert opened.snapshot.live_count == len(WORDS) - 1
        hits = opened.search(query_vectors(opened.settings, FakeEncoder(), ["word 7", "word 3"]), 3)
        assert hits[0][0].id == "d7" and all(hit.id != "d3" for hit in hits[1])


def test_kept_shards_are_the_vectors_of_the_kept_model():
    for folder in kept("shards-*"):
        version = folder.name.removeprefix("shards-")
        vectors = VectorFolder(folder)
        assert len(vectors) == len(WORDS) and vectors.shards == 3
        rows, found = zip(*vectors.blocks(), strict=True)
        assert np.concatenate(rows).tolist() == list(range(len(WORDS)))
        expected = Encoder.load(KEPT / f"model-{version}", threads=1).encode(
            WORDS, task="retrieval"
        )
        assert np.abs(np.concatenate(found) - expected).max() <= 1e-6
