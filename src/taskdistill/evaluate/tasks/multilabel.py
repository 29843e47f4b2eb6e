"""Multilabel classification: the labels of the five nearest training rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill import metrics
from taskdistill.evaluate.set_data import LabeledData
from taskdistill.evaluate.task_type import (
    EvalSet,
    EvaluationTask,
    Score,
    Vectors,
    score_by_language,
)
from taskdistill.evaluate.tasks import _labels
from taskdistill.tasks import Task

EXPERIMENTS = 10
"""Draws of training rows, as in mteb."""


class Multilabel(EvaluationTask[LabeledData]):
    """`labelled/NAME.SPLIT.jsonl` with a train split and lists of labels; accuracy of lists."""

    name, title, order = "multilabel", "Multilabel", 9
    metric, metrics = "accuracy", ("accuracy", "macro-F1", "LRAP")
    adapter, mteb_type, data_type = Task.CLASSIFICATION, "MultilabelClassification", LabeledData

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the files of `labelled/` with a train split and lists of labels."""
        for name, *files in _labels.labeled_files(root, split, multilabel=True):
            yield self.eval_set(name, split, *files)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> LabeledData:
        """Read test and training rows."""
        return _labels.read_with_train(name, files, limit, seed)

    def score(self, data: LabeledData, vectors: Vectors) -> Score:
        """Average over draws of training rows; one unit a test row."""
        assert data.train is not None
        labels, train_labels = data.labels, data.train.labels
        test, train = vectors["texts"], vectors["train"]
        rows_of = _labels.training_rows_by_language(data)
        rng = np.random.default_rng(metrics.SEED)  # one generator for all languages, in their order

        def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
            train_rows = rows_of[data.languages[rows[0]]]
            few_of = [train_labels[i] for i in train_rows]
            gold = [labels[i] for i in rows]
            scores: list[dict[str, float]] = []
            right: list[NDArray[Any]] = []
            for _ in range(EXPERIMENTS):
                sample = [train_rows[i] for i in metrics.few_per_label_multi(few_of, rng=rng)]
                few_labels = [train_labels[i] for i in sample]
                each, hits = metrics.classify_multi(train[sample], few_labels, test[rows], gold)
                scores.append(each)
                right.append(hits)
            means = {name: float(np.mean([each[name] for each in scores])) for name in scores[0]}
            return means, np.mean(right, axis=0)

        return score_by_language(data.languages, score, data.notes)


TASK = Multilabel()
