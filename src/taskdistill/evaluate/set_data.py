"""What an evaluation set holds once it is read, and what its readers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.io.beir import listing


@dataclass(frozen=True, eq=False)
class RankingData:
    """Queries, documents and judgments; with `candidates` each query ranks only those."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]] | None = None
    notes: tuple[str, ...] = ()

    def judged_texts(self) -> list[str]:
        """Return the texts a model is judged by, each distinct one once."""
        return _distinct([*self.queries.values(), *self.documents.values()])


@dataclass(frozen=True, eq=False)
class PairData:
    """Pairs of texts with a score each, or parallel texts without."""

    first: list[str]
    second: list[str]
    scores: NDArray[np.float64] | None
    languages: list[str]
    notes: tuple[str, ...] = ()

    def judged_texts(self) -> list[str]:
        """Return the texts a model is judged by, each distinct one once."""
        return _distinct([*self.first, *self.second])


@dataclass(frozen=True, eq=False)
class LabeledData:
    """Texts with labels, and the training rows of a classification set (none for clustering).

    `full_train` asks for a linear probe on all training rows beside the few that are drawn.
    """

    texts: list[str]
    labels: list[Any]
    languages: list[str]
    train: LabeledData | None = None
    notes: tuple[str, ...] = ()
    full_train: bool = False

    def judged_texts(self) -> list[str]:
        """Return the texts a model is judged by, each distinct one once; no training rows."""
        return _distinct(self.texts)


@dataclass(frozen=True, eq=False)
class SummaryData:
    """For each text, human and machine summaries, and a human score of each machine summary."""

    human: list[list[str]]
    machine: list[list[str]]
    scores: list[list[float]]
    notes: tuple[str, ...] = ()

    def judged_texts(self) -> list[str]:
        """Return the texts a model is judged by, each distinct one once."""
        return _distinct(
            [text for rows in (self.human, self.machine) for row in rows for text in row]
        )


SetData = RankingData | PairData | LabeledData | SummaryData


def all_texts(data: SetData) -> list[str]:
    """Return every text that a model may have to embed: the judged ones, then training rows."""
    train = data.train.texts if isinstance(data, LabeledData) and data.train else []
    return [*data.judged_texts(), *train]


def language(row: dict[str, Any]) -> str:
    """Return the language of a row, empty where it names none."""
    return str(row.get("lang") or "")


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def varied_rows(
    name: str, languages: Sequence[str], values: Sequence[Any], noun: str, notes: list[str]
) -> list[int]:
    """Return the rows of languages with at least two gold values; without, nothing is defined.

    Languages that are left out are noted; if all are, the set `name` is refused.
    """
    distinct: dict[str, set[Any]] = {}
    for row_language, value in zip(languages, values, strict=True):
        distinct.setdefault(row_language, set()).add(value)
    constant = {each for each, gold in distinct.items() if len(gold) < 2}
    if constant == set(distinct):
        raise BadInput(
            f"{name}: all {noun} are equal ({values[0]}), so nothing can be scored;"
            f" at least two distinct {noun} are needed"
        )
    if constant:
        notes.append(
            f"{len(constant)} languages have one value of {noun} only and are left out:"
            f" {listing(sorted(constant))}"
        )
    return [i for i, each in enumerate(languages) if each not in constant]


def _distinct(texts: list[str]) -> list[str]:
    return list(dict.fromkeys(texts))
