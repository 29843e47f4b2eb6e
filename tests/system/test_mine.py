"""`mine` as a job: the teacher's store is used again, a killed run goes on, and a folder made from
something else is refused.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny, tiny_run

from taskdistill.cli.main import run as command
from taskdistill.data import mining
from taskdistill.data.mining import MiningSettings
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.folders import check_folder, read_manifest
from taskdistill.pipeline.setup import load_inputs
from taskdistill.workflows import mine as job_mine
from taskdistill.workflows.mine import mine
from taskdistill.workflows.mine_vectors import MineRequest


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    return root


def recipe(home: Path):
    return tiny.parsed(tiny.recipe(home / "data", home / "teacher"))


def run(home: Path, out: Path, stop=lambda: False, **request: Any):
    progress = tiny_run.Recorder()
    settings = request.pop("settings", {})
    asked = MineRequest(
        source=request.pop("source", "qa"),
        settings=MiningSettings(**{"negatives": 3, "seed": 3} | settings),
        **request,
    )
    return mine(recipe(home), home, asked, out, progress, should_stop=stop), progress


def rows(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in gzip.decompress((out / "pairs/qa.train.jsonl.gz").read_bytes()).splitlines()
    ]


def test_rows_come_out_in_order_with_negatives_that_the_teacher_finds_near(home, tmp_path):
    counts, progress = run(home, tmp_path / "mined", candidates=("lone",), settings={"margin": 0.0})
    pairs = load_inputs(recipe(home), home / "data", tiny_run.Recorder()).datasets["qa"].rows
    found = rows(tmp_path / "mined")
    assert [(row["query"], row["positive"]) for row in found] == [
        (row.query, row.positive) for row in pairs
    ]
    assert all(
        row["negatives"][: len(pair.negatives)] == list(pair.negatives)
        for row, pair in zip(found, pairs, strict=True)
        if pair.negatives
    )
    assert (
        counts["rows"] == 48
        and counts["rows with 3"] + counts["rows with fewer"] + counts["rows with none"] == 48
    )
    assert counts["negatives"] == sum(len(row.get("negatives", [])) for row in found)
    teacher = Encoder.load(home / "teacher", threads=1)
    asked = recipe(home).teacher.instructions
    form = asked.template.replace("{instruction}", asked.query)
    for row, pair in list(zip(found, pairs, strict=True))[:8]:
        mined = row.get("negatives", [])[len(pair.negatives) :]
        query = teacher.encode([form.replace("{text}", row["query"])], prompt="", max_length=32)
        cosines = (teacher.encode([row["positive"], *mined], prompt="", max_length=32) @ query.T)[
            :, 0
        ]
        assert (cosines[1:] <= cosines[0] + 2e-3).all() and (np.diff(cosines[1:]) <= 2e-3).all()
    manifest = read_manifest(tmp_path / "mined", "mined")
    assert check_folder(tmp_path / "mined", manifest) == [] and manifest["counts"] == counts
    assert (
        manifest["fingerprint"]["vectors"]["teacher"]["kind"] == "local"
        and manifest["fingerprint"]["settings"]["margin"] == 0.0
    )
    again, progress = run(home, tmp_path / "mined", candidates=("lone",), settings={"margin": 0.0})
    assert again == counts and "mined before, from the same" in progress.notes


def test_the_store_of_a_run_is_used_again_and_the_output_trains(home, tmp_path):
    run(home, tmp_path / "mined", store=home / "store")
    _, progress = run(home, tmp_path / "again", store=home / "store")
    assert any("48 already in the store, 0 embedded" in note for note in progress.notes)
    assert rows(tmp_path / "again") == rows(tmp_path / "mined")
    raw = tiny.recipe(home / "data", home / "teacher", steps=2)
    del raw["static"]
    raw["data"]["sources"]["qa"]["path"] = str(tmp_path / "mined/pairs/qa.train.jsonl.gz")
    raw["adapters"] = {"retrieval": raw["adapters"]["retrieval"] | {"negatives": 3}}
    assert len(tiny_run.train(raw, tmp_path / "run").records) == 4


@pytest.mark.parametrize("model", [False, True])
def test_a_stopped_run_goes_on_to_the_same_bytes(home, tmp_path, model, monkeypatch):
    monkeypatch.setattr(mining, "QUERIES", 10)
    request = {"model": str(home / "teacher")} if model else {"store": home / "store"}
    counts, _ = run(home, tmp_path / "whole", **request)
    asked = iter(range(1000))
    with pytest.raises(WorkFailed, match="what is finished is kept, run the same command again"):
        run(home, tmp_path / "cut", stop=lambda: next(asked) >= 4, **request)
    left = sorted(path.name for path in (tmp_path / "cut.partial").iterdir())
    assert (
        "fingerprint.json" in left
        and any(name.startswith("block-") for name in left)
        and not (tmp_path / "cut").exists()
    )
    with pytest.raises(
        BadInput,
        match=r"cut.partial was made from something else: settings.negatives is 3, needed 4",
    ):
        run(home, tmp_path / "cut", settings={"negatives": 4}, **request)
    again, progress = run(home, tmp_path / "cut", **request)
    assert again == counts and "going on where the run before stopped" in progress.notes
    assert (tmp_path / "cut/pairs/qa.train.jsonl.gz").read_bytes() == (
        tmp_path / "whole/pairs/qa.train.jsonl.gz"
    ).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("cut")) == [
        "cut"
    ]


def test_a_folder_made_from_something_else_is_refused_naming_the_field(home, tmp_path):
    run(home, tmp_path / "mined", store=home / "store")
    for request, field in (
        ({"settings": {"last": 50}}, r"settings.last is 100, needed 50"),
        ({"candidates": ("lone",)}, r"candidates.lone is None, needed '"),
        ({"model": str(home / "teacher")}, r"vectors.model is None, needed 'tiny'"),
    ):
        with pytest.raises(BadInput, match=rf"mined was made from something else: {field}"):
            run(home, tmp_path / "mined", **request)
    (tmp_path / "full").mkdir()
    with pytest.raises(BadInput, match="exists and holds no mined pairs"):
        run(home, tmp_path / "full")
    path = tmp_path / "mined/pairs/qa.train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match="is damaged"):
        run(home, tmp_path / "mined")


def test_sources_that_cannot_be_mined_are_refused(home, tmp_path):
    with pytest.raises(BadInput, match=r"no source 'qaa'; did you mean 'qa'"):
        run(home, tmp_path / "mined", source="qaa")
    with pytest.raises(
        BadInput, match=r"source 'sts' has scored rows; hard negatives are mined for pairs"
    ):
        run(home, tmp_path / "mined", source="sts")


def test_the_command_prints_its_counts(home, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny.recipe(home / "data", home / "teacher")))
    arguments = [
        "mine",
        str(tmp_path / "recipe.yaml"),
        "--source",
        "qa",
        "--out",
        str(tmp_path / "mined"),
        "--store",
        str(home / "store"),
    ]
    assert (
        command(
            [*arguments, "--negatives", "2", "--quiet", "--json", str(tmp_path / "counts.json")]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        "rows with 2" in printed
        and "known positives kept out" in printed
        and "pairs/qa.train.jsonl.gz" in printed
    )
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert (
        counts["rows"] == 48
        and f"passed over by relative margin {counts['passed over by relative margin']:,}"
        in printed
    )
    assert (
        command([*arguments, "--pick", "best"]) == 2 and command([*arguments, "--model", "x"]) == 2
    )


@pytest.mark.parametrize(
    ("flags", "margins"),
    [
        ([], (None, 0.05)),
        (["--relative-margin", "0.1"], (None, 0.1)),
        (["--margin", "0.1"], (0.1, None)),
        (["--margin", "0.1", "--relative-margin", "0.2"], (0.1, 0.2)),
        (["--no-relative-margin"], (None, None)),
    ],
)
def test_the_margin_is_relative_unless_another_one_is_asked_for(
    tmp_path, monkeypatch, flags, margins
):
    def mined(recipe, folder, request, *_, **__):
        assert (request.settings.margin, request.settings.relative_margin) == margins
        return {}

    monkeypatch.setattr(job_mine, "mine", mined)
    (tmp_path / "recipe.yaml").write_text(json.dumps(tiny.recipe(tmp_path, tmp_path)))
    arguments = [
        "mine",
        str(tmp_path / "recipe.yaml"),
        "--source",
        "qa",
        "--out",
        str(tmp_path / "mined"),
        "--quiet",
    ]
    assert command([*arguments, *flags]) == 0
    assert command([*arguments, "--relative-margin", "0.1", "--no-relative-margin"]) == 2
