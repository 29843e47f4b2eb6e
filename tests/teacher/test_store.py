"""The store: each distinct text once, one store an instruction, refusals that name the field,
damage that is found.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.teacher_fakes import FakeTeacher, stored, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from taskdistill.errors import BadInput
from taskdistill.io.folders import seal
from taskdistill.recipe.teacher import InstructionConfig
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.keys import KeyIndex, first_seen, key_name, text_keys
from taskdistill.teacher.protocol import (
    TeacherIdentity,
    prompt_template,
    slug,
    unit_rows,
    view_text,
)
from taskdistill.teacher.store import describe, open_store, open_views, repair


@pytest.fixture
def teacher():
    return FakeTeacher()


@pytest.fixture
def store(tmp_path, teacher):
    return open_store(tmp_path, teacher.identity, None)


def test_each_distinct_text_is_embedded_once_and_found_by_content(tmp_path, teacher, store):
    report = fill_store(store, ["b", "a", "b", "c"], teacher, shard_rows=2)
    assert (report.asked, report.distinct, report.found, report.embedded) == (4, 3, 0, 3)
    again = open_store(tmp_path, teacher.identity, None)
    assert again.missing(["z", "a", "y", "z"]) == ["z", "y"]
    report = fill_store(again, ["d", "a", "c"], teacher)
    assert (report.distinct, report.found, report.embedded) == (3, 2, 1)
    assert dict(teacher.seen) == dict.fromkeys("abcd", 1)
    texts = list("dcbaab")
    assert np.array_equal(again.get(texts), stored(texts))
    assert again.get(texts).dtype == np.float16 and len(again) == 4
    assert again.get([]).shape == (0, 8)
    assert np.array_equal(again.take(again.locate(["a", "d"])), stored(["a", "d"]))
    assert again.locate(["a", "nowhere"])[1] == -1


def test_an_open_store_sees_what_another_process_added_after_refresh(tmp_path, teacher, store):
    fill_store(open_store(tmp_path, teacher.identity, None), ["a"], teacher)
    assert store.missing(["a"]) == ["a"]
    store.refresh()
    assert store.missing(["a"]) == [] and store.embedding_dim == 8


def test_a_text_that_is_not_there_is_an_error(store, teacher):
    fill_store(store, ["a"], teacher)
    with pytest.raises(BadInput, match=r"1 of 2 texts are not in the teacher store"):
        store.get(["a", "b"])
    with pytest.raises(BadInput, match="not valid Unicode"):
        store.get(["\ud800"])


def test_views_with_one_instruction_share_one_store_and_the_teacher_reads_the_instruction(
    tmp_path, teacher
):
    told = InstructionConfig(
        query="find", document=None, topic="find", template="Instruct: {instruction}\nQuery:{text}"
    )
    views = open_views(tmp_path, teacher, told)
    assert views["query"] is views["topic"] and views["query"] is not views["document"]
    fill_store(views["query"], ["a {x}"], teacher)
    fill_store(views["document"], ["a {x}"], teacher)
    assert set(teacher.seen) == {"Instruct: find\nQuery:a {x}", "a {x}"}
    assert np.array_equal(views["query"].get(["a {x}"]), stored(["Instruct: find\nQuery:a {x}"]))
    assert np.array_equal(views["document"].get(["a {x}"]), stored(["a {x}"]))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


def test_default_instructions_are_the_papers():
    told = InstructionConfig()
    question = (
        "Instruct: Given a web search query, retrieve relevant passages that answer the"
        " query\nQuery:what"
    )
    assert view_text(told, "query", "what") == question
    assert view_text(told, "document", "what") == "what"
    assert (
        view_text(told, "topic", "what")
        == "Instruct: Identify the topic or theme of the given document:\nQuery:what"
    )


def test_a_teacher_without_instructions_has_one_view(tmp_path, teacher):
    views = open_views(tmp_path, teacher, None)
    assert views["query"] is views["document"] is views["topic"]
    assert view_text(None, "query", "x") == "x"
    with pytest.raises(BadInput, match=r"teacher.instructions.query"):
        prompt_template(InstructionConfig(query="about {text}"), "query")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "http"),
        ("model", "other"),
        ("revision", "r2"),
        ("weights", "w2"),
        ("max_length", 128),
    ],
)
def test_a_store_of_another_teacher_is_refused_naming_the_field(
    tmp_path, teacher, store, field, value
):
    fill_store(store, ["a"], teacher)
    other = replace(teacher.identity, **{field: value})
    with pytest.raises(BadInput) as error:
        open_store(store.folder, other, None)
    assert f"{field} is {getattr(teacher.identity, field)!r}, needed {value!r}" in str(error.value)
    assert open_store(tmp_path, other, None).missing(["a"]) == ["a"]
    with pytest.raises(BadInput, match=f"{field} is"):
        fill_store(store, ["b"], FakeTeacher(other))
    assert len(open_store(store.folder, teacher.identity, None)) == 1


def test_another_instruction_or_size_is_refused_naming_the_field(store, teacher):
    fill_store(store, ["a"], teacher)
    with pytest.raises(BadInput, match=r"instruction is None, needed 'Q:\{text\}'"):
        open_store(store.folder, teacher.identity, "Q:{text}")
    with pytest.raises(BadInput, match="embedding_dim is 8, needed 16"):
        open_store(store.folder, teacher.identity, None, embedding_dim=16)
    with pytest.raises(BadInput, match="'model' folder"):
        seal(store.folder, "model")
        open_store(store.folder, teacher.identity, None)


def test_an_unfilled_store_leaves_nothing_on_disk(tmp_path, teacher):
    store = open_store(tmp_path / "deep" / "root", teacher.identity, None)
    assert store.missing(["a"]) == ["a"] and not (tmp_path / "deep").exists()


def _damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[-3] ^= 4
    path.write_bytes(data if how == "flip" else data[:-5])


@pytest.mark.parametrize("part", ["00001.npy", "00001.keys.npy", "00001.json"])
@pytest.mark.parametrize("how", ["flip", "short", "missing"])
def test_a_damaged_shard_is_named_and_repair_recomputes_only_it(
    tmp_path, teacher, store, part, how
):
    texts = [f"text {i}" for i in range(10)]
    fill_store(store, texts, teacher, shard_rows=4)
    path = store.folder / "shards" / part
    if how == "missing":
        path.unlink()
    else:
        _damage(path, how)
    if part.endswith(".json") and how == "missing":
        assert describe(store.folder)["leftovers"] == ["00001.keys.npy", "00001.npy"]
    else:
        with pytest.raises(
            BadInput,
            match=r"shard 00001 of the teacher store .* is damaged.*taskdistill info .* --repair",
        ):
            open_store(tmp_path, teacher.identity, None).get(texts)
        assert describe(store.folder)["whole"] is False
        assert describe(store.folder)["faults"][0].startswith("shard 00001: ")
    assert repair(store.folder) and repair(store.folder) == []
    repaired = open_store(tmp_path, teacher.identity, None)
    assert repaired.missing(texts) == texts[4:8]
    assert fill_store(repaired, texts, teacher).embedded == 4
    assert np.array_equal(repaired.get(texts), stored(texts)) and repaired.check() == []
    assert max(teacher.seen.values()) == 2 and sum(teacher.seen.values()) == 14


def test_describe_says_what_a_store_is(store, teacher):
    fill_store(store, ["a", "b", "c"], teacher, shard_rows=2)
    said = describe(store.folder)
    assert said["teacher"] == teacher.identity.fields()
    assert (
        said["texts"],
        said["shards"],
        said["embedding_dim"],
        said["instruction"],
        said["whole"],
    ) == (3, 2, 8, None, True)
    assert said["bytes"] == sum(
        path.stat().st_size for path in store.folder.rglob("*") if path.is_file()
    )
    json.dumps(said, allow_nan=False)


def test_two_hundred_thousand_keys_are_found_where_they_are():
    rng = np.random.default_rng(5)
    texts = [f"{i} {'x' * (i % 7)}" for i in range(200_000)]
    keys = text_keys(texts)
    index = KeyIndex(keys)
    assert np.array_equal(index.rows(keys), np.arange(200_000))
    asked = rng.permutation(200_000)[:1000]
    assert np.array_equal(index.rows(text_keys([texts[i] for i in asked])), asked)
    assert (index.rows(text_keys([f"absent {i}" for i in range(1000)])) == -1).all()
    assert len(KeyIndex(keys[:0]).rows(keys[:3])) == 3


def test_keys_that_end_in_zero_bytes_stay_apart():
    raw = np.zeros((3, 16), np.uint8)
    raw[1, 15], raw[2, 0] = 1, 1
    keys = raw.view("S16").ravel()
    assert np.array_equal(KeyIndex(keys).rows(keys), [0, 1, 2])
    assert [key_name(key) for key in keys] == ["0" * 12, "0" * 12, "01" + "0" * 10]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=30))
def test_first_seen_is_the_order_of_a_dictionary(texts):
    assert [texts[i] for i in first_seen(text_keys(texts))] == list(dict.fromkeys(texts))


def test_unit_rows_leaves_bad_rows_for_the_quarantine():
    rows = unit_rows([[3, 4], [0, 0], [np.nan, 1], [np.inf, 0]])
    assert np.allclose(rows[0], [0.6, 0.8]) and rows.dtype == np.float32
    assert not rows[1].any() and np.isnan(rows[2, 0]) and np.isinf(rows[3, 0])


def test_folder_names_are_safe():
    assert slug("Qwen/Qwen3-Embedding-0.6B") == "Qwen-Qwen3-Embedding-0.6B"
    assert slug("../..") == "teacher" and slug("模型") == "teacher" and len(slug("a" * 500)) == 60
    assert (
        vector("a").shape == (8,)
        and TeacherIdentity(kind="local", model="m").fields()["weights"] is None
    )
