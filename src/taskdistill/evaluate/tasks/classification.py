"""Classification: a logistic regression on the vectors of a few training rows a label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill import metrics
from taskdistill.evaluate.set_data import TRAIN, LabeledData, Sides
from taskdistill.evaluate.task_type import (
    EvalSet,
    EvaluationTask,
    Score,
    Vectors,
    score_by_language,
)
from taskdistill.evaluate.tasks import _labels
from taskdistill.tasks import Role, Task

FULL_TRAIN = "accuracy (full train)"
"""Of a logistic regression on every training row, beside the protocol's few rows a label."""


class Classification(EvaluationTask[LabeledData]):
    """`labelled/NAME.SPLIT.jsonl` with a train split and one label a text; accuracy."""

    name, title, order = "classification", "Classification", 8
    metric, metrics = "accuracy", ("accuracy", "macro-F1")
    adapter, mteb_type, data_type = Task.CLASSIFICATION, "Classification", LabeledData

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the files of `labelled/` with a train split and single labels."""
        for name, *files in _labels.labeled_files(root, split, multilabel=False):
            yield self.eval_set(name, split, *files)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> LabeledData:
        """Read test and training rows."""
        return _labels.read_with_train(name, files, limit, seed)

    def sides(self, data: LabeledData) -> Sides:
        """Return `texts`, and of the training rows those that some experiment samples."""
        assert data.train is not None
        train = [data.train.texts[i] for i in _encoded_rows(data)]
        return {"texts": (data.texts, Role.DOCUMENT), TRAIN: (train, Role.DOCUMENT)}

    def score(self, data: LabeledData, vectors: Vectors) -> Score:
        """Average over mteb's ten draws of training rows; one unit a test row."""
        assert data.train is not None
        train_labels = data.train.labels
        rows_of, test, train = (
            _labels.training_rows_by_language(data),
            vectors["texts"],
            vectors[TRAIN],
        )
        place = {row: i for i, row in enumerate(_encoded_rows(data))}

        def predict(
            rows: NDArray[np.int64], sample: Sequence[int], max_iter: int
        ) -> NDArray[np.str_]:
            labels = [train_labels[i] for i in sample]
            few = train[[place[i] for i in sample]]
            return metrics.classify(few, labels, test[rows], max_iter=max_iter)

        def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
            gold = np.array([data.labels[i] for i in rows])
            train_rows = rows_of[data.languages[rows[0]]]
            samples = metrics.few_per_label([train_labels[i] for i in train_rows])
            predicted = [predict(rows, [train_rows[i] for i in sample], 100) for sample in samples]
            right = np.mean([each == gold for each in predicted], axis=0)
            f1 = float(np.mean([metrics.macro_f1(gold.tolist(), each) for each in predicted]))
            scores = {"accuracy": float(right.mean()), "macro-F1": f1}
            if data.full_train:
                scores[FULL_TRAIN] = float((predict(rows, train_rows, 1000) == gold).mean())
            return scores, right

        return score_by_language(data.languages, score, data.notes)


def _encoded_rows(data: LabeledData) -> list[int]:
    """Return the training rows that are encoded, in ascending order."""
    assert data.train is not None
    if data.full_train:
        return list(range(len(data.train.labels)))
    sampled: set[int] = set()
    # Languages without rows of their own share all rows: those are drawn from once.
    for rows in {tuple(rows) for rows in _labels.training_rows_by_language(data).values()}:
        for sample in metrics.few_per_label([data.train.labels[i] for i in rows]):
            sampled.update(rows[i] for i in sample)
    return sorted(sampled)


TASK = Classification()
