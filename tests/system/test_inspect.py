"""`data inspect`: every candidate's relation is the one that training takes, by name, and the
masked share is the logged one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny, tiny_run

from taskdistill.cli.main import run as command
from taskdistill.data.batches import Batch, ClassificationItem
from taskdistill.data.rows import Pair
from taskdistill.errors import BadInput
from taskdistill.tasks import Task
from taskdistill.train.collate import Relation, collate, false_negatives, relations
from taskdistill.train.log import read_lines
from taskdistill.types import RowKind
from taskdistill.workflows.inspect_batch import InspectRequest, inspect_batch

P, N, H, D, M, L, U = (
    Relation.POSITIVE,
    Relation.NEGATIVE,
    Relation.HARD,
    Relation.DUPLICATE,
    Relation.MARGIN,
    Relation.LABEL,
    Relation.UNUSED,
)


def pairs(*rows: tuple[str, ...]):
    made = tuple(Pair(query, positive, tuple(negatives)) for query, positive, *negatives in rows)
    return collate(
        Batch(
            step=0,
            index=0,
            dataset="made",
            kind=RowKind.PAIRS,
            rows=made,
            row_ids=np.arange(len(made)),
        ),
        task=Task.RETRIEVAL,
        distil=True,
        negatives=9,
    )


def test_every_candidate_has_one_relation():
    prepared = pairs(("a", "b", "x", "y"), ("c", "d"), ("A", "e", "z", "b"))
    cosines = np.array([[0.5, 0.9, 0.1], [0.2, 0.6, 0.61], [0.0, 0.3, 0.4]])
    assert relations(prepared, cosines, 0.05).tolist() == [
        [P, M, D, H, H, N, D],
        [N, P, N, N, N, N, N],
        [D, N, P, N, N, H, D],
    ]
    assert relations(prepared).tolist()[0] == [P, N, D, H, H, N, D]
    assert relations(prepared, others=False).tolist() == [
        [P, N, D, H, H, U, D],
        [N, P, N, U, U, U, U],
        [D, N, P, U, U, H, D],
    ]


def test_masked_relations_are_the_mask_of_training():
    random = np.random.default_rng(0)
    for _ in range(100):
        rows = random.choice(["a", "A", "b", "c", "d "], size=(5, 4)).tolist()
        prepared, cosines, others = (
            pairs(*map(tuple, rows)),
            random.random((5, 5)),
            bool(random.integers(2)),
        )
        named = relations(prepared, cosines, 0.1, others=others)
        mask = np.isin(named.astype(str), [D.value, M.value, U.value])
        assert (mask == false_negatives(prepared, cosines, 0.1, others=others)).all()
        assert (named[np.arange(5), np.arange(5)] == P).all()


def test_relations_of_labels():
    items = (
        ClassificationItem(
            anchor="a", positive="b", negatives=("c",), label="x", negative_labels=("y",)
        ),
        ClassificationItem(
            anchor="d", positive="e", negatives=("f",), label="y", negative_labels=("x",)
        ),
    )
    prepared = collate(
        Batch(
            step=0, index=0, dataset="made", kind=RowKind.LABELLED, rows=items, row_ids=np.arange(2)
        ),
        task=Task.CLASSIFICATION,
        distil=False,
    )
    assert relations(prepared).tolist() == [[P, N, H, L], [N, P, L, H]]
    assert relations(prepared, mask_same_label=False).tolist() == [[P, N, H, N], [N, P, N, H]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("home")
    raw = tiny.recipe(tiny.write_data(root / "data"), tiny.write_teacher(root / "teacher"), steps=4)
    del raw["static"]
    raw["adapters"] = {
        name: raw["adapters"][name] | {"steps": 4} for name in ("retrieval", "classification")
    }
    raw["adapters"]["retrieval"] |= {"false_negative_margin": -0.2, "negatives_of_others": False}
    tiny_run.train(raw, root / "run")
    return root, raw


def lay_out(trained, **request):
    root, raw = trained
    return inspect_batch(tiny.parsed(raw), root, InspectRequest(**request), tiny_run.Recorder())


@pytest.mark.parametrize("phase", ["adapters.retrieval", "adapters.classification"])
@pytest.mark.parametrize("store", [True, False])
def test_the_masked_share_is_the_one_in_the_log(trained, phase, store):
    root, _ = trained
    logged = [
        r
        for _, r in read_lines(root / "run" / "log.jsonl")
        if r.get("phase") == phase and "step" in r
    ]
    for step in (0, 3):
        given = {"store": root / "teacher-store"} if store else {}
        title, columns, rows, notes = lay_out(trained, phase=phase, step=step, **given)
        assert title.startswith(
            f"{phase}, step {step}: {len(rows)} rows of {logged[step]['dataset']}"
        )
        share = next(note for note in notes if note.startswith("masked share: "))
        assert float(share.split()[2]) == pytest.approx(100 * logged[step]["masked"], abs=0.006)
        assert all(len(row) == len(columns) for row in rows)
    if phase == "adapters.retrieval":
        assert (
            any("masked, above the margin" in note for note in notes)
            and columns[-1] == "masked, above the margin"
        )


def test_one_row_shows_every_candidate(trained):
    _, columns, rows, notes = lay_out(trained, phase="adapters.retrieval", step=1, row=2)
    assert columns == ["candidate", "of row", "relation", "teacher's cosine", "text"] and notes[
        0
    ].startswith("query of row 2: what is")
    assert [row[2] for row in rows].count("positive") == 1 and rows[2][:3] == ["2", "2", "positive"]
    own = float(rows[2][3])
    for row in rows[:6]:
        assert row[2] in ("positive", "masked, duplicate or known positive") or (row[2] == M) is (
            float(row[3]) > own - 0.2
        )
    with pytest.raises(BadInput, match="the batch has rows 0 to 5, got 6"):
        lay_out(trained, phase="adapters.retrieval", step=1, row=6)
    with pytest.raises(BadInput, match="--row has no effect here: stage1 contrasts no candidates"):
        lay_out(trained, phase="stage1", step=1, row=0)


def test_phases_without_candidates_show_their_texts(trained):
    _, columns, rows, notes = lay_out(trained, phase="stage1", step=0)
    assert (
        columns[0] == "row"
        and len(rows) == 6
        and notes[0].startswith("compared with the teacher: ")
    )


def test_the_command_prints_the_batch(trained, capsys, tmp_path):
    root, raw = trained
    (tmp_path / "recipe.yaml").write_text(json.dumps(raw))
    arguments = [
        "data",
        "inspect",
        str(tmp_path / "recipe.yaml"),
        "--phase",
        "adapters.retrieval",
        "--step",
        "2",
    ]
    assert command([*arguments, "--store", str(root / "teacher-store")]) == 0
    assert "masked share: " in capsys.readouterr().out
    assert command([*arguments, "--row", "1"]) == 0
    assert "teacher's cosine" in capsys.readouterr().out
    assert (
        command(
            [
                "data",
                "inspect",
                str(tmp_path / "recipe.yaml"),
                "--phase",
                "adapters.retrieval",
                "--step",
                "9",
            ]
        )
        == 2
    )
