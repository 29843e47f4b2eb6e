"""The card of a run's model: what it names is what the run used, and its commands give its scores
again.
"""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from helpers import tiny

from taskdistill.cli.main import run
from taskdistill.pipeline.pairing import choose_start
from taskdistill.pipeline.resume import phase_fingerprint
from taskdistill.pipeline.train import train
from taskdistill.recipe.recipe import parse_recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run with stage 1 and two adapters, scored on two sets."""
    folder = tmp_path_factory.mktemp("card")
    raw = tiny.recipe(
        tiny.write_data(folder / "data"), tiny.write_teacher(folder / "teacher"), steps=2
    )
    raw["adapters"] = {task: raw["adapters"][task] for task in ("retrieval", "text-matching")}
    del raw["static"]
    raw["data"]["sources"]["qa"] |= {
        "languages": ["en"],
        "licence": "CC0 1.0",
        "note": "made-up questions",
    }
    raw["teacher"] |= {"licence": "MIT", "instructions": {"query": "find the answer"}}
    raw["evaluation"] = {"sets": ["retrieval/qa", "sts/sts"], "precisions": []}
    raw["licence"] = "Apache-2.0"
    train(parse_recipe(raw), folder / "run")
    return folder, parse_recipe(raw), (folder / "run/model/README.md").read_text()


def test_header_languages_and_licences(finished):
    _, recipe, text = finished
    fields = yaml.safe_load(text.split("---")[1])
    assert (
        fields["language"] == ["en"]
        and fields["license"] == "Apache-2.0"
        and "base_model" not in fields
    )
    assert "- teacher teacher: MIT" in text
    assert "- started from teacher: MIT" in text
    assert "- data qa: CC0 1.0" in text and "- data lone: not stated" in text
    assert "| languages in the training data | en |" in text
    assert "instructions: query `find the answer`" in text
    assert f"recipe `{choose_start(recipe)[0].digest()[:16]}`" in text


def test_data_with_the_rows_that_were_used_and_no_place_of_this_machine(finished):
    folder, _, text = finished
    assert "| qa: pairs/qa.train.jsonl.gz | pairs | 48 | en | CC0 1.0 | made-up questions |" in text
    assert "| lone: texts/lone.jsonl.gz | texts | 40 | not stated | not stated | - |" in text
    assert "topics:" not in text  # no phase used it
    assert str(folder) not in text


def test_every_score_has_a_command_that_gives_it_again(finished, tmp_path, monkeypatch):
    folder, _, text = finished
    commands = dict(re.findall(r"^(\d+)\. `(taskdistill [^`]+)`$", text, re.M))
    rows = re.findall(
        r"^\| ((?:retrieval|sts)/\S+) \| - \| (\S+) \| \S+ \| (\S+) \([^)]+\) \| (\S+) \| \S+ \|"
        r" (\d+) \|$",
        text,
        re.M,
    )
    assert [(name, adapter) for name, adapter, *_ in rows] == [
        ("retrieval/qa", "base"),
        ("retrieval/qa", "retrieval"),
        ("sts/sts", "base"),
        ("sts/sts", "text-matching"),
    ]
    metrics = json.loads((folder / "run/metrics.json").read_text())["results"]["scores"]
    monkeypatch.chdir(folder)
    for name, adapter, score, teacher, number in rows:
        shown = "base" if adapter == "base" else "adapters"
        assert float(score) == round(100 * metrics[shown][name]["score"], 2)
        assert float(teacher) == round(100 * metrics["teacher"][name]["score"], 2)
        words = shlex.split(commands[number])[1:]
        if adapter == "base":
            assert words == ["train", "recipe.yaml", "--out", "run"]
            continue
        words[words.index("scores")] = str(tmp_path / number)
        assert run([*words, "--quiet"]) == 0
        again = json.loads((tmp_path / number / "results.json").read_text())["scores"]["run/model"]
        assert again[name]["score"] == pytest.approx(metrics[shown][name]["score"], abs=1e-6)


def test_words_for_the_card_may_change_in_a_run_that_goes_on(finished):
    _, recipe, _ = finished
    raw = recipe.model_dump(mode="json")
    raw["data"]["sources"]["qa"] |= {"licence": "other", "note": None}
    raw["teacher"]["licence"] = raw["licence"] = None
    assert phase_fingerprint(parse_recipe(raw), "stage1") == phase_fingerprint(recipe, "stage1")
    raw["data"]["sources"]["qa"]["limit"] = 7
    assert phase_fingerprint(parse_recipe(raw), "stage1") != phase_fingerprint(recipe, "stage1")
