from __future__ import annotations

import numpy as np
import pytest
from helpers.search_fakes import FakeEncoder

from taskdistill.errors import BadInput
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.hybrid import Bm25, fuse, tokens
from taskdistill.search.prf import PrfSettings, apply_prf
from taskdistill.search.settings import StorageOptions

ANIMALS = [
    "a cat sat on a mat",
    "the dog barked at the cat",
    "stocks fell in Tokyo",
    "the quick brown fox",
    "Katzen und Hunde",
]


def test_tokens():
    assert tokens("The QUICK-brown ﬁx, 42!") == ["the", "quick", "brown", "fix", "42"]
    assert tokens("我们今天go公园") == ["我们", "们今", "今天", "go", "公园"]
    assert tokens("Straße 日") == ["strasse", "日"]


def test_bm25_scores_are_those_of_the_formula():
    lexical = Bm25.build(ANIMALS)
    rows, scores = lexical.rank("cat dog", 10)
    assert rows.tolist() == [1, 0]
    lengths = np.array([len(tokens(text)) for text in ANIMALS])

    def term(row, holders, k1=1.5, b=0.75):
        idf = np.log(1 + (len(ANIMALS) - holders + 0.5) / (holders + 0.5))
        return idf / (k1 * (1 - b + b * lengths[row] / lengths.mean()) + 1)

    np.testing.assert_allclose(scores, [term(1, 2) + term(1, 1), term(0, 2)], rtol=1e-5)
    assert lexical.rank("nothing known here", 10)[0].tolist() == []
    assert lexical.rank("cat", 10, np.array([True, False, True, True, True]))[0].tolist() == [0]


def test_reciprocal_rank_fusion_is_the_sum_of_reciprocal_ranks():
    rows, scores = fuse([np.array([5, 3, 9]), np.array([3, 7])], 10)
    assert rows.tolist() == [3, 5, 7, 9]
    np.testing.assert_allclose(scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63], rtol=1e-6)
    assert fuse([np.array([5, 3, 9]), np.array([3, 7])], 2)[0].tolist() == [3, 5]
    assert fuse([np.zeros(0, np.int64)], 2)[0].tolist() == []


def test_hybrid_search_finds_what_the_vectors_miss_and_follows_filter_and_changes(tmp_path):
    encoder = FakeEncoder(noise=30.0)  # vectors know almost nothing
    documents = [Document(f"d{i}", f"subject{i} of many", {"even": i % 2 == 0}) for i in range(300)]
    index, _ = build_index(encoder, documents, tmp_path / "i", batch=100)
    with pytest.raises(BadInput, match="no lexical part"):
        index.search(["x"], 1, encoder=encoder, hybrid=True)
    index.build_bm25()
    queries = [f"subject{i}" for i in range(300)]
    assert all(
        f"d{i}" in [hit.id for hit in hits]
        for i, hits in enumerate(index.search(queries, 10, encoder=encoder, hybrid=True))
    )
    filtered = index.search(
        ["subject7", "subject8"], 3, encoder=encoder, hybrid=True, filter="even=true"
    )
    assert filtered[1][0].id == "d8" or "d8" in [hit.id for hit in filtered[1]]
    assert all(hit.metadata["even"] for hits in filtered for hit in hits)
    index.delete(["d7"])
    with pytest.raises(BadInput, match="documents have changed since"):
        index.search(["x"], 1, encoder=encoder, hybrid=True)
    assert not list((tmp_path / "i" / "bm25").iterdir())
    index.build_bm25()
    result = index.search(queries, 10, encoder=encoder, hybrid=True)
    assert all((f"d{i}" in [hit.id for hit in hits]) == (i != 7) for i, hits in enumerate(result))
    with pytest.raises(BadInput, match="vectors were given where texts are needed"):
        index.search(np.ones((1, 64), np.float32), 1, hybrid=True)


def test_the_title_is_searched_too(tmp_path):
    index, _ = build_index(
        FakeEncoder(),
        [Document(f"d{i}", "same text", {"title": f"title{i}"}) for i in range(20)],
        tmp_path / "i",
    )
    index.build_bm25()
    assert index.search(["title13"], 1, encoder=FakeEncoder(), hybrid=True)[0][0].id == "d13"


def test_refinement_is_the_softmax_weighted_centroid():
    query, documents = (
        np.array([1, 0, 0], np.float32),
        np.array([[0.8, 0.6, 0], [0, 0, 1]], np.float32),
    )
    weights = np.exp([0.8 / 0.5, 0.0]) / np.exp([0.8 / 0.5, 0.0]).sum()
    expected = 0.6 * query + 0.4 * (weights[0] * documents[0] + weights[1] * documents[1])
    result = apply_prf(query, documents, PrfSettings(documents=2, weight=0.4, temperature=0.5))
    np.testing.assert_allclose(result, expected / np.linalg.norm(expected), atol=1e-6)
    assert apply_prf(query, documents[:0], PrfSettings()) is query
    np.testing.assert_allclose(
        apply_prf(query, documents[:1], PrfSettings(weight=1.0, temperature=1e-4)),
        documents[0],
        atol=1e-6,
    )
    assert apply_prf(query, -query[None], PrfSettings(weight=0.5)).tolist() == query.tolist()
    for wrong in ({"documents": 0}, {"weight": 0}, {"weight": 1.1}, {"temperature": 0}):
        with pytest.raises(BadInput):
            PrfSettings(**wrong)


def test_refined_search_equals_two_searches(tmp_path):
    encoder = FakeEncoder()
    documents = [Document(f"d{i}", f"topic{i % 5} word{i}") for i in range(100)]
    index, _ = build_index(
        encoder, documents, tmp_path / "i", storage=StorageOptions(rescore="float32")
    )
    vectors, query = encoder.encode([each.text for each in documents]), encoder.encode(["topic3"])
    settings = PrfSettings(documents=4, weight=0.5, temperature=0.1)
    best = np.argsort(-(query[0] @ vectors.T))[:4]
    moved = apply_prf(query[0], vectors[best], settings)
    hits = index.search(["topic3"], 6, encoder=encoder, refinement=settings, oversample=100)[0]
    assert [hit.id for hit in hits] == [f"d{i}" for i in np.argsort(-(moved @ vectors.T))[:6]]
    with pytest.raises(BadInput, match="binary codes only"):
        build_index(encoder, documents, tmp_path / "j", storage=StorageOptions(rescore="none"))[
            0
        ].search(["x"], 1, encoder=encoder, refinement=settings)
