"""Search defaults are remembered and followed; a shrunk index answers as one built small would."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.search_fakes import FakeEncoder, filled, ids, numbered, random_vectors, settings

from taskdistill.errors import BadInput
from taskdistill.io.sealed import seal_json
from taskdistill.quantization import Int8Ranges, normalize, pack_bits, truncate
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.prf import PrfSettings
from taskdistill.search.settings import SearchDefaults


def test_searches_follow_the_defaults_unless_they_say_otherwise(tmp_path):
    documents = [Document(f"d{i}", f"subject{i} and some words") for i in range(300)]
    index, _ = build_index(FakeEncoder(noise=4.0), documents, tmp_path / "i")
    index.build_bm25()
    moved = PrfSettings(documents=3, weight=0.5, temperature=0.1)
    index.set_defaults(SearchDefaults(oversample=2, hybrid=True, refinement=moved))
    opened, encoder, queries = (
        Index.open(tmp_path / "i"),
        FakeEncoder(noise=4.0),
        ["subject7", "subject9 words"],
    )
    assert opened.snapshot.manifest.search == SearchDefaults(
        oversample=2, hybrid=True, refinement=moved
    )
    assert opened.describe()["search"] == {
        "oversample": 2,
        "hybrid": True,
        "refinement": vars(moved),
    }

    def searched(**options):
        return [
            [(hit.id, hit.score) for hit in hits]
            for hits in opened.search(queries, 5, encoder=encoder, **options)
        ]

    assert (
        searched()
        == searched(oversample=2, hybrid=True, refinement=moved)
        == searched(refinement=True)
    )
    assert searched() != searched(hybrid=False) and searched() != searched(refinement=False)
    vectors = encoder.encode(queries, prompt_name="query")
    assert ids(opened.search(vectors, 5)[0]) == [name for name, _ in searched(hybrid=False)[0]]
    opened.add([Document("new", "subject1000")], encoder)
    with pytest.raises(BadInput, match="lexical part"):
        opened.search(queries, 5, encoder=encoder)


def test_defaults_that_cannot_be_followed_are_refused(tmp_path):
    index = filled(tmp_path / "i", 20, "none")
    for wrong in (SearchDefaults(oversample=5), SearchDefaults(refinement=PrfSettings())):
        with pytest.raises(BadInput, match="binary codes only"):
            index.set_defaults(wrong)
    with pytest.raises(BadInput, match="oversample is 0"):
        filled(tmp_path / "j", 20).set_defaults(SearchDefaults(oversample=0))


def test_an_index_from_before_there_were_defaults_opens(tmp_path):
    filled(tmp_path / "i", 20)
    file = tmp_path / "i" / "taskdistill.json"
    body = {
        name: each
        for name, each in json.loads(file.read_text()).items()
        if name not in ("sha256", "search")
    }
    file.write_text(seal_json(body))
    assert Index.open(tmp_path / "i").snapshot.manifest.search == SearchDefaults()


@pytest.mark.parametrize(
    ("dim", "rescore"), [(64, "float16"), (40, "float32"), (40, "int8"), (24, "none"), (13, "none")]
)
def test_a_shrunk_index_holds_what_a_small_one_would(tmp_path, dim, rescore):
    index = Index.create(tmp_path / "i", settings("float32"))
    vectors, queries = random_vectors(600), random_vectors(10, seed=1)
    index.add_vectors(numbered(400), vectors[:400], space_id="s")
    index.add_vectors(numbered(200, 400), vectors[400:], space_id="s")
    index.delete(["d5", "d450"])
    index.set_defaults(SearchDefaults(oversample=7, refinement=PrfSettings()))
    index.shrink(dim, rescore)
    opened = Index.open(tmp_path / "i")
    live = np.delete(np.arange(600), [5, 450])
    small = truncate(vectors[live], dim)
    snapshot = opened.snapshot
    assert (opened.settings.dim, opened.settings.rescore, opened.documents) == (dim, rescore, 598)
    assert sum(entry.deleted for entry in snapshot.manifest.segments) == 0
    np.testing.assert_array_equal(
        np.concatenate([each.codes for each in snapshot.segments]), pack_bits(small)
    )
    assert snapshot.manifest.search == (
        SearchDefaults()
        if rescore == "none"
        else SearchDefaults(oversample=7, refinement=PrfSettings())
    )
    if rescore != "none":
        stored = snapshot.vectors(np.arange(598))
        if rescore == "int8":
            assert snapshot.manifest.ranges is not None
            np.testing.assert_allclose(
                snapshot.manifest.ranges.minimum, small.min(axis=0), atol=1e-6
            )
            stored = snapshot.manifest.ranges.decode(stored)
        np.testing.assert_allclose(
            stored, small, atol={"float32": 1e-6, "float16": 1e-3, "int8": 5e-3}[rescore]
        )
        order = np.argsort(-(truncate(queries, dim) @ small.T), axis=1)[:, 0]
        best = [
            hits[0].id
            for hits in opened.search(truncate(queries, dim), 1, oversample=598, refinement=False)
        ]
        assert (
            np.mean([name == f"d{live[row]}" for name, row in zip(best, order, strict=True)]) >= 0.9
        )
    opened.add_vectors([Document("new", "text")], normalize(np.ones((1, dim))), space_id="s")
    assert opened.documents == 599


def test_shrinking_keeps_the_lexical_part_and_reopens_segments_of_int8(tmp_path):
    documents = [Document(f"d{i}", f"subject{i} and words") for i in range(200)]
    index, _ = build_index(FakeEncoder(), documents, tmp_path / "i")
    index.build_bm25()
    ranges = index.snapshot.manifest.ranges
    index.shrink(32, "int8")
    assert (
        index.snapshot.manifest.bm25 is not None
        and isinstance(ranges, Int8Ranges)
        and ranges.dim == 64
    )
    hits = index.search(["subject17"], 1, encoder=FakeEncoder(), hybrid=True)[0]
    assert hits[0].id == "d17"
    generation = index.snapshot.manifest.generation
    index.shrink(32, "int8")
    assert index.snapshot.manifest.generation == generation
    for wrong in ((64, "int8"), (32, "float16")):
        with pytest.raises(BadInput, match="cannot be made from them"):
            index.shrink(*wrong)
    with pytest.raises(BadInput, match="unknown rescore precision 'int9'; did you mean 'int8'"):
        index.shrink(32, "int9")
    assert replace(index.settings, dim=64) == replace(
        settings(), model="fake", model_hash="hash-a", space_id="space-a"
    )
