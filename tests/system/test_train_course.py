"""A phase that ends below where it began says so: in the terminal, in metrics.json, in the report
and on the card.
"""

from __future__ import annotations

import json

import pytest
from helpers import tiny, tiny_run

from taskdistill.pipeline import train as job
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.train.course import MEAN, Course, courses, read_course
from taskdistill.train.log import Log


def course(**ended):
    return Course(phase="stage1", step=9, began={"a": 0.5, "b": 0.7, MEAN: 0.6}, ended=ended)


def test_a_fall_of_the_mean_is_a_warning_and_one_of_a_set_is_named():
    (fell,) = course(a=0.45, b=0.7, mean=0.575).lines()
    assert fell.startswith(
        "warning: stage1 ended below where it began: development mean 60.0 before the first step,"
        " 57.5 after step 9"
    )
    assert "(a 50.0 to 45.0)" in fell and "stage1.lr" in fell and "evaluation.during.keep" in fell
    (rose,) = course(a=0.45, b=0.8, mean=0.625).lines()
    assert (
        rose
        == "stage1: development mean 60.0 before the first step, 62.5 after step 9; lower: a 50.0"
        " to 45.0"
    )
    (level,) = course(a=0.5, b=0.7, mean=0.6).lines()
    assert "lower" not in level and "warning" not in level


def test_the_course_is_that_of_the_state_kept(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for step, value in ((0, 0.5), (5, 0.8), (9, 0.4)):
        log.write(
            {"phase": "stage1", "evaluated": step, "scores": {}, "main": {"a": value, MEAN: value}}
        )
    assert read_course(log, "stage1", 9).change == pytest.approx(-0.1)
    assert read_course(log, "stage1", 5).change == pytest.approx(0.3)
    assert read_course(log, "stage1", 7) is None and read_course(log, "long", 9) is None
    log.write({"phase": "stage1", "course": read_course(log, "stage1", 9).as_dict()})
    assert courses(log) == [read_course(log, "stage1", 9)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("course")
    tiny.write_data(home / "data")
    tiny.write_teacher(home / "teacher")
    raw = tiny.recipe(home / "data", home / "teacher", steps=3)
    del raw["static"]
    raw["adapters"] = {"text-matching": raw["adapters"]["text-matching"]}
    raw["stage1"] |= {"lr": 30.0, "warmup": 0.0}  # such a rate harms any student
    raw["evaluation"] = {"dev": ["retrieval/qa-dev", "sts/sts"], "sets": ["sts/sts"]}
    return home, raw


def test_a_harmed_student_is_warned_of_everywhere(home, tmp_path):
    home, raw = home
    progress, out = tiny_run.Recorder(), tmp_path / "run"
    job.train(parse_recipe(raw), out, progress=progress)
    (warning,) = [note for note in progress.notes if note.startswith("warning: stage1 ended below")]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["course"]["stage1"]["ended"][MEAN] < metrics["course"]["stage1"]["began"][MEAN]
    assert metrics["course"]["stage1"]["began"].keys() == {"retrieval/qa-dev", "sts/sts", MEAN}
    assert metrics["course"]["adapters.text-matching"]["began"].keys() == {"sts/sts", MEAN}
    said = warning.removeprefix("warning: ")[:60]
    assert said in (out / "report.html").read_text()
    assert said[1:] in (out / "model" / "README.md").read_text()


def test_the_untrained_student_is_kept_where_nothing_scored_higher(home, tmp_path):
    home, raw = home
    raw = raw | {"evaluation": raw["evaluation"] | {"during": {"every": 1, "keep": "mean"}}}
    progress = tiny_run.train(raw, tmp_path / "run")
    assert any(note.startswith("stage1: the weights of step 0 are kept") for note in progress.notes)
    assert not any(note.startswith("warning: stage1") for note in progress.notes)
    (kept,) = [
        each for each in courses(Log(tmp_path / "run" / "log.jsonl")) if each.phase == "stage1"
    ]
    assert kept.step == 0 and kept.change == 0


def test_without_development_sets_nothing_is_scored(home, tmp_path):
    home, raw = home
    progress = tiny_run.train(raw | {"evaluation": {"sets": []}, "adapters": {}}, tmp_path / "run")
    assert courses(Log(tmp_path / "run" / "log.jsonl")) == []
    assert any("no development set is named" in note for note in progress.notes)
