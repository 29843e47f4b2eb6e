"""Evaluation texts that were seen in training are counted, exactly and by 13 words in a row, and
what the teacher saw is told.
"""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from helpers.tiny import (
    model,
    recipe,
    student,
    write_data,
    write_jsonl,
    write_teacher,
    write_tokenizer,
)
from helpers.tiny_run import Recorder

from taskdistill.errors import BadInput
from taskdistill.evaluate.contamination import TrainingTexts, seen_in, teacher_saw, warnings_of
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.set_data import PairData, RankingData
from taskdistill.model.folder import write_model
from taskdistill.model.settings import ModelSettings
from taskdistill.report.tables import seen_table
from taskdistill.workflows.training_texts import read_training

LONG = "the old captain of the whale ship saw a storm near the small island and a harbour"


def test_exact_and_near_texts_and_queries_are_counted(tmp_path):
    rows = [
        {"query": "What  is a COMET?", "positive": f"It was said that {LONG}."},
        {"query": "nothing", "positive": "alike"},
    ]
    training = read_training(write_jsonl(tmp_path / "rows.jsonl", rows), Recorder())
    documents = {"1": f"{LONG}, long ago", "2": " ".join(LONG.split()[:12]), "3": "alike"}
    data = RankingData(
        documents=documents,
        queries={"a": "what is a comet?", "b": "what is a moon?"},
        qrels={"a": {"1": 1}, "b": {"2": 1}},
    )

    class Set:
        name = "retrieval/sea"

    result = seen_in(training, [Set], {"retrieval/sea": data})["retrieval/sea"]
    assert result == {
        "texts": 5,
        "exact": 2,
        "near": 1,
        "queries": {"texts": 2, "exact": 1, "near": 0},
        "teacher": None,
    }
    assert warnings_of("rows", {"retrieval/sea": result}) == [
        "retrieval/sea, trained on rows: of 5 texts 2 were seen word for word, 1 more share 13"
        " words in a row; among them 1 of 2 queries."
    ]
    assert [cell.main for cell in seen_table({"retrieval/sea": result}).cells()[0]] == [
        "retrieval/sea", "5", "2", "1", "1 of 2", "not declared"
    ]  # fmt: skip


def test_a_set_apart_is_not_flagged(tmp_path):
    training = read_training(
        write_jsonl(tmp_path / "rows.jsonl.gz", [{"text": "something else"}]), Recorder()
    )

    class Set:
        name = "sts/a"

    result = seen_in(
        training, [Set], {"sts/a": PairData(first=["x"], second=["y"], scores=None, languages=[""])}
    )
    assert (
        result == {"sts/a": {"texts": 2, "exact": 0, "near": 0, "teacher": None}}
        and warnings_of("rows", result) == []
    )


def test_a_recipe_a_run_and_a_data_folder_tell_the_same_texts(tmp_path):
    root, teacher = write_data(tmp_path / "data"), write_teacher(tmp_path / "teacher")
    raw = recipe(root, teacher)
    raw["teacher"]["trained_on"] = ["sts/*", "qa"]
    path = tmp_path / "run" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(raw))
    by_recipe, by_run = read_training(path, Recorder()), read_training(path.parent, Recorder())
    by_data = read_training(root, Recorder())
    assert (
        by_recipe.trained.texts == by_run.trained.texts == by_data.trained.texts
        and by_run.texts > 100
    )
    assert (
        by_run.teacher == ["sts/*", "qa"]
        and by_data.teacher is None
        and (by_recipe.name, by_run.name) == ("recipe", "run")
    )
    sets = find_eval_sets(root)
    result = seen_in(by_run, sets, {each.name: each.load() for each in sets})
    assert {name: counts["teacher"] for name, counts in result.items()} == {
        "retrieval/qa": True, "sts/sts": True, "classification/topics": False
    }  # fmt: skip
    assert "the teacher was trained on this set" in " ".join(warnings_of("run", result))


def test_a_model_folder_tells_its_run_or_what_its_teacher_declares(tmp_path):
    built = model(student(), write_tokenizer(tmp_path / "tokenizer"))
    built.settings = ModelSettings(
        prompts={}, max_length=64, teacher={"model": "big", "trained_on": ["NQ"]}
    )
    write_model(tmp_path / "run" / "model", built)
    progress = Recorder()
    training = read_training(tmp_path / "run" / "model", progress)
    assert (
        training.trained is None
        and training.teacher == ["NQ"]
        and "only what its teacher declares" in progress.notes[0]
    )

    class Set:
        name = "retrieval/NQ"

    result = seen_in(
        training,
        [Set],
        {"retrieval/NQ": PairData(first=["x"], second=["y"], scores=None, languages=[""])},
    )
    assert result == {"retrieval/NQ": {"texts": 2, "exact": None, "near": None, "teacher": True}}
    assert [cell.main for cell in seen_table(result).cells()[0]] == [
        "retrieval/NQ",
        "2",
        "–",
        "–",
        "yes",
    ]
    root = write_data(tmp_path / "data")
    (tmp_path / "run" / "recipe.yaml").write_text(
        yaml.safe_dump(recipe(root, write_teacher(tmp_path / "teacher")))
    )
    assert read_training(tmp_path / "run" / "model", Recorder()).trained is not None
    built.settings = ModelSettings(prompts={}, max_length=64)
    write_model(tmp_path / "alone", built)
    with pytest.raises(
        BadInput, match="has no recipe beside it and declares nothing of its teacher"
    ):
        read_training(tmp_path / "alone", Recorder())


def test_what_tells_no_training_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BadInput, match="tells no training data; give a recipe"):
        read_training(tmp_path / "a.txt", Recorder())
    write_jsonl(tmp_path / "only" / "labelled" / "a.test.jsonl.gz", [{"text": "a", "label": "x"}])
    with pytest.raises(BadInput, match="has no train split and no texts"):
        read_training(tmp_path / "only", Recorder())
    with pytest.raises(BadInput, match="no rows with a text under query"):
        read_training(write_jsonl(tmp_path / "b.jsonl", [{"other": "x"}]), Recorder())
    (tmp_path / "docs.yaml").write_text(
        json.dumps(
            recipe(tmp_path, tmp_path)
            | {"data": {"sources": recipe(tmp_path, tmp_path)["data"]["sources"]}}
        )
    )
    with pytest.raises(BadInput, match="trains on the embedded default"):
        read_training(tmp_path / "docs.yaml", Recorder())
    shutil.rmtree(tmp_path / "only")


def test_declared_patterns_fit_whole_names_and_last_parts():
    assert (
        teacher_saw(["sts/*"], "sts/a")
        and teacher_saw(["SciFact"], "SciFact")
        and teacher_saw(["scifact"], "retrieval/scifact")
    )
    assert teacher_saw([], "sts/a") is False and teacher_saw(None, "sts/a") is None
    assert TrainingTexts("a", None, 0).teacher is None
