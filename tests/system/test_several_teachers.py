"""Several teachers: side by side or a head each, some for some sources only, and texts of which one
has no vector.
"""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_run

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.io.folders import read_manifest
from taskdistill.losses.terms.embedding import embedding_distance, teachers_distance
from taskdistill.losses.vectors import normalize
from taskdistill.recipe.recipe import parse_recipe

NAN = torch.nan


def test_the_distance_to_two_teachers_by_hand():
    ours = torch.tensor([[3.0, 4.0, 0.0, 2.0], [1.0, 0.0, 1.0, 1.0]])
    theirs = torch.tensor([[1.0, 0.0, 0.0, 5.0], [0.0, 1.0, 2.0, 2.0]])
    apart = teachers_distance(ours, theirs, [2, 2], apart=True)
    assert apart.item() == pytest.approx(1 - (0.6 + 1.0 + 0.0 + 1.0) / 4)
    joined = torch.cat([normalize(theirs[:, :2]), normalize(theirs[:, 2:])], dim=1)
    assert teachers_distance(ours, theirs, [2, 2], apart=False).item() == pytest.approx(
        embedding_distance(ours, joined).item()
    )
    summed = teachers_distance(ours, theirs, [2, 2], apart=True, reduction="sum")
    assert summed.item() == pytest.approx(2 * apart.item())


@pytest.mark.parametrize("apart", [True, False])
def test_a_part_without_vector_counts_for_nothing(apart):
    ours = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    theirs = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    theirs[0, :2], theirs[1, 2:], theirs[3] = NAN, NAN, NAN
    found = teachers_distance(ours, theirs, [2, 3], apart=apart)
    kept = [
        embedding_distance(ours[:1, 2:], theirs[:1, 2:]),
        embedding_distance(ours[1:2, :2], theirs[1:2, :2]),
    ]
    whole = teachers_distance(ours[2:3], theirs[2:3], [2, 3], apart=apart)
    assert found.item() == pytest.approx(sum(part.item() for part in (*kept, whole)) / 4)
    found.backward()
    assert torch.isfinite(ours.grad).all()
    assert (
        ours.grad[0, :2].abs().max()
        == ours.grad[1, 2:].abs().max()
        == ours.grad[3].abs().max()
        == 0
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data, two local teachers of other sizes of space, and vectors on disk that lack a third of
    the texts.
    """
    home = tmp_path_factory.mktemp("several")
    data = tiny.write_data(home / "data")
    for name, seed in (("one", 5), ("two", 6)):
        tiny.write_teacher(home / name, seed=seed)
    encoder = Encoder.load(home / "two", threads=1)
    lines = gzip.decompress((data / "texts" / "lone.jsonl.gz").read_bytes()).decode().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    known = texts[: 2 * len(texts) // 3]
    (home / "disk").mkdir()
    np.save(home / "disk" / "vectors.npy", encoder.encode(known, truncate_dim=16))
    tiny.write_jsonl(home / "disk" / "texts.jsonl", [{"text": text} for text in known])
    return home


def recipe(home, **changes):
    raw = tiny.recipe(home / "data", home / "one", steps=12)
    del raw["static"], raw["adapters"]
    raw["teacher"]["instructions"] = None
    raw["teachers"] = {
        "two": {"model": str(home / "two"), "max_length": 32, "instructions": None},
        "disk": {"kind": "precomputed", "model": str(home / "disk"), "instructions": None},
    }
    raw["data"]["sources"]["qa"]["teachers"] = ["teacher", "two"]
    raw["evaluation"] = {"sets": []}
    return raw | changes


@pytest.mark.parametrize("several", ["concatenate", "heads"])
def test_a_student_learns_from_all_of_them_and_what_lacks_is_counted(home, tmp_path, several):
    progress = tiny_run.train(recipe(home, several=several), tmp_path / several / "run")
    losses = [loss for _, loss in tiny_run.steps(tmp_path / several / "run")["stage1"]]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    encoder = Encoder.load(tmp_path / several / "run" / "model", threads=1)
    assert encoder.model.projection.weight.shape == (32 + 32 + 16, 32)
    facts = read_manifest(tmp_path / several / "run" / "model")["settings"]["teacher"]
    assert (
        facts["kind"] == "several"
        and facts["embedding_dim"] == 80
        and facts["model"].count(" + ") == 2
    )
    (note,) = [note for note in progress.notes if note.startswith("disk: no vector for")]
    lacking, asked = (int(word) for word in note.replace(",", "").split() if word.isdigit())
    assert 0 < lacking < asked  # the lone texts alone: qa is not for it
    stores = {
        path.name.rsplit("-", 1)[0]: len(list(path.glob("shards/*.npy")))
        for path in (tmp_path / several).glob("teacher-store/*")
    }
    assert stores.keys() == {"one", "two", "disk"}


def test_a_source_s_teacher_alone_decides_what_it_teaches(home, tmp_path):
    alone = recipe(home)
    del alone["teachers"]["disk"]
    alone["data"]["sources"] = {
        "lone": {"path": "texts/lone.jsonl.gz", "kind": "texts", "teachers": ["two"]}
    }
    alone["stage1"] = alone["stage1"] | {"sources": {"lone": 1}}
    tiny_run.train(alone, tmp_path / "run")
    assert [
        path.name.rsplit("-", 1)[0]
        for path in (tmp_path / "teacher-store").iterdir()
        if path.is_dir()
    ] == ["two"]
    weight = Encoder.load(tmp_path / "run" / "model", threads=1).model.projection.weight
    assert weight.shape == (64, 32)


def test_recipes_that_name_teachers_wrongly_are_refused(home):
    for change, told in (
        ({"teachers": {}}, r"data\.sources\.qa\.teachers needs several teachers"),
        ({"several": "head"}, "several"),
        ({"static": {"sources": {"lone": 1}}}, "no static student"),
        ({"teachers": {"teacher": {"model": "x", "instructions": None}}}, "which is the first one"),
    ):
        with pytest.raises(BadInput, match=told):
            parse_recipe(recipe(home) | change)
    raw = recipe(home)
    raw["data"]["sources"]["qa"]["teachers"] = ["tow"]
    with pytest.raises(BadInput, match="did you mean 'two'"):
        parse_recipe(raw)
