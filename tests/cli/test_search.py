"""The commands around an index: build, change, search, tune, and queries by a student."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny

from taskdistill.cli.main import run
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.projected import ProjectedEncoder, in_space
from taskdistill.errors import BadInput
from taskdistill.model.folder import write_model
from taskdistill.model.projection import Projection
from taskdistill.search.index import Index
from taskdistill.workflows.search_examples import evaluation_folder, search_examples


def write(folder, model, **settings):
    model.settings = replace(model.settings, **settings)
    write_model(folder, model)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A teacher, a student with a projection into its space, one without, and a data folder."""
    home = tmp_path_factory.mktemp("commands")
    source = tiny.write_tokenizer(home / "tokenizer")
    teacher = tiny.model(tiny.student(seed=5), source, prompts={})
    write(home / "teacher", teacher)
    student = tiny.model(tiny.student(seed=1), source)
    student.projection = Projection(32, 32, "identity").eval()
    facts = {"model": str(home / "teacher"), "embedding_dim": 32, "space_id": teacher.space_id}
    write(home / "student", student, teacher=facts)
    write(home / "other", tiny.model(tiny.student(seed=2), source))
    tiny.write_data(home / "data")
    return home


def ok(*argv):
    assert run([str(each) for each in argv]) == 0


def fails(capsys, *argv):
    capsys.readouterr()
    assert run([str(each) for each in argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


@pytest.fixture
def index(home, tmp_path):
    ok(
        "index",
        home / "teacher",
        home / "data/retrieval/qa-dev/corpus.jsonl.gz",
        "--out",
        tmp_path / "index",
        "--quiet",
    )
    return tmp_path / "index"


def test_index_search_delete_and_compact(home, index, tmp_path, capsys):
    hits = tmp_path / "hits.json"
    capsys.readouterr()
    ok("search", index, "what is wheat milk cow?", "-k", 3, "--json", hits)
    shown, results = capsys.readouterr().out.splitlines(), json.loads(hits.read_text())
    assert len(shown) == len(results) == 3 and all(
        hit["id"] in line for hit, line in zip(results, shown, strict=True)
    )
    ok("index", "delete", index, results[0]["id"], "unknown")
    assert "1 of 2 documents deleted, 11 left" in capsys.readouterr().out
    ok("index", "compact", index)
    assert "11 documents, 1 segments" in capsys.readouterr().out
    ok("search", index, "what is wheat milk cow?", "-k", 3, "--json", hits)
    assert results[0]["id"] not in [hit["id"] for hit in json.loads(hits.read_text())]


def test_fields_are_named_and_passages_come_with_their_place(home, tmp_path, capsys):
    rows = [{"key": i, "said": "the old ship. " * 8 + "a new star. " * 8} for i in range(3)]
    corpus = tiny.write_jsonl(tmp_path / "c.jsonl", rows)
    assert "no field text" in fails(
        capsys, "index", home / "teacher", corpus, "--out", tmp_path / "i"
    )
    options = (
        "--text-field",
        "said",
        "--id-field",
        "key",
        "--passage-words",
        10,
        "--json",
        tmp_path / "n.json",
    )
    ok("index", home / "teacher", corpus, "--out", tmp_path / "i", "--quiet", *options)
    assert json.loads((tmp_path / "n.json").read_text())["added"] == 3
    capsys.readouterr()
    ok("search", tmp_path / "i", "star", "-k", 1)
    assert "[" in capsys.readouterr().out.split()[1]


def test_a_folder_named_like_a_second_word_is_reached_by_its_path(
    home, index, tmp_path, capsys, monkeypatch
):
    index.rename(tmp_path / "tune")
    monkeypatch.chdir(tmp_path)
    ok("search", "./tune", "star", "-k", 1)
    assert run(["search", "tune", "--help"]) == 0 and "--shrink" in capsys.readouterr().out
    assert run(["search", "--help"]) == 0 and "--hybrid" in capsys.readouterr().out


def test_tune_measures_says_whom_it_harms_and_writes_its_choice(home, index, tmp_path, capsys):
    dev, report = home / "data/retrieval/qa-dev", tmp_path / "tuning.json"
    capsys.readouterr()
    ok("search", "tune", index, "--dev", dev, "--dims", "16,32", "--json", report, "--quiet")
    out, tuning = capsys.readouterr().out, json.loads(report.read_text())
    assert "harms" in out and "written to" in out and "% of queries are harmed" in out
    assert tuning["queries"] == 12 and {row["setting"]["dim"] for row in tuning["rows"]} == {16, 32}
    assert {each["setting"]["hybrid"] for each in tuning["additions"]} <= {True, False} and tuning[
        "additions"
    ]
    stored = tuning["stored"]["setting"]
    assert (stored["dim"], stored["rescore"]) == (32, "int8")
    chosen = Index.open(index).snapshot.manifest
    same = tuning["recommended"]["setting"]
    used = same if (same["dim"], same["rescore"]) == (32, "int8") else stored
    assert chosen.search.to_json() == {
        name: used[name] for name in ("oversample", "hybrid", "refinement")
    }
    assert chosen.search.hybrid == (chosen.bm25 is not None)


def test_tune_shrinks_only_when_told(home, index, capsys):
    dev = (
        "--dev",
        home / "data/retrieval/qa-dev",
        "--dims",
        "16",
        "--precisions",
        "none",
        "--no-hybrid",
        "--no-refine",
        "--quiet",
    )
    ok("search", "tune", index, *dev, "--tolerance", 100, "--dry-run")
    assert Index.open(index).settings.dim == 32
    ok("search", "tune", index, *dev, "--tolerance", 100)
    assert "--shrink" in capsys.readouterr().out and Index.open(index).settings.dim == 32
    ok("search", "tune", index, *dev, "--tolerance", 100, "--shrink")
    assert (Index.open(index).settings.dim, Index.open(index).settings.rescore) == (16, "none")
    assert "give one of the two" in fails(
        capsys, "search", "tune", index, *dev, "--shrink", "--dry-run"
    )
    assert "--dims 'x'" in fails(
        capsys, "search", "tune", index, "--dev", home / "data/retrieval/qa-dev", "--dims", "x"
    )
    assert "space_id" in fails(capsys, "search", "tune", index, *dev, "--model", home / "other")


def test_a_student_asks_its_teachers_index_and_strangers_are_refused(home, index, tmp_path, capsys):
    hits = tmp_path / "hits.json"
    ok(
        "search",
        index,
        "what is wheat?",
        "--query-model",
        home / "student",
        "-k",
        12,
        "--json",
        hits,
    )
    student = Encoder.load(home / "student")
    vector = student.project(student.encode(["what is wheat?"], prompt_name="query"))
    expected = Index.open(index).search(vector, 12)[0]
    assert [hit["id"] for hit in json.loads(hits.read_text())] == [hit.id for hit in expected]
    message = fails(capsys, "search", index, "what is wheat?", "--model", home / "other")
    assert "is not the index's" in message and Encoder.load(home / "other").space_id in message


def test_a_projection_reaches_base_vectors_of_its_teacher_only(home):
    student = Encoder.load(home / "student")
    projected = in_space(student, Encoder.load(home / "teacher").space_id)
    assert (
        isinstance(projected, ProjectedEncoder) and in_space(student, student.space_id) is student
    )
    np.testing.assert_allclose(
        projected.encode(["the old ship"]), student.encode(["the old ship"]), atol=1e-6
    )
    assert projected.encode(["the old ship"], truncate_dim=8).shape == (1, 8)
    with pytest.raises(BadInput, match="trained on the base"):
        projected.encode(["the old ship"], task="retrieval")
    with pytest.raises(BadInput, match="does not say"):
        ProjectedEncoder(Encoder.load(home / "other"))


def test_tiers_report_retention_and_milliseconds(home, tmp_path, capsys):
    ok(
        "tiers",
        home / "student",
        "--dev",
        home / "data/retrieval/qa-dev",
        "--json",
        tmp_path / "t.json",
        "--quiet",
    )
    results = json.loads((tmp_path / "t.json").read_text())
    projected = f"tiny in the space of {home / 'teacher'}"
    pairs = [(each["queries"], each["documents"]) for each in results]
    assert pairs == [
        ("tiny", "tiny"),
        (projected, projected),
        ("tiny", projected),
        (projected, "tiny"),
        ("tiny", "tiny"),
    ]
    assert results[4]["retention"]["value"] == 1
    assert results[3]["retention"]["value"] == pytest.approx(
        results[3]["ndcg"]["value"] / results[4]["ndcg"]["value"]
    )
    assert all(each["query_milliseconds"] > 0 for each in results) and {
        each["space"] for each in results[1:]
    } == {results[4]["space"]}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "queries",
        *["tiny,"] * bool(results[0]["task"]),
        *["tiny"] * (5 - bool(results[0]["task"])),
    ]
    assert "space_id" in fails(
        capsys,
        "tiers",
        home / "student",
        "--dev",
        home / "data/retrieval/qa-dev",
        "--teacher",
        home / "other",
    )


def test_index_refuses_both_base_and_task(home, tmp_path, capsys):
    corpus = home / "data/retrieval/qa-dev/corpus.jsonl.gz"
    assert "give one of the two" in fails(
        capsys,
        "index",
        home / "teacher",
        corpus,
        "--out",
        tmp_path / "i",
        "--base",
        "--task",
        "retrieval",
    )


def test_the_data_of_a_run_are_looked_for_beside_its_recipe_too(home, tmp_path):
    raw = tiny.recipe(Path("data"), home / "teacher")
    assert evaluation_folder(tiny.parsed(raw), tmp_path / "run", home) == home / "data"
    raw["data"] |= {"root": "docstrings"}
    assert evaluation_folder(tiny.parsed(raw), tmp_path / "run", home) == tmp_path / "run-data"


def test_a_run_leaves_an_index_of_its_own_model_and_serve_opens_both(
    home, tmp_path, monkeypatch, capsys
):
    raw = tiny.recipe(home / "data", home / "teacher")
    raw["evaluation"] |= {
        "root": str(home / "data"),
        "examples": ["what is wheat?", "what is a star?"],
    }
    recipe, out = tiny.parsed(raw), tmp_path / "run"
    for model in ("student", "other"):
        shutil.rmtree(out / "model", ignore_errors=True)
        shutil.copytree(home / model, out / "model")
        results = search_examples(recipe, out)
        encoder = Encoder.load(out / "model")
        index = Index.open(out / "index")
        assert index.settings.model_hash == encoder.model_hash and index.documents > 0
        best = index.search(["what is wheat?"], 3, encoder=encoder)[0]
        assert [line.split(":")[0] for _, line in results[0][1]] == [
            hit.id for hit in best
        ] and results[1][0] == "what is a star?"
    started = {}
    monkeypatch.setattr(
        "taskdistill.serve.server.serve",
        lambda encoder, **options: started.update(options, encoder=encoder),
    )
    capsys.readouterr()
    ok("serve", out, "--port", 0)
    assert (
        started["encoder"].model_hash == encoder.model_hash
        and started["index"].path == out / "index"
    )
    assert str(out / "index") in capsys.readouterr().out
    ok("serve", out / "model")
    assert started["index"] is None
