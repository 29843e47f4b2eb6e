"""Weights divided among processes (FSDP2) have the gradients of whole ones, train as they do, and
go on to the same bits.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import process_child, tiny, tiny_run

from taskdistill.train.fsdp import full_tensor, is_sharded
from taskdistill.train.log import read_lines


def recipe(root: Path, shard: str) -> dict:
    raw = tiny.recipe(root / "data", root / "teacher", steps=6)
    del raw["static"]
    raw["adapters"] = {"retrieval": raw["adapters"]["retrieval"] | {"steps": 2}}
    raw["teacher"]["store"] = str(root / "store")
    raw["stage1"] |= {"shard": shard}
    raw["long"] = raw["stage1"] | {"steps": 2, "batch_size": 4}
    raw["evaluation"] |= {"during": {"every": 4, "sets": ["sts/sts"], "keep": "mean"}}
    return raw


def run(folder: Path, raw: dict, *modes: str) -> list[float]:
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(raw))
    for mode in modes:
        process_child.run(2, mode, str(folder))
    return json.loads((folder / "0.json").read_text())


@pytest.mark.slow
def test_a_recipe_with_divided_weights_trains_as_without_and_goes_on_to_the_same_bits(tmp_path):
    tiny.write_data(tmp_path / "data")
    tiny.write_teacher(tmp_path / "teacher")
    alone = [
        record["loss"]
        for record in tiny_run.train(recipe(tmp_path, "none"), tmp_path / "alone").records
    ]
    losses = run(tmp_path / "divided", recipe(tmp_path, "full"), "train")
    assert losses == pytest.approx(
        alone, rel=1e-2
    )  # AdamW turns the last bits of tiny gradients into signs
    assert losses[:2] == pytest.approx(alone[:2], rel=1e-4)
    continued = run(tmp_path / "stopped", recipe(tmp_path, "full"), "stopped", "train")
    assert continued == losses[3:]
    assert tiny_run.weights(tmp_path / "stopped" / "run") == tiny_run.weights(
        tmp_path / "divided" / "run"
    )
    scores = [
        record["scores"]
        for _, record in read_lines(tmp_path / "divided/run/log.jsonl")
        if "evaluated" in record
    ]
    wanted = [
        record["scores"]
        for _, record in read_lines(tmp_path / "alone/log.jsonl")
        if "evaluated" in record
    ]
    assert len(scores) == len(wanted) and scores[0] == pytest.approx(wanted[0], abs=1e-6)


def test_one_process_divides_nothing():
    model = tiny.student("bert")
    assert not is_sharded(model) and full_tensor(next(model.parameters())) is next(
        model.parameters()
    )
