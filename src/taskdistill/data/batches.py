"""Batches as a pure function of (seed, phase, step): any step can be computed without the ones
before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskdistill.data.order import epoch_order, generator, text_ids
from taskdistill.data.rows import Dataset, Text
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.types import RowKind, TeacherSide

BLOCK = 4096
"""Steps whose data sets are drawn at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationItem:
    """One item of a classification batch (paper, section 5.4): an anchor, a positive of its label,
    negatives of others.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    label: str
    negative_labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The rows of one step, all from one data set.

    `kind` says what the rows are: Pair, Scored, ClassificationItem (kind labelled) or Text.
    `row_ids` are row numbers in the data set, shape (rows,); for classification items (rows, 2 +
    negatives): anchor, positive, negatives.
    """

    step: int
    index: int
    dataset: str
    kind: RowKind
    rows: tuple[Any, ...]
    row_ids: np.ndarray
    teacher_reads: TeacherSide = TeacherSide.BOTH


class BatchPlan:
    """Which rows every step of a phase sees.

    The data set of a step is drawn by weight. Its position in that data set is the number of
    earlier steps that drew it, and the rows follow from (seed, label, data set, epoch) alone, so a
    fresh plan gives the same batch at any step.

    Args:
        datasets: The data sets; those with no weight above 0 are left aside.
        label: Name of the phase; phases of one recipe draw independently.
        batch_sizes: Data set name to its own batch size where it differs.
        negatives: Negatives of a classification item (the paper's is 7). None: labelled rows act as
            lone texts.

    Raises:
        BadInput: If a weight names no data set, a batch is larger than its data set, or labels or
            scores are too few.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        weights: Mapping[str, float],
        batch_size: int,
        *,
        seed: int,
        label: str,
        batch_sizes: Mapping[str, int] | None = None,
        negatives: int | None = None,
    ) -> None:
        known = [dataset.name for dataset in datasets]
        for name in weights:
            if name not in known:
                raise BadInput(
                    f"{label}: the weights name {name!r}, which is no data"
                    f" set{did_you_mean(name, known)}"
                )
        self.datasets = [dataset for dataset in datasets if weights.get(dataset.name, 0) > 0]
        if not self.datasets:
            raise BadInput(f"{label}: no data set has a weight above 0")
        self.seed = seed
        self.label = label
        self.negatives = negatives
        self.weights = np.array(
            [weights[dataset.name] for dataset in self.datasets], dtype=np.float64
        )
        self.weights /= self.weights.sum()
        self.batch_sizes = [
            (batch_sizes or {}).get(dataset.name, batch_size) for dataset in self.datasets
        ]
        self._labels: dict[int, _Labels] = {}
        for index, (dataset, size) in enumerate(zip(self.datasets, self.batch_sizes, strict=True)):
            rows = len(dataset.rows)
            if self._is_classification(dataset):
                self._labels[index] = _Labels(dataset, negatives or 0)
                rows = len(self._labels[index].anchors)
            if dataset.kind is RowKind.SCORED and (
                size < 2 or len({row.score for row in dataset.rows}) < 2
            ):
                raise BadInput(
                    f"{label}: data set {dataset.name!r} needs two distinct scores a batch; give"
                    " graded rows, and 2 or more a batch"
                )
            if size > rows:
                raise BadInput(
                    f"{label}: a batch of {size} is larger than data set {dataset.name!r} with"
                    f" {rows} rows; give a smaller batch_size"
                )
        self._draws: list[np.ndarray] = []
        self._before: list[np.ndarray] = [np.zeros(len(self.datasets), dtype=np.int64)]
        self._ids: dict[int, list[tuple[int, int]]] = {}
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def at(self, step: int) -> Batch:
        """Return the batch of one step. `step`: step of the phase, from 0."""
        draws, before = self._block(step // BLOCK)
        within = step % BLOCK
        index = int(draws[within])
        position = int(before[index]) + int(np.count_nonzero(draws[:within] == index))
        dataset = self.datasets[index]
        epoch, number = divmod(position, self._batches_per_epoch(index))
        chosen = self._order(index, epoch)[number]
        if index in self._labels:
            rng = generator(self.seed, self.label, dataset.name, "items", position)
            ids = self._labels[index].items(chosen, rng)
            return Batch(
                step=step,
                index=index,
                dataset=dataset.name,
                kind=RowKind.LABELLED,
                rows=tuple(_item(dataset, row) for row in ids.tolist()),
                row_ids=ids,
            )
        rows = tuple(dataset.rows[row] for row in chosen.tolist())
        if dataset.kind is RowKind.LABELLED:
            return Batch(
                step=step,
                index=index,
                dataset=dataset.name,
                kind=RowKind.TEXTS,
                rows=tuple(Text(row.text, row.lang) for row in rows),
                row_ids=chosen,
            )
        return Batch(
            step=step,
            index=index,
            dataset=dataset.name,
            kind=dataset.kind,
            rows=rows,
            row_ids=chosen,
            teacher_reads=dataset.teacher_reads,
        )

    def sampled(self, steps: int) -> list[int]:
        """Count how many of the first steps draw each data set.

        Returns one count per data set of `datasets`.
        """
        draws, before = self._block(steps // BLOCK)
        counts = before + np.bincount(draws[: steps % BLOCK], minlength=len(self.datasets))
        return [int(count) for count in counts]

    def _is_classification(self, dataset: Dataset) -> bool:
        return dataset.kind is RowKind.LABELLED and self.negatives is not None

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        while len(self._draws) <= number:
            rng = generator(self.seed, self.label, "data set", len(self._draws))
            draws = np.searchsorted(np.cumsum(self.weights)[:-1], rng.random(BLOCK), side="right")
            self._draws.append(draws)
            self._before.append(self._before[-1] + np.bincount(draws, minlength=len(self.datasets)))
        return self._draws[number], self._before[number]

    def _batches_per_epoch(self, index: int) -> int:
        rows = (
            len(self._labels[index].anchors)
            if index in self._labels
            else len(self.datasets[index].rows)
        )
        return -(-rows // self.batch_sizes[index])

    def _order(self, index: int, epoch: int) -> np.ndarray:
        held = self._orders.get(index)
        if held is None or held[0] != epoch:
            dataset = self.datasets[index]
            if dataset.kind is RowKind.PAIRS and index not in self._ids:
                self._ids[index] = text_ids(dataset)
            rng = generator(self.seed, self.label, dataset.name, "epoch", epoch)
            candidates = self._labels[index].anchors if index in self._labels else None
            held = (
                epoch,
                epoch_order(
                    dataset, self._ids.get(index, []), self.batch_sizes[index], rng, candidates
                ),
            )
            self._orders[index] = held
        return held[1]


class _Labels:
    """Where the rows of each label lie, to draw positives and negatives at random."""

    def __init__(self, dataset: Dataset, negatives: int) -> None:
        self.negatives = negatives
        names, codes = np.unique([row.label for row in dataset.rows], return_inverse=True)
        self.codes = codes
        self.by_label = np.argsort(codes, kind="stable")
        self.sizes = np.bincount(codes)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.anchors = np.flatnonzero(self.sizes[codes] > 1)
        if len(names) < 2 or not len(self.anchors):
            raise BadInput(
                f"data set {dataset.name!r}: classification needs two classes or more and a class"
                f" with two rows; it has {len(names)}"
            )

    def items(self, anchors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return row numbers (anchors, 2 + negatives)."""
        return np.array(
            [
                [anchor, self._positive(anchor, rng), *self._negatives(anchor, rng)]
                for anchor in anchors.tolist()
            ]
        )

    def _positive(self, anchor: int, rng: np.random.Generator) -> int:
        code = self.codes[anchor]
        members = self.by_label[self.starts[code] : self.starts[code] + self.sizes[code]]
        place = int(rng.integers(len(members) - 1))
        anchor_place = int(np.searchsorted(members, anchor))
        return int(members[place + (place >= anchor_place)])

    def _negatives(self, anchor: int, rng: np.random.Generator) -> list[int]:
        code = self.codes[anchor]
        others = len(self.codes) - int(self.sizes[code])
        places = rng.choice(others, self.negatives, replace=others < self.negatives)
        places = np.where(places >= self.starts[code], places + self.sizes[code], places)
        return [int(row) for row in self.by_label[places]]


def _item(dataset: Dataset, ids: Sequence[int]) -> ClassificationItem:
    anchor, positive, *negatives = (dataset.rows[row] for row in ids)
    return ClassificationItem(
        anchor=anchor.text,
        positive=positive.text,
        negatives=tuple(row.text for row in negatives),
        label=anchor.label,
        negative_labels=tuple(row.label for row in negatives),
    )


def describe(plan: BatchPlan, steps: int) -> list[dict[str, Any]]:
    """Say what a phase will see of each data set.

    Returns per data set: name, kind, rows, batch_size, weight, batches (exact) and epochs (batches
    x batch_size / rows).
    """
    return [
        {
            "name": dataset.name,
            "kind": dataset.kind.value,
            "rows": len(dataset.rows),
            "batch_size": size,
            "weight": float(weight),
            "batches": batches,
            "epochs": batches * size / len(dataset.rows),
        }
        for dataset, size, weight, batches in zip(
            plan.datasets, plan.batch_sizes, plan.weights, plan.sampled(steps), strict=True
        )
    ]
