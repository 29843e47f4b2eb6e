"""Clustering: do clusters of vectors agree with labels."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskdistill import metrics
from taskdistill.evaluate.set_data import LabeledData, varied_rows
from taskdistill.evaluate.task_type import (
    EvalSet,
    EvaluationTask,
    Score,
    Vectors,
    plain_or_gzip,
    score_by_language,
    split_files,
)
from taskdistill.evaluate.tasks._labels import read_labeled
from taskdistill.tasks import Task


class Clustering(EvaluationTask[LabeledData]):
    """`labelled/NAME.SPLIT.jsonl` named `clu-` or without a train split; any other if named."""

    name, title, order = "clustering", "Clustering", 7
    metric, metrics = "V-measure", ("V-measure", "V-measure (one clustering)")
    adapter, mteb_type, data_type = Task.CLUSTERING, "Clustering", LabeledData
    by_length = False

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the files of `labelled/` that are for clustering alone."""
        for each in self.find_by_name(root, split):
            name = each.name.removeprefix("clustering/")
            train = plain_or_gzip(root / "labelled", f"{name}.train.jsonl")
            if name.startswith("clu-") or train is None:
                yield each

    def find_by_name(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield every file of `labelled/`: a classification set clusters too."""
        for name, path in split_files(root / "labelled", split):
            yield self.eval_set(name, split, path)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> LabeledData:
        """Read labeled texts; languages with one label are left out and noted."""
        data = read_labeled(files[0], limit, seed)
        notes, labels = list(data.notes), [str(label) for label in data.labels]
        usable = varied_rows(name, data.languages, labels, "labels", notes)
        texts, labels, languages = (
            [column[i] for i in usable] for column in (data.texts, data.labels, data.languages)
        )
        return LabeledData(texts=texts, labels=labels, languages=languages, notes=tuple(notes))

    def score(self, data: LabeledData, vectors: Vectors) -> Score:
        """Cluster bootstrap samples; one unit an experiment."""
        texts = vectors["texts"]
        rng = random.Random(metrics.SEED)  # one generator for all languages, in their order

        def score(rows: NDArray[np.int64]) -> tuple[dict[str, float], NDArray[np.float64]]:
            labels = [data.labels[i] for i in rows]
            units = metrics.v_measures(texts[rows], labels, rng=rng)
            once = metrics.v_measure_once(texts[rows], labels)
            return {"V-measure": float(units.mean()), "V-measure (one clustering)": once}, units

        return score_by_language(data.languages, score, data.notes)

    def count(self, data: LabeledData, score: Score) -> int:
        """Return the texts, since units are experiments."""
        return len(data.texts)


TASK = Clustering()
