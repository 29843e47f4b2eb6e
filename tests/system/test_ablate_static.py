"""Ablations of a token table: it starts at random, its tokens are made once, and the smoke preset
runs from the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny, tiny_ablation

from taskdistill.ablate.context import open_context
from taskdistill.ablate.phases import Hyperparameters
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.ablate.settings import make_experiment
from taskdistill.ablate.static import CachedTokenizer, static_student
from taskdistill.ablate.training_run import result_of, run_training
from taskdistill.cli.main import run
from taskdistill.errors import BadInput
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.recipe.recipe import parse_recipe

TEXTS = [
    "a short text",
    "one that is longer than the limit, so that its end is cut off",
    "",
    "a short text",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    return root


def raw(home: Path, **student: Any) -> dict[str, Any]:
    made = tiny_ablation.raw(home / "data", home / "teacher")
    kept = {
        name: made["student"][name]
        for name in ("init", "tokenizer", "max_length", "matryoshka_dims")
    }
    made["student"] = {**kept, "config": {"model_type": "static", "hidden_size": 16}, **student}
    return made


def context(home: Path, out: Path, **student: Any):
    out.mkdir(exist_ok=True)
    return open_context(
        make_experiment(parse_recipe(raw(home, **student)), tiny_ablation.settings()), out, home
    )


def test_the_table_is_random_and_rare_tokens_are_long(home, tmp_path):
    made = context(home, tmp_path)
    table = static_student(made.experiment, made.datasets).module.table.detach()
    assert isinstance(made.base.module, StaticModel) and torch.equal(table, made.base.module.table)
    units = torch.nn.functional.normalize(table, dim=1)
    close = (units @ units.T).fill_diagonal_(0)
    assert float(close.mean().abs()) < 0.02, "random directions are unrelated"
    seen = made.base.tokenizer.ids(
        [row.query for row in made.datasets["qa"].rows], prompt="", max_length=32
    ).ids
    counts = np.bincount(np.concatenate(seen), minlength=len(table))
    often, never = table[int(counts.argmax())], table[counts == 0]
    assert float(often.norm()) < 0.5 * float(never.norm(dim=1).mean())


def test_settings_that_do_nothing_in_a_table_are_refused(home, tmp_path):
    for words, student in (
        ("student.pooling has no effect", {"pooling": "mean"}),
        ("hidden_size None", {"config": {"model_type": "static"}}),
        ("'layers': 2", {"config": {"model_type": "static", "hidden_size": 16, "layers": 2}}),
    ):
        with pytest.raises(BadInput, match=words):
            assert context(home, tmp_path, **student).base


def test_a_tokenizer_that_remembers_gives_the_same_ids_for_every_limit_and_prompt(
    home, monkeypatch
):
    plain = TextTokenizer.load(home / "teacher", special=False)
    once = CachedTokenizer(plain)
    for prompt, limit in (("", 64), ("query: ", 8), ("", 4), ("", 64)):
        wanted, found = (each.ids(TEXTS, prompt=prompt, max_length=limit) for each in (plain, once))
        assert [row.tolist() for row in found.ids] == [row.tolist() for row in wanted.ids]
        assert found.truncated.tolist() == wanted.truncated.tolist()
    monkeypatch.setattr(TextTokenizer, "ids", lambda *_, **__: pytest.fail("made again"))
    assert len(once.ids(TEXTS, prompt="query: ", max_length=8).ids) == len(TEXTS)


def test_tokens_made_once_change_no_weight_and_are_not_in_the_steps(home, tmp_path):
    weights = []
    for name in ("once", "each-step"):
        made = context(home, tmp_path / name)
        if name == "each-step":
            made.once = None
        spec = TrainingRun(
            kind="run", arm="C", seed=3, steps=8, point=Hyperparameters(1e-2, 0.05, 2.0)
        )
        run_training(
            made, spec, should_stop=lambda: False, on_steps=lambda *_: None, note=lambda _: None
        )
        result = result_of(made, spec)
        assert result is not None
        weights.append(result["hashes"]["weights"])
    assert weights[0] == weights[1]


def printed(capsys) -> str:
    """What is printed from the table of arms on."""
    return capsys.readouterr().out.partition("nDCG@10 x 100")[2]


def test_the_smoke_preset_runs_from_the_command_line_and_again_trains_nothing(
    home, tmp_path, capsys
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw(home)))
    out = tmp_path / "out"
    command = [
        "ablate",
        str(recipe),
        "--preset",
        "smoke",
        "--set",
        "ablation.points=2",
        "--out",
        str(out),
    ]
    assert run(command) == 0
    first = printed(capsys)
    results = json.loads((out / "results.json").read_text())
    assert (
        list(results["arms"]) == ["A0", "D", "C", "DC"] and len(results["arms"]["DC"]["runs"]) == 2
    )
    assert results["verdict"]["state"] in first and "DC - C" in first
    trained = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert run(command) == 0
    assert printed(capsys) == first
    assert (
        "taskdistill ablate recipe.yaml --preset smoke --set ablation.points=2 --out out"
        in (out / "report.html").read_text()
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == trained
