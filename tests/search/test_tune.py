from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.search_fakes import FakeEncoder

from taskdistill.errors import BadInput
from taskdistill.io.sealed import dump_json
from taskdistill.quantization import truncate
from taskdistill.search.asymmetric import measure_tiers
from taskdistill.search.corpus import Document
from taskdistill.search.devset import CachedEncoder, DevSet, read_dev_set
from taskdistill.search.prf import PrfSettings
from taskdistill.search.tune import TuneGrid, tune
from taskdistill.search.tune_results import table


class Planted:
    """Texts have the vectors they are given."""

    name, space_id, model_hash = "planted", "space-a", "hash-a"

    def __init__(self, vectors):
        self.vectors = vectors
        self.embedding_dim = len(next(iter(vectors.values())))

    def encode(
        self, texts, *, task=None, prompt_name="document", truncate_dim=None, precision="float32"
    ):
        return truncate(
            np.array([self.vectors[text] for text in texts]), truncate_dim or self.embedding_dim
        )


def planted(documents, queries, relevant):
    """Make an encoder and a dev set from matrices; `relevant` maps a query to its documents."""
    encoder = Planted(
        {
            **{f"doc{i}": row for i, row in enumerate(documents)},
            **{f"query{i}": row for i, row in enumerate(queries)},
        }
    )
    dev = DevSet(
        [Document(f"d{i}", f"doc{i}") for i in range(len(documents))],
        {f"q{i}": f"query{i}" for i in range(len(queries))},
        {f"q{i}": {f"d{j}": 1 for j in relevant(i)} for i in range(len(queries))},
    )
    return encoder, dev


def test_where_signs_of_few_dimensions_tell_all_the_smallest_storage_is_recommended():
    rng = np.random.default_rng(0)
    signs = np.concatenate(
        [np.ones((200, 8)), rng.choice([-1.0, 1.0], (200, 24)), np.zeros((200, 32))], axis=1
    )
    encoder, dev = planted(signs, signs[:60] + 0.1 * rng.standard_normal((60, 64)), lambda i: [i])
    tuning = tune(encoder, dev, TuneGrid(dims=(8, 32, 64), hybrid=False, oversamples=(2, 10)))
    assert (
        tuning.recommended.setting.dim,
        tuning.recommended.setting.rescore,
        tuning.recommended.bytes,
    ) == (
        32,
        "none",
        pytest.approx(4, abs=1),
    )
    assert tuning.recommended.ndcg == pytest.approx(1.0)
    assert tuning.reference.harmed == tuning.reference.difference == 0
    worst = next(
        row for row in tuning.rows if row.setting.dim == 8 and row.setting.rescore == "none"
    )
    assert worst.ndcg < 0.2 and worst.harmed > 0.8 and worst.high < 0


def test_where_signs_tell_nothing_vectors_and_oversampling_are_recommended():
    rng = np.random.default_rng(0)
    positive = rng.random((300, 16)) + 0.01
    encoder, dev = planted(positive, positive[:60] + 0.01 * rng.random((60, 16)), lambda i: [i])
    tuning = tune(
        encoder,
        dev,
        TuneGrid(dims=(16,), hybrid=False, refinements=(), oversamples=(2, 30)),
    )
    assert (tuning.recommended.setting.rescore, tuning.recommended.setting.oversample) == (
        "int8",
        30,
    )
    assert max(row.ndcg for row in tuning.rows if row.setting.rescore == "none") < 0.3


def test_hybrid_is_recommended_only_where_it_earns_its_place():
    documents = [Document(f"d{i}", f"subject{i} and some of the same words") for i in range(150)]
    dev = DevSet(
        documents,
        {f"q{i}": f"subject{i}" for i in range(50)},
        {f"q{i}": {f"d{i}": 1} for i in range(50)},
    )
    for noise, expected in ((30.0, True), (0.0, False)):
        tuning = tune(
            FakeEncoder(dim=256, noise=noise),
            dev,
            TuneGrid(dims=(256,), rescores=("int8",), oversamples=(50,), refinements=()),
        )
        assert tuning.recommended.setting.hybrid is expected


def test_refinement_is_recommended_where_good_documents_lead_to_others():
    documents, queries = [], []
    for topic in range(30):
        axes = np.eye(91)[3 * topic : 3 * topic + 3]
        queries.append(axes[0])
        documents += [
            [0.9, 0.44, 0] @ axes,
            *([0.05, 0.99, 0.01 * i] @ axes for i in range(3)),
            *([0.3, 0, 0.95 + 0.01 * i] @ axes for i in range(9)),
        ]
    encoder, dev = planted(
        np.array(documents), np.array(queries), lambda i: range(13 * i, 13 * i + 4)
    )
    options = {
        "dims": (91,),
        "hybrid": False,
        "rescores": ("int8", "float32"),
        "oversamples": (100,),
    }
    tuning = tune(
        encoder,
        dev,
        TuneGrid(refinements=(PrfSettings(documents=1, weight=0.5, temperature=0.1),), **options),
    )
    assert tuning.recommended.setting.refinement == PrfSettings(
        documents=1, weight=0.5, temperature=0.1
    )
    assert tuning.recommended.harmed == 0 and tuning.recommended.low > 0.1
    assert (
        tune(encoder, dev, TuneGrid(refinements=(), **options)).recommended.setting.refinement
        is None
    )
    astray = (PrfSettings(documents=13, weight=0.9, temperature=10.0),)
    assert (
        tune(encoder, dev, TuneGrid(refinements=astray, **options)).recommended.setting.refinement
        is None
    )


def test_the_result_prints_and_is_json():
    documents = [Document(f"d{i}", f"subject{i} words", {"title": "t"}) for i in range(30)]
    dev = DevSet(
        documents,
        {"q1": "subject1", "q2": "subject2", "unjudged": "x"},
        {"q1": {"d1": 2}, "q2": {"d2": 1, "gone": 1}},
    )
    calls = []
    tuning = tune(
        FakeEncoder(),
        dev,
        TuneGrid(dims=(32, 64), rescores=("none", "int8"), oversamples=(2,)),
        progress=lambda *each: calls.append(each),
    )
    lines = table(tuning)
    assert tuning.queries == 2 and calls[-1] == (5, 5)
    assert [line[0] for line in lines[:3]] == ["", "reference", "recommended"] and {
        len(line) for line in lines
    } == {12}
    assert json.loads(dump_json(tuning.to_json()))["reference"]["setting"]["dim"] == 64
    with pytest.raises(BadInput, match="none of 1 queries has a relevant document among 30"):
        tune(
            FakeEncoder(),
            DevSet(documents, {"q": "x"}, {"q": {"elsewhere": 1}}),
            TuneGrid(dims=(32,)),
        )
    with pytest.raises(BadInput, match="grid is empty"):
        tune(FakeEncoder(), dev, TuneGrid(dims=()))


def test_each_text_is_embedded_once():
    encoder = FakeEncoder()
    embedded = CachedEncoder(encoder)
    embedded.encode(["a", "b", "a"], truncate_dim=8)
    vectors = embedded.encode(["b", "c"])
    assert encoder.texts_seen == ["a", "b", "c"]
    np.testing.assert_array_equal(vectors, FakeEncoder().encode(["b", "c"]))


def test_two_encoders_one_space():
    documents = [Document(f"d{i}", f"subject{i} and words") for i in range(100)]
    dev = DevSet(
        documents,
        {f"q{i}": f"subject{i}" for i in range(40)},
        {f"q{i}": {f"d{i}": 1} for i in range(40)},
    )
    teacher = FakeEncoder("teacher-space", "t", "teacher", dim=256)
    student = FakeEncoder("student-space", "s", "student", dim=32, noise=3.0)
    projected = FakeEncoder("teacher-space", "p", "projected", dim=256, noise=0.5)
    static = FakeEncoder("teacher-space", "x", "static", dim=256, noise=2.0)
    tiers = measure_tiers([projected, static], teacher, dev, alone=[(student, "retrieval")])
    pairs = [(tier.queries, tier.documents) for tier in tiers]
    shared = ["projected", "static", "teacher"]
    assert pairs == [
        ("student", "student"),
        *((asker, documents) for documents in shared for asker in shared),
    ]
    by_models = dict(zip(pairs, tiers, strict=True))
    best = by_models["teacher", "teacher"]
    assert (best.retention.value, best.retention.low, best.retention.high) == (1, 1, 1)
    assert (
        by_models["student", "student"].ndcg.value
        < by_models["projected", "teacher"].ndcg.value
        <= best.ndcg.value
    )
    assert by_models["static", "static"].ndcg.value < by_models["projected", "projected"].ndcg.value
    for tier in tiers:
        assert tier.retention.value == pytest.approx(tier.ndcg.value / best.ndcg.value)
        assert tier.ndcg.low <= tier.ndcg.value <= tier.ndcg.high
        assert tier.ndcg.low < tier.ndcg.high or tier.ndcg.value == 1, (
            "an interval has no width only where every query is answered"
        )
        assert (
            tier.to_json()["end_to_end_milliseconds"]
            == tier.query_milliseconds + tier.search_milliseconds
            > 0
        )
    with pytest.raises(BadInput, match=r"student-space.*teacher-space"):
        measure_tiers([student], teacher, dev)


def test_a_dev_set_is_read_from_the_beir_layout(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "title": "T", "text": "one"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "two"}\n')
    with pytest.raises(BadInput, match=r"no qrels\.tsv"):
        read_dev_set(tmp_path)
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    assert read_dev_set(tmp_path) == DevSet(
        [Document("d", "one", {"title": "T"})], {"q": "two"}, {"q": {"d": 1}}
    )
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\n")
    with pytest.raises(BadInput, match=r"qrels\.tsv:2"):
        read_dev_set(tmp_path)
