from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from helpers.search_fakes import FakeEncoder, filled, ids, numbered, random_vectors

from taskdistill.errors import BadInput
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.filters import (
    Condition,
    matching_documents,
    metadata_entries,
    parse_filter,
)
from taskdistill.search.passages import PassageSettings
from taskdistill.search.settings import StorageOptions

ROWS = [
    {"lang": "en", "year": 2020, "ok": True, "tags": ["a", "b"]},
    {"lang": "de", "year": "2021", "date": "2024-01-05", "tags": ["b"]},
    {"year": 2021.5, "date": "2023-12-31", "big": 2**60 + 1},
    {"lang": "en", "year": "unknown", "big": 2**60, "zip": "01234", "inner": {"x": 1}},
    {},
]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"lang": "en"}, [0, 3]),
        ("lang=en", [0, 3]),
        (["lang=en", "year>=2000"], [0]),
        ({"year": {">": 2020, "<=": 2021.5}}, [1, 2]),
        ("year < 2021", [0]),
        ({"year": 2021}, [1]),
        ({"year": ["2020", 2021]}, [0, 1]),
        ("year in 2020, unknown", [0, 3]),
        ({"tags": "b"}, [0, 1]),
        ({"tags": "a", "lang": "en"}, [0]),
        ({"ok": True}, [0]),
        ("ok=true", [0]),
        ({"big": 2**60}, [3]),
        ({"zip": 1234}, []),
        ("zip=01234", [3]),
        ("date>=2024-01-01", [1]),
        ({"date": {"<": "2024"}}, []),
        ({"date": {"<": "2024-01-01"}}, [2]),
        (None, [0, 1, 2, 3, 4]),
        ({"lang": []}, []),
    ],
)
def test_conditions(condition, expected):
    entries = pa.Table.from_batches([metadata_entries(ROWS)])
    assert (
        np.flatnonzero(matching_documents(entries, len(ROWS), parse_filter(condition))).tolist()
        == expected
    )


def test_the_key_of_objects_is_not_known_and_expressions_are_read():
    assert set(metadata_entries(ROWS)["key"].to_pylist()) == {
        "lang",
        "year",
        "ok",
        "tags",
        "date",
        "big",
        "zip",
    }
    assert parse_filter("a b >= x = y") == (Condition("a b", ">=", ("x = y",)),)
    for wrong in (
        "lang",
        "=x",
        {"year": {"~": 1}},
        {"year": {}},
        {"year": None},
        {"year": {">": [1]}},
    ):
        with pytest.raises(BadInput):
            parse_filter(wrong)


def test_a_filter_comes_before_the_ranking_even_for_rare_matches(tmp_path):
    index = filled(tmp_path / "i", 500, "float32")
    index.add_vectors(numbered(100, 500), random_vectors(100, seed=5), space_id="s")
    index.delete(["d7", "d9", "d507"])
    vectors, queries = (
        np.concatenate([random_vectors(500), random_vectors(100, seed=5)]),
        random_vectors(7, seed=1),
    )
    for condition, matching in (
        ({"i": [3, 7, 333, 507, 599]}, [3, 333, 599]),
        ("parity=1", [i for i in range(1, 600, 2) if i not in (7, 9, 507)]),
        (["parity=0", "i>=590"], [590, 592, 594, 596, 598]),
        ({"i": {">": 10_000}}, []),
    ):
        order = np.argsort(-(queries @ vectors[matching].T), axis=1)[:, :10]
        assert [
            ids(hits) for hits in index.search(queries, 10, filter=condition, oversample=100)
        ] == [[f"d{matching[i]}" for i in row] for row in order]
    for hits in index.search(queries, 5, filter="parity=1", oversample=2):
        assert len(hits) == 5 and all(hit.metadata["parity"] == 1 for hit in hits)


def test_an_unknown_key_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"metadata 'paritty'; did you mean 'parity'"):
        filled(tmp_path / "i", 10).search(random_vectors(1), 1, filter="paritty=1")


def test_passages_come_back_with_their_place_and_go_with_their_document(tmp_path):
    encoder = FakeEncoder(dim=512)
    texts = {
        name: " ".join(f"{name}word{i} is sentence {i}." for i in range(30))
        for name in ("x", "y", "z")
    }
    documents = [
        Document(name, text, {"title": f"title of {name}"}) for name, text in texts.items()
    ]
    passages = PassageSettings(size=12, overlap=4)
    index, report = build_index(
        encoder, documents, tmp_path / "i", batch=7, storage=StorageOptions(passages=passages)
    )
    assert (report.added, index.documents, index.snapshot.live_count) == (
        3,
        3,
        report.passages,
    ) and report.passages > 30
    assert encoder.texts_seen[0].startswith("title of x xword0")
    for name in texts:
        for at in range(30):
            hit = index.search([f"{name}word{at}"], 1, encoder=encoder, oversample=100)[0][0]
            assert (
                hit.id == name
                and f"{name}word{at} " in hit.text
                and texts[name][hit.start : hit.end] == hit.text
            )
    index.add([Document("y", "yword0 is short now.")], encoder)
    index.compact()
    hits = index.search(["yword0 yword20"], 1000, encoder=encoder)[0]
    assert [hit.text for hit in hits if hit.id == "y"] == ["yword0 is short now."]
    assert all(texts[hit.id][hit.start : hit.end] == hit.text for hit in hits if hit.id != "y")


def test_unchanged_documents_are_not_embedded_again_and_the_last_of_two_stays(tmp_path):
    encoder = FakeEncoder()
    index, _ = build_index(encoder, numbered(30), tmp_path / "i")
    encoder.texts_seen.clear()
    changed = [
        *numbered(30)[:28],
        Document("d28", "text 28", {"parity": "other"}),
        Document("d29", "new"),
        Document("d29", "newer"),
    ]
    report = index.add(changed, encoder, batch=8)
    assert (report.unchanged, report.replaced, report.added) == (28, 2, 0)
    assert encoder.texts_seen == ["text 28", "newer"]
    assert index.search(["newer"], 1, encoder=encoder)[0][0].text == "newer"


@pytest.mark.parametrize(
    "wrong",
    [
        Document("", "x"),
        Document("a", " "),
        Document("a", "x\0"),
        Document("a", "\ud800"),
        Document("a", "x", {"n": float("nan")}),
        Document("a", "x", {"s": {1}}),
    ],
)
def test_documents_that_cannot_be_kept_are_refused(tmp_path, wrong):
    index, _ = build_index(FakeEncoder(), numbered(3), tmp_path / "i")
    with pytest.raises(BadInput, match="cannot be indexed"):
        index.add([wrong], FakeEncoder())
    assert index.documents == 3
