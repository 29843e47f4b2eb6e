"""STS: does the cosine of two texts order pairs as people do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill import metrics
from taskdistill.evaluate.set_data import PairData
from taskdistill.evaluate.task_type import (
    EvalSet,
    EvaluationTask,
    Score,
    Vectors,
    score_by_language,
)
from taskdistill.evaluate.tasks import _pairs
from taskdistill.tasks import Task


class Sts(EvaluationTask[PairData]):
    """`scored/NAME.SPLIT.jsonl` with some score that is neither 0 nor 1; Spearman."""

    name, title, order = "sts", "STS", 3
    metric, metrics = "Spearman", ("Spearman",)
    adapter, mteb_type, data_type = Task.TEXT_MATCHING, "STS", PairData
    compressible = takes_prompts = True

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the files of `scored/` with graded scores."""
        for name, path in _pairs.scored_files(root, split, binary=False):
            yield self.eval_set(name, split, path)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> PairData:
        """Read pairs with a score each."""
        return _pairs.read_scored(name, files[0], limit, seed)

    def score(self, data: PairData, vectors: Vectors) -> Score:
        """Correlate; units are (n, 2) ranks of gold score and cosine."""
        assert data.scores is not None
        gold, cosine = data.scores, metrics.paired_cosine(vectors["first"], vectors["second"])

        def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
            spearman = metrics.spearman(gold[rows], cosine[rows])
            units = np.column_stack([metrics.ranks(gold[rows]), metrics.ranks(cosine[rows])])
            return {"Spearman": spearman}, units

        notes = (*data.notes, *_pairs.constant_note(cosine))
        return score_by_language(data.languages, score, notes)


TASK = Sts()
