"""The four kinds of training rows, the counts of what became of every row read, and the data set
that holds them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskdistill.types import RowKind, TeacherSide

EXAMPLES = 10
EXAMPLES_PER_REASON = 3
"""How many rejected rows are kept as examples for messages, in all and of one reason."""


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


@dataclass(slots=True)
class Counts:
    """What became of every row: used as it was, used after a repair, or rejected; the three add up
    to `read`.

    A row with several repairs counts once, under its first one. `duplicate` and `class with one
    example` are rejected too, but are no faults: they do not count against a source's share of bad
    rows. `filtered` rows are of a language that was not asked for; they are set aside before
    counting and not part of `read`.
    """

    read: int = 0
    used: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    filtered: int = 0
    ignored_columns: list[str] = field(default_factory=list)

    def reject(self, reason: str, where: str, detail: str = "") -> None:
        """Count one rejected row. `reason`: what is wrong, the same words for every such row."""
        self.rejected[reason] += 1
        if len(self.examples) < EXAMPLES and self.rejected[reason] <= EXAMPLES_PER_REASON:
            self.examples.append(f"{where}: {reason}" + (f" ({detail})" if detail else ""))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain data.

        Returns read, used, repaired and rejected (each reason to its rows), filtered,
        ignored_columns and examples.
        """
        return {
            "read": self.read,
            "used": self.used,
            "repaired": dict(self.repaired),
            "rejected": dict(self.rejected),
            "filtered": self.filtered,
            "ignored_columns": list(self.ignored_columns),
            "examples": list(self.examples),
        }


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows of one kind from one source, with the counts of reading them and a hash of exactly these
    rows.
    """

    name: str
    kind: RowKind
    rows: Sequence[Any]
    counts: Counts
    sha256: str
    teacher_reads: TeacherSide = TeacherSide.BOTH


def make_dataset(
    name: str, kind: RowKind, rows: Sequence[Any], counts: Counts | None = None
) -> Dataset:
    """Put rows that are already clean into a data set.

    `counts`: counts of reading them; None: all were used as they are.
    """
    return Dataset(
        name, kind, rows, counts or Counts(read=len(rows), used=len(rows)), hash_rows(rows)
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
