"""Bitext mining: find each text's translation among all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill import metrics
from taskdistill.evaluate.exact_search import top_documents
from taskdistill.evaluate.set_data import PairData, language
from taskdistill.evaluate.task_type import (
    EvalSet,
    EvaluationTask,
    Score,
    Vectors,
    score_by_language,
    split_files,
)
from taskdistill.io.beir import first_row, rows, sample
from taskdistill.quantization import normalize
from taskdistill.tasks import Task


class Bitext(EvaluationTask[PairData]):
    """`pairs/NAME.SPLIT.jsonl` without negatives: the sides of a row are translations."""

    name, title, order = "bitext", "Bitext mining", 5
    metric, metrics = "F1", ("F1", "accuracy")
    adapter, mteb_type, data_type = Task.TEXT_MATCHING, "BitextMining", PairData
    compressible = takes_prompts = True

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the files of `pairs/` whose first row has no negatives."""
        for name, path in split_files(root / "pairs", split):
            if not first_row(path).get("negatives"):
                yield self.eval_set(name, split, path)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> PairData:
        """Read parallel texts."""
        notes: list[str] = []
        sampled = sample(list(rows(files[0], ("query", "positive"), notes)), limit, seed)
        return PairData(
            first=[row["query"] for row in sampled],
            second=[row["positive"] for row in sampled],
            scores=None,
            languages=[language(row) for row in sampled],
            notes=tuple(notes),
        )

    def score(self, data: PairData, vectors: Vectors) -> Score:
        """Take the nearest text of the other side; one unit a text."""
        first, second = normalize(vectors["first"]), normalize(vectors["second"])

        def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
            nearest = top_documents(first[rows], second[rows], 1)[0][:, 0]
            f1 = metrics.matching_f1(nearest)
            accuracy = float((nearest == np.arange(len(rows))).mean())
            return {"F1": float(f1.mean()), "accuracy": accuracy}, f1

        return score_by_language(data.languages, score, data.notes)


TASK = Bitext()
