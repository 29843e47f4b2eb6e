"""A file in losses/terms is all that a new loss term needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import taskdistill

TOY = '''
"""The middle of the batch."""

from pydantic import Field

from taskdistill.losses.term import EVERY_ROW, PAIR_ROWS, LossTerm, TermConfig
from taskdistill.tasks import Task


class CenterConfig(TermConfig):
    """Keys of `menu`."""

    center_power: float = Field(default=2.0, ge=1, description="Of center")


def compute(config, inputs, width):
    """Length of the mean vector, to a power."""
    return inputs.unit(inputs.query_idx, width).mean(0).norm() ** config.center_power


TERMS = (
    LossTerm(
        name="center_of_queries",
        compute=compute,
        config=CenterConfig,
        tasks=(Task.RETRIEVAL,),
        rows={"base": EVERY_ROW, "adapter": PAIR_ROWS},
        needs=frozenset({"several_rows"}),
    ),
)
'''

CHILD = """
import json

import torch

from taskdistill.data.rows import Pair, make_dataset
from taskdistill.errors import BadInput
from taskdistill.recipe.recipe import Recipe, parse_recipe
from taskdistill.train.collate import collate
from taskdistill.train.loss_terms import stage1_weights, weights_for
from taskdistill.train.objective import Heads, Objective, Targets
from taskdistill.train.phases import plan_phase
from taskdistill.tasks import Task
from taskdistill.types import RowKind

PHASE = {"sources": {"qa": 1}, "steps": 2, "batch_size": 2, "lr": 1e-3}
TERM = "center_of_queries"


def recipe(**stage1):
    return parse_recipe(
        {
            "name": "toy",
            "data": {"root": "data", "sources": {"qa": {"path": "qa.jsonl", "kind": "pairs"}}},
            "teacher": {"model": "teacher", "instructions": None},
            "student": {"layers": [0], "matryoshka_dims": [2]},
            "stage1": {**PHASE, **stage1},
            "adapters": {"retrieval": {**PHASE, "weights": {TERM: 1.0}}},
        }
    )


def refusal(work):
    try:
        work()
    except BadInput as error:
        return str(error)


def plan(phase):
    rows = [Pair("a", "b"), Pair("c", "d")]
    return plan_phase(1, "stage1", phase, {"qa": make_dataset("qa", RowKind.PAIRS, rows)})


parsed = recipe(weights={TERM: 0.5}, menu={"center_power": 3.0})
batch = plan(parsed.stage1).at(0)
prepared = collate(batch, task=None, distil=True)
vectors = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
weights = stage1_weights("stage1", parsed.stage1.weights)
terms, masked = Objective(parsed.stage1, weights, [2])(vectors, prepared, Targets(), Heads())
terms[TERM].backward()
adapter = parsed.adapters[Task.RETRIEVAL]
found = Objective(adapter, weights_for(Task.RETRIEVAL, adapter.weights), [2]).terms
print(
    json.dumps(
        {
            "value": terms[TERM].item(),
            "moves": bool(vectors.grad.abs().sum() > 0),
            "adapter": [term.name for term in found],
            "schema": json.dumps(Recipe.model_json_schema()),
            "limit": refusal(lambda: recipe(menu={"center_power": 0})),
            "near": refusal(lambda: recipe(menu={"center_powr": 2})),
            "typo": refusal(lambda: stage1_weights("stage1", {"center_of_querys": 1})),
            "idle": refusal(lambda: plan(recipe(menu={"center_power": 3.0}).stage1)),
        }
    )
)
"""


def test_one_file_is_a_term_of_recipes_with_a_setting_of_its_own(tmp_path):
    package = tmp_path / "taskdistill"
    shutil.copytree(
        Path(taskdistill.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "losses" / "terms" / "center.py").write_text(TOY)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Queries (0.6, 0.8) and (1, 0): their mean is (0.8, 0.4), of length sqrt(0.8).
    assert abs(found["value"] - 0.8**1.5) < 1e-6 and found["moves"]
    assert found["adapter"] == ["info_nce", "distill", "gor", "center_of_queries"]
    assert "center_power" in found["schema"] and "center_of_queries" in found["schema"]
    assert found["limit"].startswith("recipe: stage1.menu.center_power: ")
    assert "did you mean 'center_power'" in found["near"]
    assert "did you mean 'center_of_queries'" in found["typo"]
    assert "no effect without a weight of center_of_queries" in found["idle"]
