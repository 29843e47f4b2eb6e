"""Loss traces of a tiny recipe, kept as files: a change that moves a loss shows here, and is then
made on purpose.

To write them anew after a change that is meant: TASKDISTILL_WRITE_GOLDEN=1 python -m pytest
tests/system/test_train_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers import tiny, tiny_run

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
STEPS = 20
PLACES = 9
TOLERANCE = 1e-4
"""Relative. The teacher's vectors are kept in half precision, and where last bits of matrix
products differ between machines some round apart.
"""


def test_losses_of_twenty_steps_of_every_phase(tmp_path):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=STEPS
    )
    raw["stage1"]["projection_init"] = "default"  # what these traces were written with
    records = tiny_run.train(raw, tmp_path / "run").records
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for name, value in record["terms"].items():
            found.setdefault(record["phase"], {}).setdefault(
                f"{name} {record['dataset']}", []
            ).append(round(value, PLACES))
    assert {
        phase: sorted({name.split()[0] for name in terms}) for phase, terms in found.items()
    } == {
        "static": ["distill"],
        "stage1": ["distill"],
        "adapters.retrieval": ["distill", "gor", "info_nce"],
        "adapters.text-matching": ["cosent", "distill", "info_nce"],
        "adapters.clustering": ["distill"],
        "adapters.classification": ["info_nce", "relational"],
    }
    if os.environ.get("TASKDISTILL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    wanted = json.loads(GOLDEN.read_text())
    assert found.keys() == wanted.keys()
    for phase, terms in wanted.items():
        for name, values in terms.items():
            assert found[phase][name] == pytest.approx(values, rel=TOLERANCE, abs=1e-8), (
                f"{phase} {name}"
            )
    for phase in ("static", "stage1"):
        losses = [record["loss"] for record in records if record["phase"] == phase]
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
