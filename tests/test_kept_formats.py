"""Folders written by earlier versions of every format still load and give the same vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.folders import check_folder, read_manifest
from taskdistill.model.folder import read_model
from taskdistill.model.golden import check_golden, embed_with, golden_vectors, read_golden

KEPT = Path(__file__).parent / "kept"
LAYOUTS = sorted(KEPT.glob("jina-v5-*[0-9]"))


@pytest.mark.parametrize("folder", sorted(p for p in KEPT.iterdir() if (p / "taskdistill.json").is_file()), ids=lambda p: p.name)
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
        {**golden, "vectors": {"retrieval": golden["vectors"]["retrieval"]}}, lambda texts, task: encoder.encode(texts, task=task)
    )
    assert found["retrieval"] >= 1 - 1e-6


@pytest.mark.parametrize("folder", sorted(KEPT.glob("model-*")), ids=lambda p: p.name)
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
