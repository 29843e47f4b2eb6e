"""Pair classification: tell pairs that belong together from pairs that do not."""

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


class PairClassification(EvaluationTask[PairData]):
    """`scored/NAME.SPLIT.jsonl` with scores of 0 and 1; AP of the best similarity."""

    name, title, order = "pair-classification", "Pair classification", 4
    metric = "AP"
    metrics = ("AP", "AP (cosine)", "AP (dot)", "AP (euclidean)", "AP (manhattan)")
    adapter, mteb_type, data_type = Task.TEXT_MATCHING, "PairClassification", PairData
    by_length = False
    compressible = takes_prompts = True

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the files of `scored/` whose scores are all 0 or 1."""
        for name, path in _pairs.scored_files(root, split, binary=True):
            yield self.eval_set(name, split, path)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> PairData:
        """Read pairs with a score each."""
        return _pairs.read_scored(name, files[0], limit, seed)

    def score(self, data: PairData, vectors: Vectors) -> Score:
        """Take the best similarity of each language; one unit a positive pair."""
        assert data.scores is not None
        labels = data.scores.astype(np.int64)
        similarities = metrics.pair_similarities(vectors["first"], vectors["second"])

        def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
            precisions = {
                name: metrics.average_precision(labels[rows], values[rows])
                for name, values in similarities.items()
            }
            best = max(precisions, key=precisions.__getitem__)
            scores = {"AP": precisions[best]}
            scores |= {f"AP ({name})": value for name, value in precisions.items()}
            return scores, metrics.precision_at_positives(labels[rows], similarities[best][rows])

        notes = (*data.notes, *_pairs.constant_note(similarities["cosine"]))
        return score_by_language(data.languages, score, notes)


TASK = PairClassification()
