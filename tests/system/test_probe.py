"""Candidate teachers are scored together with the static students that they make, and the stronger
one need not win.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.tiny import WORDS, write_data, write_jsonl, write_teacher
from helpers.tiny_run import Recorder

from taskdistill.cli.main import run
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import EvalSelection
from taskdistill.evaluate.models.external import parse_spec
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.teacher.store import open_store
from taskdistill.train.static_init import start_table
from taskdistill.workflows.compare_teachers import StudentOptions, advice, compare_teachers
from taskdistill.workflows.student_maker import EmbedderTeacher


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("probe")
    write_data(root / "data")
    write_teacher(root / "one", seed=5)
    write_teacher(root / "two", seed=6)
    return root


def test_two_teachers_and_their_students_side_by_side(place, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [
        "compare-teachers",
        place / "one",
        place / "two",
        "--data",
        place / "data",
        "--out",
        out,
        "--max-texts",
        "60",
        "--steps",
        "20",
    ]
    assert run([str(each) for each in argv]) == 0
    shown = capsys.readouterr().out
    found = json.loads((out / "probe.json").read_text("utf-8"))
    rows = found["teachers"]
    assert {row["teacher"] for row in rows} == {"one", "two"} and rows[0]["student"] >= rows[1][
        "student"
    ]
    means = found["results"]["means"]
    for row in rows:
        assert (
            row["score"] == means[row["teacher"]]["types"]
            and row["student"] == means[f"{row['teacher']}: student"]["types"]
        )
        assert row["dim"] == 32 and set(row["by_type"]) == {"retrieval", "sts", "classification"}
        assert row["student"] != pytest.approx(row["score"])
    assert (
        "A stronger teacher is not always the better one" in shown
        and "beyond chance on" in found["advice"]
    )
    assert found["advice"] in " ".join(shown.split())
    students = sorted(path.name for path in (out / "students").iterdir())
    assert len(students) == 2 and students[0].startswith("one-"), "no leftovers of training"

    before = {
        path: path.stat().st_mtime_ns
        for path in out.rglob("*")
        if path.is_file() and path.suffix in (".npy", ".safetensors")
    }
    assert run([*map(str, argv), "--json", str(tmp_path / "copy.json")]) == 0
    assert {
        path: path.stat().st_mtime_ns for path in before
    } == before and "made before" in capsys.readouterr().out
    again = json.loads((tmp_path / "copy.json").read_text("utf-8"))
    assert again["results"]["scores"] == found["results"]["scores"]
    assert run([*map(str, argv), "--eval-set", "sts/sts", "--steps", "21", "--quiet"]) == 0
    assert (
        json.loads((out / "probe.json").read_text("utf-8"))["teachers"][0]["student"]
        != rows[0]["student"]
    )


def test_without_training_texts_students_learn_from_the_corpora(place, tmp_path):
    root = tmp_path / "data"
    (root).mkdir()
    (place / "data" / "retrieval" / "qa").rename(root / "moved")
    (root / "retrieval").mkdir()
    (root / "moved").rename(root / "retrieval" / "qa")
    progress = Recorder()
    found = compare_teachers(
        [parse_spec(str(place / "one"))], EvalSelection(root), tmp_path / "out", progress
    )
    assert any("of the documents of the retrieval sets" in note for note in progress.notes)
    assert (
        found["advice"].startswith("One candidate: its student keeps ")
        and len(found["teachers"]) == 1
    )
    (root / "retrieval" / "qa").rename(place / "data" / "retrieval" / "qa")


def test_texts_of_another_place_are_learned_from(place, tmp_path):
    rows = write_jsonl(
        tmp_path / "more.jsonl", [{"text": f"ship {word} whale"} for word in WORDS[:30]]
    )
    progress = Recorder()
    spec = [parse_spec(str(place / "one"))]
    compare_teachers(
        spec,
        EvalSelection(place / "data", ["sts/sts"]),
        tmp_path / "out",
        progress,
        students=StudentOptions(rows, str(place / "two")),
    )
    assert "students learn from 30 of 30 texts of more.jsonl" in progress.notes
    with pytest.raises(BadInput, match="tells no training data"):
        compare_teachers(
            spec,
            EvalSelection(place / "data"),
            tmp_path / "out",
            progress,
            students=StudentOptions(tmp_path / "none.txt"),
        )


def test_vectors_on_disk_cannot_make_a_student(place, tmp_path):
    (tmp_path / "vectors").mkdir()
    np.save(tmp_path / "vectors" / "vectors.npy", np.eye(2))
    with pytest.raises(BadInput, match="a student needs those of its vocabulary too"):
        compare_teachers(
            [parse_spec(str(tmp_path / "vectors"))],
            EvalSelection(place / "data"),
            tmp_path / "out",
            Recorder(),
        )


def test_only_some_tokens_are_embedded(place, tmp_path):
    class Ones:
        name = "ones"

        def __init__(self) -> None:
            self.texts = 0

        def encode(self, texts, *, task, prompt_name):
            self.texts += len(texts)
            return np.array([[len(text), 1, 0] for text in texts], dtype=np.float32)

        def fingerprint(self) -> str:
            return "ones"

    model = Ones()
    teacher = EmbedderTeacher(model)
    tokenizer = TextTokenizer.load(place / "one", special=False)
    store = open_store(tmp_path / "store", teacher.identity, None)
    wanted = sorted(
        {int(i) for row in tokenizer.ids(["ship whale"], prompt="", max_length=9).ids for i in row}
    )
    table = start_table(tokenizer, teacher, store, ["ship whale"], only=wanted)
    assert model.texts == len(wanted) == 2
    filled = table.table.abs().sum(1).nonzero().flatten().tolist()
    assert filled == wanted and len(table.table) == len(tokenizer)


def test_advice_says_who_wins():
    def row(name: str, score: float, student: float) -> dict:
        return {"teacher": name, "score": score, "student": student}

    told = advice([row("small", 0.5745, 0.3974), row("big", 0.597, 0.2455)], (2, 3))
    assert told.startswith(
        "A stronger teacher is not always the better one: big scores best itself (59.7 against"
        " 57.5), but small makes the better student (39.7 against 24.6). Its student is ahead of"
        " the next one beyond chance on 2 of 3 sets."
    )
    assert advice([row("a", 0.6, 0.5), row("b", 0.5, 0.4)]).startswith(
        "a scores best itself and makes the best student here."
    )
