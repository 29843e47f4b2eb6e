"""The four kinds of training rows, and the data set that holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from taskdistill.io.records import ReadStats
from taskdistill.types import RowKind, TeacherSide


@dataclass(frozen=True, slots=True)
class Pair:
    """A query, a document that answers or matches it, and hard negatives, possibly none."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    lang: str = ""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two texts with a graded similarity in the source's own range."""

    text1: str
    text2: str
    score: float
    lang: str = ""


@dataclass(frozen=True, slots=True)
class LabeledText:
    """A text with one class."""

    text: str
    label: str
    lang: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A lone text."""

    text: str
    lang: str = ""


Row = Pair | ScoredPair | LabeledText | Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Rows of one kind from one source, with the counts of reading them and a hash of exactly these
    rows.
    """

    name: str
    kind: RowKind
    rows: Sequence[Any]
    counts: ReadStats
    sha256: str
    teacher_reads: TeacherSide = TeacherSide.BOTH


def make_dataset(
    name: str, kind: RowKind, rows: Sequence[Any], counts: ReadStats | None = None
) -> Dataset:
    """Put rows that are already clean into a data set.

    `counts`: counts of reading them; None: all were used as they are.
    """
    return Dataset(
        name=name,
        kind=kind,
        rows=rows,
        counts=counts or ReadStats(read=len(rows), used=len(rows)),
        sha256=hash_rows(rows),
    )


def row_texts(row: Any) -> tuple[str, ...]:
    """Return every text of a row.

    `row`: a row of any kind. Returns query, positive and negatives; or text1 and text2; or the
    text.
    """
    if isinstance(row, Pair):
        return (row.query, row.positive, *row.negatives)
    if isinstance(row, ScoredPair):
        return (row.text1, row.text2)
    return (row.text,)


def hash_rows(rows: Iterable[Any]) -> str:
    """Return a hash of the rows' contents in their order.

    Returns 64 hexadecimal digits; equal for equal rows, whatever file format they came from.
    """
    digest = hashlib.sha256()
    for row in rows:
        extra = repr(row.score) if isinstance(row, ScoredPair) else getattr(row, "label", "")
        parts = (*row_texts(row), extra, row.lang)
        digest.update("".join([f"{len(part)}:{part}" for part in parts]).encode() + b"\n")
    return digest.hexdigest()
