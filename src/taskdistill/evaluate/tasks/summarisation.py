"""Summarization: does a machine summary's similarity to human ones follow people's judgment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill import metrics
from taskdistill.evaluate.set_data import SummaryData, is_number
from taskdistill.evaluate.task_type import (
    EvalSet,
    EvaluationTask,
    Score,
    Vectors,
    split_files,
)
from taskdistill.io.beir import refuse, rows, sample
from taskdistill.tasks import Task


class Summarization(EvaluationTask[SummaryData]):
    """`summaries/NAME.SPLIT.jsonl`: `human`, `machine`, and `scores` of the machine's; Spearman."""

    name, title, order = "summarisation", "Summarisation", 6
    metric, metrics = "Spearman", ("Spearman",)
    adapter, mteb_type, data_type = Task.TEXT_MATCHING, "Summarization", SummaryData
    by_length = False

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the files of `summaries/`."""
        for name, path in split_files(root / "summaries", split):
            yield self.eval_set(name, split, path)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> SummaryData:
        """Read summaries; a damaged row is refused with its line."""
        sampled = sample(list(rows(files[0], (), [])), limit, seed)
        for row in sampled:
            if not all(_is_texts(row.get(side)) for side in ("human", "machine")):
                refuse(files[0], row["#"], "`human` and `machine` must be lists of texts")
            scores = row.get("scores")
            if (
                not isinstance(scores, list)
                or len(scores) != len(row["machine"])
                or not all(map(is_number, scores))
            ):
                fault = "`scores` must hold one finite number for each machine summary"
                refuse(files[0], row["#"], fault)
        return SummaryData(
            [row["human"] for row in sampled],
            [row["machine"] for row in sampled],
            [row["scores"] for row in sampled],
        )

    def score(self, data: SummaryData, vectors: Vectors) -> Score:
        """Average over texts whose scores and similarities vary, as mteb does; one unit a text."""
        human = np.split(vectors["human"], np.cumsum([len(row) for row in data.human])[:-1])
        machine = np.split(vectors["machine"], np.cumsum([len(row) for row in data.machine])[:-1])
        by_text = [
            metrics.summary_scores(h, m, gold)
            for h, m, gold in zip(human, machine, data.scores, strict=True)
        ]
        units = np.array([value for value in by_text if value is not None])
        notes = data.notes
        if skipped := len(by_text) - len(units):
            notes += (f"{skipped} texts whose scores or similarities are all equal are left out",)
        if len(units) == 0:
            units = np.zeros(1)
        score = float(units.mean())
        return Score(score, {"Spearman": score}, {"": units}, notes)


def _is_texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(text, str) and text.strip() for text in value)
    )


TASK = Summarization()
