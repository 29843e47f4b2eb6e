"""A file in evaluate/tasks is all that a new evaluation task type needs."""

from __future__ import annotations

import sys

import numpy as np

from taskdistill.evaluate import tasks
from taskdistill.evaluate.datasets import TASK_TYPES, find_eval_sets, task_types
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.report.page import ReportData, render_report

TOY = """
import numpy as np

from taskdistill.evaluate.set_data import PairData
from taskdistill.evaluate.task_type import EvaluationTask, Score
from taskdistill.tasks import Task


class Halves(EvaluationTask[PairData]):
    name, title, order = "halves", "Matching halves", 10
    metric, metrics = "agreement", ("agreement",)
    adapter, mteb_type, data_type = Task.TEXT_MATCHING, "STS", PairData

    def find(self, root, split):
        for path in sorted((root / "halves").glob("*.txt")):
            yield self.eval_set(path.stem, split, path)

    def load(self, name, files, limit, seed):
        lines = files[0].read_text().splitlines()[:limit]
        first, second = zip(*(line.split() for line in lines), strict=True)
        return PairData(
            first=list(first), second=list(second), scores=None, languages=[""] * len(lines)
        )

    def score(self, data, vectors):
        units = (vectors["first"] == vectors["second"]).all(axis=1).astype(float)
        return Score(float(units.mean()), {"agreement": float(units.mean())}, {"": units})


TASK = Halves()
"""


class Lengths:
    name = "lengths"

    def encode(self, texts, *, task, prompt_name):
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    def fingerprint(self) -> str:
        return "lengths"


def test_a_file_in_the_folder_is_found_scored_and_reported(tmp_path, monkeypatch):
    (tmp_path / "types").mkdir()
    (tmp_path / "types" / "halves.py").write_text(TOY)
    (tmp_path / "data" / "halves").mkdir(parents=True)
    (tmp_path / "data" / "halves" / "words.txt").write_text("ab cd\nab cde\n")
    monkeypatch.setitem(TASK_TYPES.__dict__, "names", (*TASK_TYPES.names, "halves"))
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "types")])
    try:
        sets = find_eval_sets(tmp_path / "data", ["halves/*"])
        results = evaluate_models([Lengths()], sets)
        page = render_report(ReportData(title="t", results=results))
    finally:
        sys.modules.pop("taskdistill.evaluate.tasks.halves", None)
    record = results["scores"]["lengths"]["halves/words"]
    assert (record["metric"], record["score"], record["n"]) == ("agreement", 0.5, 2)
    assert "Matching halves" in page


def test_every_type_has_its_place_and_a_metric_of_its_own_list():
    types = task_types()
    assert {task.name for task in types} == set(TASK_TYPES)
    assert len({task.order for task in types}) == len(types) == 9
    assert all(task.metric in task.metrics for task in types)
