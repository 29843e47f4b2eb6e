"""POST /search gives what the library's index gives, filters and all; an index of another space is
refused.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest
from helpers.serve_fakes import live, tiny_encoder

from taskdistill.errors import BadInput
from taskdistill.model.projection import Projection
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.settings import StorageOptions
from taskdistill.serve.app import make_app
from taskdistill.serve.routes import search
from taskdistill.serve.settings import ServerSettings

QUERIES = ["a word", "another thing altogether", "12 of them"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    documents = [
        Document(
            f"d{i}",
            f"text {i} of them, {'even' if i % 2 == 0 else 'odd'}",
            {"lang": "en", "year": i},
        )
        for i in range(60)
    ]
    return build_index(
        tiny_encoder(1),
        documents,
        tmp_path_factory.mktemp("search") / "index",
        storage=StorageOptions(truncate_dim=16),
    )[0]


@pytest.fixture(scope="module")
def http(index):
    with (
        live(tiny_encoder(), index, ServerSettings(searches=4)) as (url, _),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def flat(hits):
    return [
        [(hit["id"], hit["text"], hit["start"], hit["end"], hit["metadata"]) for hit in each]
        for each in hits
    ]


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"filter": {"year": {">=": 50}}}, {"filter": {"year": {">=": 50}}}),
        ({"filter": ["year<10", "lang=en"]}, {"filter": ["year<10", "lang=en"]}),
        ({"filter": "lang == 'en' and year >= 5 and year < 9"}, {"filter": {"year": [5, 6, 7, 8]}}),
        ({"oversample": 3}, {"oversample": 3}),
        ({"top_k": 100}, {"top_k": 100}),
    ],
)
def test_search_gives_what_the_index_gives(http, index, fields, options):
    answer = http.post("/search", json={"query": QUERIES, **fields}).json()
    wanted = index.search(QUERIES, **({"top_k": 10} | options), encoder=tiny_encoder(1))
    assert flat(answer["results"]) == [
        [(hit.id, hit.text, hit.start, hit.end, hit.metadata) for hit in each] for each in wanted
    ]
    scores = [hit["score"] for each in answer["results"] for hit in each]
    assert np.abs(np.array(scores) - [hit.score for each in wanted for hit in each]).max() < 1e-5
    assert answer["milliseconds"]["total"] >= answer["milliseconds"]["ranking"] > 0


def test_one_query_may_be_a_string(http):
    assert len(http.post("/search", json={"query": QUERIES[0], "top_k": 3}).json()["results"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"query": ""}, 400, "empty string"),
        ({"query": " "}, 400, "empty"),
        ({"query": ["a"] * 5}, 413, "the limit is 4"),
        ({"query": "a", "top_k": 0}, 400, "greater than or equal to 1"),
        ({"query": "a", "top_k": 10**9}, 400, "less than or equal to 1000"),
        ({"query": "a", "filter": {"year": {"almost": 3}}}, 400, "almost"),
        (
            {"query": "a", "filter": " " * 200_000 + "x"},
            400,
            "has 200,001 characters, the most are 1,000",
        ),
        ({"query": "a", "filter": " " * 999 + "x"}, 400, "is not understood"),
        ({"query": "a", "filter": ["year>=1"] * 33}, 400, "33 conditions, the most are 32"),
        ({"query": "a", "filter": 3}, 400, "filter is a JSON int"),
        ({"query": "a", "filter": [3]}, 400, "not int"),
        ({"query": "a", "filter": "lang!=en"}, 400, "`!=` is not known"),
        ({"query": "a", "filter": "lung=en"}, 400, "did you mean 'lang'"),
        ({"query": "a", "hybrid": True}, 400, "no lexical part"),
        ({"query": "a", "topk": 3}, 400, "did you mean 'top_k'"),
        ({}, 400, "missing"),
    ],
)
def test_bad_searches_are_told_what_is_wrong(http, body, status, said):
    answer = http.post("/search", json=body)
    assert (answer.status_code, set(answer.json()["error"])) == (
        status,
        {"message", "type", "param", "code"},
    )
    assert said in answer.json()["error"]["message"]


def test_the_index_is_described_without_its_place_on_the_disk(http, index):
    said = http.get("/v1/index").json()
    assert (said["documents"], said["dim"], said["rescore"], said["metadata"]) == (
        60,
        16,
        "int8",
        ["lang", "year"],
    )
    assert str(index.path) not in str(said)


def test_too_many_searches_are_refused(http):
    with ThreadPoolExecutor(30) as pool:
        statuses = set(
            pool.map(lambda _: http.post("/search", json={"query": QUERIES}).status_code, range(60))
        )
    assert statuses <= {200, 429}
    assert 200 in statuses


def test_what_another_process_writes_is_found_and_a_damaged_index_keeps_serving(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "REFRESH_SECONDS", 0.0)
    encoder = tiny_encoder(1)
    index = build_index(
        encoder, [Document("old", "one text"), Document("older", "two texts")], tmp_path / "index"
    )[0]
    with live(tiny_encoder(1), index) as (url, _):

        def ids():
            answer = httpx.post(f"{url}/search", json={"query": "text"}, timeout=30)
            assert answer.status_code == 200
            return {hit["id"] for hit in answer.json()["results"][0]}

        assert ids() == {"old", "older"}
        type(index).open(tmp_path / "index").add([Document("new", "three texts")], encoder)
        assert ids() == {"old", "older", "new"}
        manifest = tmp_path / "index" / "taskdistill.json"
        manifest.write_text(manifest.read_text()[:-20])
        assert ids() == {"old", "older", "new"}


def test_an_index_of_another_space_is_refused_and_the_teachers_is_asked_through_the_projection(
    tmp_path,
):
    other, teacher = tiny_encoder(1), tiny_encoder(1)
    space = teacher.space_id
    documents = [Document(f"d{i}", f"text {i} of them") for i in range(20)]
    index = build_index(teacher, documents, tmp_path / "index", task=None)[0]
    other.model.settings, other.model.files = (
        replace(other.model.settings, space_id="elsewhere"),
        {},
    )
    with pytest.raises(BadInput, match=r"elsewhere.*is not the index's"):
        make_app(other, index)
    facts = {"model": "the teacher", "embedding_dim": 32, "space_id": space}
    other.model.settings = replace(other.model.settings, teacher=facts)
    other.model.projection = Projection(32, 32)
    with live(other, index) as (url, _):
        found = httpx.post(f"{url}/search", json={"query": "text 3", "top_k": 5}).json()["results"][
            0
        ]
    vectors = other.project(other.encode(["text 3"], prompt_name="query"))
    assert [hit["id"] for hit in found] == [hit.id for hit in index.search(vectors, 5)[0]]
    adapted = build_index(teacher, documents, tmp_path / "adapted")[0]
    with live(other, adapted) as (url, _):
        answer = httpx.post(f"{url}/search", json={"query": "text 3"})
    assert (
        answer.status_code == 400
        and "which a projection does not reach" in answer.json()["error"]["message"]
    )
