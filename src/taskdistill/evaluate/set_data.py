"""What an evaluation set holds once it is read, and what its readers share."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.io.beir import listing
from taskdistill.tasks import Role

Sides = dict[str, tuple[list[str], Role]]
"""Side to its texts and the prompt they take."""

TRAIN = "train"
"""The side of training rows, by which no model is judged."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RankingData:
    """Queries, documents and judgments; with `candidates` each query ranks only those."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    candidates: dict[str, list[str]] | None = None
    notes: tuple[str, ...] = ()

    def sides(self) -> Sides:
        """Return `queries` and `documents`."""
        queries, documents = list(self.queries.values()), list(self.documents.values())
        return {"queries": (queries, Role.QUERY), "documents": (documents, Role.DOCUMENT)}

    def lengths(self) -> list[int]:
        """Return characters of the most relevant document of each query."""
        relevant = (max(judged, key=judged.__getitem__) for judged in self.qrels.values())
        return [len(self.documents[document]) for document in relevant]

    def prompted(self, prompt: str) -> RankingData:
        """Put a prompt before the queries alone, so that documents are encoded once for all."""
        return replace(self, queries={key: prompt + text for key, text in self.queries.items()})


@dataclass(frozen=True, eq=False, kw_only=True)
class PairData:
    """Pairs of texts with a score each, or parallel texts without."""

    first: list[str]
    second: list[str]
    scores: NDArray[np.float64] | None
    languages: list[str]
    notes: tuple[str, ...] = ()

    def sides(self) -> Sides:
        """Return `first` and `second`, both documents."""
        return {"first": (self.first, Role.DOCUMENT), "second": (self.second, Role.DOCUMENT)}

    def lengths(self) -> list[int]:
        """Return characters of both texts of each pair."""
        return [len(a) + len(b) for a, b in zip(self.first, self.second, strict=True)]

    def prompted(self, prompt: str) -> PairData:
        """Put a prompt before every text, since both sides are alike."""
        first, second = ([prompt + text for text in side] for side in (self.first, self.second))
        return replace(self, first=first, second=second)


@dataclass(frozen=True, eq=False, kw_only=True)
class LabeledData:
    """Texts with labels, and the training rows of a classification set (none for clustering).

    `full_train` asks for a linear probe on all training rows beside the few that are sampled.
    """

    texts: list[str]
    labels: list[Any]
    languages: list[str]
    train: LabeledData | None = None
    notes: tuple[str, ...] = ()
    full_train: bool = False

    def sides(self) -> Sides:
        """Return `texts`, and all training rows as `train` where there are some."""
        train = {TRAIN: (self.train.texts, Role.DOCUMENT)} if self.train else {}
        return {"texts": (self.texts, Role.DOCUMENT), **train}

    def lengths(self) -> list[int]:
        """Return characters of each test row."""
        return [len(text) for text in self.texts]


@dataclass(frozen=True, eq=False)
class SummaryData:
    """For each text, human and machine summaries, and a human score of each machine summary."""

    human: list[list[str]]
    machine: list[list[str]]
    scores: list[list[float]]
    notes: tuple[str, ...] = ()

    def sides(self) -> Sides:
        """Return `human` and `machine`, the summaries of all texts in a row."""
        human, machine = ([t for row in side for t in row] for side in (self.human, self.machine))
        return {"human": (human, Role.DOCUMENT), "machine": (machine, Role.DOCUMENT)}


SetData = RankingData | PairData | LabeledData | SummaryData


def judged_texts(data: SetData) -> list[str]:
    """Return the distinct texts a model is judged by; training rows are not among them."""
    sides = (texts for side, (texts, _) in data.sides().items() if side != TRAIN)
    return list(dict.fromkeys(text for texts in sides for text in texts))


def all_texts(data: SetData) -> list[str]:
    """Return every distinct text that a model may have to embed."""
    return list(dict.fromkeys(text for texts, _ in data.sides().values() for text in texts))


def language(row: Mapping[str, object]) -> str:
    """Return the language of a row, empty where it names none."""
    return str(row.get("lang") or "")


def is_number(value: object) -> bool:
    """Tell whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def varied_rows(
    name: str, languages: Sequence[str], values: Sequence[Hashable], noun: str, notes: list[str]
) -> list[int]:
    """Return the rows of languages with at least two gold values; without, nothing is defined.

    Languages that are left out are noted; if all are, the set `name` is refused.
    """
    distinct: dict[str, set[Hashable]] = {}
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
