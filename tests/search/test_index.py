from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.search_fakes import (
    DIM,
    FakeEncoder,
    filled,
    ids,
    numbered,
    random_vectors,
    settings,
)

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.lock import writer_lock
from taskdistill.quantization import Int8Ranges, normalize, pack_bits
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.passages import PassageSettings
from taskdistill.search.settings import StorageOptions
from taskdistill.search.storage import commit


def brute(vectors, queries, top_k):
    scores = queries @ vectors.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize(
    ("rescore", "error"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 2e-2)]
)
def test_rescoring_every_candidate_equals_brute_force(tmp_path, rescore, error):
    index, queries = filled(tmp_path / "i", rescore=rescore), random_vectors(20, seed=1)
    vectors = random_vectors(500)
    if rescore == "int8":
        assert index.snapshot.manifest.ranges is not None
        vectors = index.snapshot.manifest.ranges.decode(
            index.snapshot.manifest.ranges.encode(vectors)
        )
    order, scores = brute(
        vectors.astype(np.float16).astype(np.float32) if rescore == "float16" else vectors,
        queries,
        10,
    )
    result = index.search(queries, 10, oversample=50)
    assert [ids(hits) for hits in result] == [[f"d{i}" for i in row] for row in order]
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in result], scores, atol=1e-5)
    exact = brute(random_vectors(500), queries, 10)[1]
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in result], exact, atol=error)


def test_first_pass_takes_the_nearest_codes_over_all_segments(tmp_path):
    index = Index.create(tmp_path / "i", settings("float32"))
    vectors, queries = random_vectors(900), random_vectors(5, seed=1)
    for start in range(0, 900, 300):
        index.add_vectors(numbered(300, start), vectors[start : start + 300], space_id="s")
    distances = np.array(
        [[np.bitwise_count(a ^ b).sum() for b in pack_bits(vectors)] for a in pack_bits(queries)]
    )
    for query, hits, far in zip(
        queries, index.search(queries, 5, oversample=4), distances, strict=True
    ):
        limit = np.sort(far)[19]
        rows = [int(hit.id[1:]) for hit in hits]
        assert all(far[row] <= limit for row in rows)
        certain = np.flatnonzero(far < limit)
        assert min(hit.score for hit in hits) >= np.sort(vectors[certain] @ query)[-5] - 1e-6
        np.testing.assert_allclose([hit.score for hit in hits], vectors[rows] @ query, atol=1e-6)


def test_binary_codes_alone_score_the_cosine_of_the_signs(tmp_path):
    index, queries, vectors = (
        filled(tmp_path / "i", rescore="none"),
        random_vectors(3, seed=1),
        random_vectors(500),
    )
    signs = np.where(vectors > 0, 1, -1)
    exact = np.sort((np.where(queries > 0, 1, -1) @ signs.T) / DIM, axis=1)[:, ::-1][:, :7]
    np.testing.assert_allclose(
        [[hit.score for hit in hits] for hits in index.search(queries, 7)], exact, atol=1e-6
    )
    with pytest.raises(BadInput, match="oversample has no effect"):
        index.search(queries, 7, oversample=5)


def test_many_queries_equal_one_query_at_a_time(tmp_path):
    index, queries = filled(tmp_path / "i"), random_vectors(300, seed=1)
    assert index.search(queries, 4) == [index.search(query[None], 4)[0] for query in queries]


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True])
def test_top_k_below_one_is_refused(tmp_path, top_k):
    with pytest.raises(BadInput, match="top_k"):
        filled(tmp_path / "i", 10).search(random_vectors(1), top_k)


@pytest.mark.parametrize("rescore", ["int8", "none"])
def test_top_k_above_the_number_of_rows_returns_all(tmp_path, rescore):
    index = filled(tmp_path / "i", 10, rescore)
    assert {hit.id for hit in index.search(random_vectors(1), 10**9)[0]} == {
        f"d{i}" for i in range(10)
    }
    assert index.search(np.zeros((0, DIM), np.float32), 3) == []


def test_an_empty_index_finds_nothing(tmp_path):
    index = Index.create(tmp_path / "i", settings())
    assert index.search(random_vectors(2), 5) == [[], []]
    index.add_vectors(numbered(3), random_vectors(3), space_id="s")
    assert index.delete(["d0", "d1", "d2"]) == 3
    assert index.search(random_vectors(2), 5) == [[], []]
    index.compact()
    assert (index.documents, len(index.snapshot.segments)) == (0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_vectors_without_direction_are_refused(tmp_path, bad):
    index, vectors = filled(tmp_path / "i", 10), random_vectors(3)
    vectors[1] = bad
    with pytest.raises(BadInput, match=r"zero|NaN"):
        index.add_vectors(numbered(3, 50), vectors, space_id="s")
    with pytest.raises(BadInput, match=r"zero|NaN"):
        index.search(vectors, 3)
    assert index.documents == 10


def test_adding_a_known_id_replaces_it(tmp_path):
    index, vectors = filled(tmp_path / "i", 10, "float32"), random_vectors(1, seed=9)
    report = index.add_vectors(
        [Document("d3", "new text", {"parity": "new"})], vectors, space_id="s"
    )
    assert (report.added, report.replaced, index.documents) == (0, 1, 10)
    hit = index.search(vectors, 1)[0][0]
    assert (hit.id, hit.text, hit.metadata) == ("d3", "new text", {"parity": "new"})
    assert hit.score == pytest.approx(1)
    assert sorted(ids(index.search(vectors, 100)[0])) == sorted(f"d{i}" for i in range(10))


def test_delete_and_compact_keep_the_answers(tmp_path):
    index, queries = filled(tmp_path / "i", 200, "float32"), random_vectors(6, seed=1)
    index.add_vectors(numbered(100, 200), random_vectors(100, seed=2), space_id="s")
    assert index.delete(["d5", "d5", "unknown", "d250"]) == 2
    assert index.delete(["d5"]) == 0
    live = [i for i in range(300) if i not in (5, 250)]
    order, scores = brute(
        np.concatenate([random_vectors(200), random_vectors(100, seed=2)])[live], queries, 8
    )
    for _ in range(2):
        result = index.search(queries, 8, oversample=1000)
        assert [ids(hits) for hits in result] == [[f"d{live[i]}" for i in row] for row in order]
        np.testing.assert_allclose(
            [[hit.score for hit in hits] for hits in result], scores, atol=1e-6
        )
        index.compact()
    assert len(index.snapshot.segments) == 1
    assert index.snapshot.segments[0].entry.deleted == 0
    assert [hit.metadata["i"] for hit in index.search(queries, 1)[0]] == [live[order[0][0]]]
    assert sorted(p.name for p in (tmp_path / "i" / "segments").iterdir()) == ["00000002"]
    assert not list((tmp_path / "i" / "deletes").iterdir())


def test_many_small_writes_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "FANOUT", 4)
    index = Index.create(tmp_path / "i", settings("float32"))
    vectors = random_vectors(40)
    for at, document in enumerate(numbered(40)):
        index.add_vectors([document], vectors[at : at + 1], space_id="s")
    assert len(index.snapshot.segments) <= 10
    result = index.search(vectors, 1, oversample=100)
    assert [hits[0].id for hits in result] == [f"d{i}" for i in range(40)]
    assert [hits[0].metadata["i"] for hits in result] == list(range(40))


def test_int8_ranges_of_the_first_vectors_serve_later_ones(tmp_path):
    index = Index.create(tmp_path / "i", settings())
    vectors = random_vectors(300)
    index.add_vectors(numbered(1), vectors[:1], space_id="s")
    index.add_vectors(numbered(299, 1), vectors[1:], space_id="s")
    ranges = index.snapshot.manifest.ranges
    assert isinstance(ranges, Int8Ranges)
    assert float(ranges.maximum[0]) == pytest.approx(
        min(1, 1.25 * np.abs(vectors[0]).max()), rel=1e-6
    )
    top = index.search(vectors, 1, oversample=300)
    assert np.mean([hits[0].id == f"d{i}" for i, hits in enumerate(top)]) > 0.99


def test_vectors_that_are_there_already_are_not_embedded_again(tmp_path):
    encoder = FakeEncoder()
    index, _ = build_index(
        encoder, numbered(20), tmp_path / "i", storage=StorageOptions(truncate_dim=32)
    )
    queries = ["text 3", "text 7"]
    expected = index.search(queries, 3, encoder=encoder)
    vectors, seen = encoder.encode(queries, prompt_name="query"), list(encoder.texts_seen)
    result = index.search(queries, 3, encoder=encoder, vectors=vectors)
    assert [ids(hits) for hits in result] == [ids(hits) for hits in expected]
    for hits, exact in zip(result, expected, strict=True):
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in exact], abs=1e-6)
    assert encoder.texts_seen == seen
    with pytest.raises(BadInput, match=r"space_id 'space-a'.*'space-b'"):
        index.search(queries, 3, encoder=FakeEncoder(space_id="space-b"), vectors=vectors)
    with pytest.raises(BadInput, match="give the queries as texts"):
        index.search(vectors, 3, vectors=vectors)


def test_what_does_not_match_is_refused_by_name(tmp_path):
    encoder = FakeEncoder()
    index, _ = build_index(
        encoder, numbered(20), tmp_path / "i", storage=StorageOptions(truncate_dim=32)
    )
    with pytest.raises(BadInput, match=r"space_id 'space-a'.*'space-b'"):
        index.add(numbered(1), FakeEncoder(space_id="space-b"))
    with pytest.raises(BadInput, match=r"space_id 'space-a'.*'space-b'"):
        index.search(["x"], 1, encoder=FakeEncoder(space_id="space-b"))
    with pytest.raises(BadInput, match=r"space_id 'space-a'.*'space-b'"):
        index.settings.check_space("space-b")
    with pytest.raises(BadInput, match=r"model_hash 'hash-a'.*'hash-b'"):
        index.add(numbered(1), FakeEncoder(model_hash="hash-b"))
    with pytest.raises(BadInput, match=r"1x64.*dimension 32"):
        index.search(random_vectors(1), 1)
    with pytest.raises(BadInput, match=r"dim 32.*48"):
        build_index(encoder, numbered(20), tmp_path / "i", storage=StorageOptions(truncate_dim=48))
    with pytest.raises(BadInput, match=r"task 'retrieval'.*'clustering'"):
        build_index(
            encoder,
            numbered(20),
            tmp_path / "i",
            task="clustering",
            storage=StorageOptions(truncate_dim=32),
        )
    with pytest.raises(BadInput, match=r"rescore 'int8'.*'float32'"):
        build_index(
            encoder,
            numbered(20),
            tmp_path / "i",
            storage=StorageOptions(truncate_dim=32, rescore="float32"),
        )
    with pytest.raises(BadInput, match="passages"):
        build_index(
            encoder,
            numbered(20),
            tmp_path / "i",
            storage=StorageOptions(truncate_dim=32, passages=PassageSettings()),
        )
    assert (
        index.search(["text 3"], 1, encoder=FakeEncoder(model_hash="another model, same space"))[0][
            0
        ].id
        == "d3"
    )


def test_two_writers(tmp_path):
    index = filled(tmp_path / "i", 10)
    with writer_lock(tmp_path / "i" / "lock"):
        with pytest.raises(WorkFailed, match="held by process"):
            index.delete(["d1"])
        assert len(index.search(random_vectors(1), 3)[0]) == 3
    assert index.delete(["d1"]) == 1


def test_the_lock_of_another_host_is_respected_and_explained(tmp_path):
    index = filled(tmp_path / "i", 10)
    (tmp_path / "i" / "lock").write_text("7 elsewhere")
    with pytest.raises(WorkFailed, match=r"process 7 on host elsewhere.*remove"):
        index.delete(["d1"])


def test_a_second_reader_sees_one_generation_until_it_refreshes(tmp_path):
    writer = filled(tmp_path / "i", 10)
    reader = Index.open(tmp_path / "i")
    writer.delete([f"d{i}" for i in range(5)])
    writer.compact()
    assert len(reader.search(random_vectors(1), 100)[0]) == 10
    reader.refresh()
    assert len(reader.search(random_vectors(1), 100)[0]) == 5


def rebuilt(path, texts, encoder=None, bm25=False):
    """Build an index in the place of another one."""
    if path.exists():
        shutil.rmtree(path)
    index, _ = build_index(
        encoder or FakeEncoder(), [Document(f"d{i}", text) for i, text in enumerate(texts)], path
    )
    if bm25:
        index.build_bm25()
    return index


@pytest.mark.parametrize("first_pass", ["flat", "ivf"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_an_index_that_was_built_anew_in_its_place_is_seen_by_those_who_have_it_open(
    tmp_path, monkeypatch, first_pass, hybrid
):
    monkeypatch.setattr("taskdistill.search.index.CELL_ROWS", 10)
    before, after = ([f"{word} number {i}" for i in range(40)] for word in ("plain", "other"))
    rebuilt(tmp_path / "i", before, bm25=hybrid)
    reader = Index.open(tmp_path / "i", first_pass=first_pass)
    result = reader.search(["plain number 7"], 3, encoder=FakeEncoder(), hybrid=hybrid)
    assert result[0][0].text == "plain number 7"
    fresh = rebuilt(tmp_path / "i", after, bm25=hybrid)
    assert fresh.snapshot.manifest.segments == reader.snapshot.manifest.segments
    assert reader.search(["plain number 7"], 3, encoder=FakeEncoder(), hybrid=hybrid) == result
    reader.refresh()
    result = reader.search(
        ["plain number 7", "other number 9"], 40, encoder=FakeEncoder(), hybrid=hybrid
    )
    assert result == Index.open(tmp_path / "i", first_pass=first_pass).search(
        ["plain number 7", "other number 9"], 40, encoder=FakeEncoder(), hybrid=hybrid
    )
    assert {hit.text for hits in result for hit in hits} <= set(after)


def test_segments_of_the_same_content_are_kept_open(tmp_path):
    reader = rebuilt(tmp_path / "i", ["one", "two"])
    first = reader.snapshot.segments[0]
    Index.open(tmp_path / "i").add([Document("new", "three")], FakeEncoder())
    reader.refresh()
    assert reader.snapshot.segments[0] is first and reader.documents == 3
    rebuilt(tmp_path / "i", ["one", "two"])
    reader.refresh()
    assert reader.snapshot.segments[0] is first and reader.documents == 2
    Index.open(tmp_path / "i").delete(["d0"])
    reader.refresh()
    assert reader.snapshot.segments[0] is not first and ids(
        reader.search(["one"], 9, encoder=FakeEncoder())[0]
    ) == ["d1"]


def test_an_index_of_another_space_or_task_in_the_same_place_is_refused_and_the_old_one_stays(
    tmp_path,
):
    texts = ["one", "two"]
    reader = rebuilt(tmp_path / "i", texts)
    vector = FakeEncoder().encode(["one"])
    expected = reader.search(vector, 2)
    rebuilt(tmp_path / "i", texts, FakeEncoder(space_id="space-b", model_hash="hash-b"))
    for call in (reader.refresh, lambda: reader.delete(["d0"])):
        with pytest.raises(BadInput, match=r"opened with space_id 'space-a' and has 'space-b' now"):
            call()
        assert reader.settings.space_id == "space-a" and reader.search(vector, 2) == expected
    shutil.rmtree(tmp_path / "i")
    build_index(FakeEncoder(), [Document("d0", "one")], tmp_path / "i", task="clustering")
    with pytest.raises(BadInput, match=r"opened with task 'retrieval' and has 'clustering' now"):
        reader.refresh()


def test_fewer_dimensions_of_the_same_space_are_followed(tmp_path):
    reader = rebuilt(tmp_path / "i", ["one", "two"])
    Index.open(tmp_path / "i").shrink(16, "none")
    reader.refresh()
    assert (reader.settings.dim, reader.settings.rescore) == (16, "none")
    assert ids(reader.search(["two"], 1, encoder=FakeEncoder())[0]) == ["d1"]


def test_describe(tmp_path):
    index, _ = build_index(FakeEncoder(), numbered(20), tmp_path / "i")
    index.delete(["d1"])
    description = index.describe()
    assert (
        description["documents"],
        description["passages"],
        description["deleted"],
        description["building"],
        description["metadata"],
    ) == (19, 19, 1, False, ["i", "parity"])
    assert description["bytes"]["codes"] == pytest.approx(20 * DIM / 8, abs=200)
    assert (
        description["task"],
        description["query_prompt"],
        description["dim"],
        description["space_id"],
    ) == (
        "retrieval",
        "query",
        DIM,
        "space-a",
    )


def test_cells_find_most_of_what_the_exact_pass_finds(tmp_path, monkeypatch):
    monkeypatch.setattr("taskdistill.search.index.CELL_ROWS", 1000)
    index = filled(tmp_path / "i", 2000, "float32")
    queries = normalize(random_vectors(2000)[:50] + 0.1 * random_vectors(50, seed=1))
    index.delete([f"d{i}" for i in range(0, 2000, 7)])
    exact = [set(ids(hits)) for hits in index.search(queries, 10, oversample=10)]
    result = Index.open(tmp_path / "i", first_pass="ivf").search(queries, 10, oversample=10)
    assert all(int(hit.id[1:]) % 7 for hits in result for hit in hits)
    assert np.mean([len(a & set(ids(b))) / 10 for a, b in zip(exact, result, strict=True)]) > 0.8
    with pytest.raises(BadInput, match="no effect"):
        filled(tmp_path / "j", 10) and Index.open(tmp_path / "j", first_pass="ivf")
