"""Turn the texts of an evaluation set into vectors, each distinct text once, and refuse what is no vector."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.kinds import QUERY_ROLE, TASK, Embedder, Kind
from taskdistill.evaluate.reading import LabelledData, PairData, RankingData, SetData
from taskdistill.metrics import few_per_label
from taskdistill.vocabulary import Role


@dataclass(frozen=True, eq=False)
class Encoded:
    """The vectors of one set by one model: `sides` names each matrix, whose rows are in the order of the data."""

    sides: Mapping[str, NDArray[np.float32]]
    texts: int
    seconds: float

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return int(next(iter(self.sides.values())).shape[1])


@dataclass
class _Reader:
    """Encodes for one set, holding the model to one dimension."""

    embedder: Embedder
    kind: Kind
    dim: int | None = None
    texts: int = 0
    seconds: float = 0.0
    sides: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def add(self, side: str, texts: Sequence[str], role: Role = Role.DOCUMENT) -> None:
        distinct = list(dict.fromkeys(texts))
        place = {text: i for i, text in enumerate(distinct)}
        start = time.perf_counter()
        vectors = np.asarray(self.embedder.encode(distinct, task=TASK[self.kind].value, prompt_name=role.value))
        self.seconds += time.perf_counter() - start
        self.texts += len(distinct)
        self.dim = check_vectors(self.embedder.name, distinct, vectors, self.dim)
        every = vectors if len(distinct) == len(texts) else vectors[[place[text] for text in texts]]
        self.sides[side] = every.astype(np.float32, copy=False)


def check_vectors(name: str, texts: Sequence[str], vectors: NDArray[Any], dim: int | None = None) -> int:
    """Refuse vectors that cannot be scored: NaN, a wrong count, or a dimension that changes.

    Args:
        name: Of the model.
        texts: What was encoded.
        vectors: What came back.
        dim: Dimensions the model gave before, or None.

    Returns:
        The dimensions.

    Raises:
        BadInput: If they cannot be scored; the first text at fault is named.
    """
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise BadInput(f"model {name!r} returned an array of shape {vectors.shape} for {len(texts)} texts; one vector a text is needed")
    if dim is not None and vectors.shape[1] != dim:
        raise BadInput(
            f"model {name!r} returned vectors of {dim} and then of {vectors.shape[1]} dimensions; one dimension for all texts is needed"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        place, count = texts[int(np.argmin(finite))][:60], f"{(~finite).sum()} of {len(texts)} texts"
        raise BadInput(f"model {name!r} returned NaN or infinity for {count}, the first {place!r}; check its weights")
    return int(vectors.shape[1])


def encode_set(embedder: Embedder, kind: Kind, data: SetData, *, full_train: bool = False) -> Encoded:
    """Encode every text of a set with the adapter and prompts of its kind (paper, section 8.1).

    Args:
        embedder: The model.
        kind: What the set asks.
        data: The set.
        full_train: Whether all training rows of a classification set are encoded, or only the few that are drawn.

    Returns:
        Its vectors: `queries` and `documents`; `first` and `second`; `texts` and `train`; or `human` and `machine`.

    Raises:
        BadInput: If the model returns what cannot be scored.
    """
    reader = _Reader(embedder, kind)
    if isinstance(data, RankingData):
        reader.add("queries", list(data.queries.values()), QUERY_ROLE[kind])
        reader.add("documents", list(data.documents.values()))
    elif isinstance(data, PairData):
        _together(reader, first=data.first, second=data.second)
    elif isinstance(data, LabelledData):
        train = [data.train.texts[i] for i in training_rows(data, kind, full_train)] if data.train else []
        _together(reader, texts=data.texts, train=train)
    else:
        _together(reader, human=[t for row in data.human for t in row], machine=[t for row in data.machine for t in row])
    return Encoded(reader.sides, reader.texts, reader.seconds)


def training_rows(data: LabelledData, kind: Kind, full_train: bool) -> list[int]:
    """Return the training rows that are encoded, in ascending order.

    Args:
        data: A classification or multilabel set.
        kind: Which of them.
        full_train: Whether every row is.

    Returns:
        Indices of training rows: all of them, or those that some experiment draws.
    """
    assert data.train is not None
    if full_train or kind is Kind.MULTILABEL:
        return list(range(len(data.train.labels)))
    drawn: set[int] = set()
    for rows in {tuple(rows) for rows in language_training_rows(data).values()}:
        for sample in few_per_label([data.train.labels[i] for i in rows]):
            drawn.update(rows[i] for i in sample)
    return sorted(drawn)


def language_training_rows(data: LabelledData) -> dict[str, list[int]]:
    """Return which training rows belong to each language of the test rows: its own where it has two labels, else all.

    Args:
        data: A classification set.

    Returns:
        Language to indices of training rows; one language `""` where the test rows have one only.
    """
    assert data.train is not None
    everything = list(range(len(data.train.labels)))
    found = {}
    for language in dict.fromkeys(data.languages):
        own = [i for i in everything if data.train.languages[i] == language]
        found[language] = own if len({str(data.train.labels[i]) for i in own}) > 1 else everything
    return found if len(found) > 1 else dict.fromkeys(found, everything)


def _together(reader: _Reader, **sides: Sequence[str]) -> None:
    """Encode several sides in one call, so that a text on two of them is encoded once."""
    reader.add("", [text for texts in sides.values() for text in texts])
    whole = reader.sides.pop("")
    start = 0
    for side, texts in sides.items():
        reader.sides[side] = whole[start : start + len(texts)]
        start += len(texts)
