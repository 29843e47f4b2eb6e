"""A batch of rows becomes distinct prompted texts, and the places of each side among them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from taskdistill.data.batches import Batch
from taskdistill.data.dedup import fold_text
from taskdistill.tasks import TASKS, Role, Task
from taskdistill.teacher.protocol import View
from taskdistill.types import RowKind, TeacherSide


@dataclass(slots=True, kw_only=True)
class TrainBatch:
    """What one step works on. Index arrays point into `texts`."""

    batch: Batch
    texts: list[tuple[Role, str]] = field(default_factory=list)
    """Distinct (role, text)."""
    query_idx: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Queries, anchors, first texts or lone texts, `(B,)`."""
    positive_idx: np.ndarray | None = None
    """Positives or second texts, `(B,)`; None for lone texts."""
    negative_idx: np.ndarray | None = None
    """Hard negatives, flat `(M,)`, or of a classification batch `(B * k,)`."""
    negative_owner: np.ndarray | None = None
    """Row of each entry of `negative_idx`, `(M,)`."""
    scores: np.ndarray | None = None
    """Gold scores `(B,)` of a graded batch."""
    labels: np.ndarray | None = None
    """Label numbers of the anchors `(B,)`."""
    negative_labels: np.ndarray | None = None
    """Label numbers of `negative_idx`."""
    distilled: list[tuple[int, View]] = field(default_factory=list)
    """Texts that are compared with the teacher, each with the view in which the teacher read it."""
    teacher_text_idx: list[int] = field(default_factory=list)
    """Text that the teacher read for each entry of `distilled`: the text itself, or its
    translation."""

    def compared(self) -> np.ndarray:
        """List the texts that are compared with the teacher."""
        return np.array([place for place, _ in self.distilled], dtype=np.int64)

    def teacher_texts(self) -> list[tuple[View, str]]:
        """List what the teacher read for each compared text."""
        return [
            (view, self.texts[place][1])
            for (_, view), place in zip(self.distilled, self.teacher_text_idx, strict=True)
        ]


class Relation(StrEnum):
    """What a candidate is to a query of its batch."""

    POSITIVE = "positive"
    NEGATIVE = "negative"
    HARD = "hard negative"
    DUPLICATE = "masked, duplicate or known positive"
    MARGIN = "masked, above the margin"
    LABEL = "masked, same label"
    UNUSED = "hard negative of another row, unused"


class _TextIndex:
    def __init__(self) -> None:
        self.places: dict[tuple[Role, str], int] = {}

    def place(self, role: Role, text: str) -> int:
        return self.places.setdefault((role, text), len(self.places))

    def many(self, role: Role, texts: list[str]) -> np.ndarray:
        return np.array([self.place(role, text) for text in texts], dtype=np.int64)


def collate(
    batch: Batch,
    *,
    task: Task | None,
    distil: bool,
    negatives: int = 0,
    distil_negatives: bool = False,
) -> TrainBatch:
    """Lay out a batch for a phase.

    `task`: the task, or None for stage 1. `negatives`: hard negatives taken from each pair, at
    most. `distil_negatives`: whether the teacher's vectors of the hard negatives are compared as
    well, behind those of the pairs.
    """
    result, role = _TextIndex(), Role.QUERY if task is None else TASKS[task].query_role
    topic = task is not None and TASKS[task].topic
    translated = batch.teacher_reads in (TeacherSide.QUERY, TeacherSide.POSITIVE)
    role = Role.DOCUMENT if translated else role
    out = TrainBatch(batch=batch)
    rows = batch.rows
    if batch.kind is RowKind.LABELLED:
        out.query_idx = result.many(Role.DOCUMENT, [item.anchor for item in rows])
        out.positive_idx = result.many(Role.DOCUMENT, [item.positive for item in rows])
        out.negative_idx = result.many(
            Role.DOCUMENT, [text for item in rows for text in item.negatives]
        )
        out.negative_owner = np.repeat(np.arange(len(rows)), [len(item.negatives) for item in rows])
        numbers: dict[str, int] = {}
        out.labels = np.array(
            [numbers.setdefault(item.label, len(numbers)) for item in rows], dtype=np.int64
        )
        flat = [label for item in rows for label in item.negative_labels]
        out.negative_labels = np.array(
            [numbers.setdefault(label, len(numbers)) for label in flat], dtype=np.int64
        )
    elif batch.kind is RowKind.SCORED:
        out.query_idx = result.many(Role.DOCUMENT, [row.text1 for row in rows])
        out.positive_idx = result.many(Role.DOCUMENT, [row.text2 for row in rows])
        out.scores = np.array([row.score for row in rows], dtype=np.float32)
    elif batch.kind is RowKind.PAIRS:
        out.query_idx = result.many(role, [row.query for row in rows])
        out.positive_idx = result.many(Role.DOCUMENT, [row.positive for row in rows])
        if negatives:
            out.negative_idx = result.many(
                Role.DOCUMENT, [text for row in rows for text in row.negatives[:negatives]]
            )
            out.negative_owner = np.repeat(
                np.arange(len(rows)), [len(row.negatives[:negatives]) for row in rows]
            )
    else:
        out.query_idx = result.many(Role.DOCUMENT, [row.text for row in rows])
    out.texts = list(result.places)
    graded_matching = task is Task.TEXT_MATCHING and out.scores is not None
    if (
        distil
        and batch.kind is not RowKind.LABELLED
        and not graded_matching
        and batch.teacher_reads is not TeacherSide.NEITHER
    ):
        places = (
            out.query_idx
            if out.positive_idx is None
            else np.concatenate([out.query_idx, out.positive_idx])
        )
        asks = batch.kind is RowKind.PAIRS and role is Role.QUERY
        views: list[View] = [
            "query" if asks and i < len(rows) else "document" for i in range(len(places))
        ]
        out.distilled = [
            (int(place), "topic" if topic else view)
            for place, view in zip(places, views, strict=True)
        ]
        out.teacher_text_idx = [int(place) for place in places]
        if distil_negatives and out.negative_idx is not None and not translated:
            out.distilled += [(int(place), "document") for place in out.negative_idx]
            out.teacher_text_idx += [int(place) for place in out.negative_idx]
        if translated:
            assert out.positive_idx is not None
            out.teacher_text_idx = (
                2
                * (
                    out.query_idx if batch.teacher_reads is TeacherSide.QUERY else out.positive_idx
                ).tolist()
            )
    return out


def false_negatives(
    prepared: TrainBatch,
    similarities: np.ndarray | None = None,
    margin: float | None = None,
    *,
    others: bool = True,
) -> np.ndarray:
    """Say which candidates are no negatives of which query.

    A candidate is excluded where its text equals the query or one of the query's known positives in
    this batch, and, if a margin is given, where the teacher finds it closer to the query than the
    positive by more than the margin. Hard negatives that came with the row are exempt from the
    margin. `similarities`: the teacher's cosine of every query with every positive of the batch,
    `(B, B)`, or None. `others`: whether the hard negatives of other rows count as negatives.
    Returns `(B, B + M)` of bool: positives of the batch, then hard negatives. The own positive is
    never true.
    """
    assert prepared.positive_idx is not None
    texts = [fold_text(text) for _, text in prepared.texts]
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = np.array([numbers[text] for text in texts], dtype=np.int64)
    queries, positives = ids[prepared.query_idx], ids[prepared.positive_idx]
    hard = np.zeros(0, np.int64) if prepared.negative_idx is None else ids[prepared.negative_idx]
    candidates = np.concatenate([positives, hard])
    same_query = queries[:, None] == queries[None, :]
    known = np.zeros((len(queries), len(numbers)), dtype=bool)
    for row in range(len(queries)):
        known[row, positives[same_query[row]]] = True
        known[row, queries[row]] = True
    excluded = known[:, candidates]
    if similarities is not None and margin is not None:
        closer = similarities > similarities.diagonal()[:, None] + margin
        excluded[:, : len(positives)] |= closer
    if not others and prepared.negative_owner is not None:
        excluded[:, len(positives) :] |= (
            prepared.negative_owner[None, :] != np.arange(len(queries))[:, None]
        )
    excluded[np.arange(len(queries)), np.arange(len(queries))] = False
    return excluded


def relations(
    prepared: TrainBatch,
    similarities: np.ndarray | None = None,
    margin: float | None = None,
    *,
    others: bool = True,
    mask_same_label: bool = True,
) -> np.ndarray:
    """Name the relation of every candidate to every query, as a contrast takes it.

    `similarities`: the teacher's cosines `(B, B)`, or None. `others`: whether the hard negatives of
    other rows count as negatives. `mask_same_label`: classification: whether texts with the
    anchor's label are no negatives. Returns `(B, B + M)` of `Relation`: positives of the batch,
    then hard negatives.
    """
    assert prepared.positive_idx is not None
    count, hard = (
        len(prepared.query_idx),
        0 if prepared.negative_idx is None else len(prepared.negative_idx),
    )
    result = np.full((count, count + hard), Relation.NEGATIVE, dtype=object)
    diagonal = np.arange(count)
    if prepared.negative_owner is not None:
        rows, columns = np.nonzero(prepared.negative_owner[None, :] == diagonal[:, None])
        result[rows, count + columns] = Relation.HARD
    if prepared.labels is not None:
        assert prepared.negative_labels is not None
        if mask_same_label:
            result[
                prepared.labels[:, None]
                == np.concatenate([prepared.labels, prepared.negative_labels])[None, :]
            ] = Relation.LABEL
    else:
        duplicates, masked = (
            false_negatives(prepared),
            false_negatives(prepared, similarities, margin),
        )
        if not others:
            result[false_negatives(prepared, others=False) & ~duplicates] = Relation.UNUSED
        result[masked] = Relation.MARGIN
        result[duplicates] = Relation.DUPLICATE
    result[diagonal, diagonal] = Relation.POSITIVE
    return result
