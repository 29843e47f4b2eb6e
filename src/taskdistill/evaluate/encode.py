"""Turn the texts of an evaluation set into vectors, each distinct text once, and refuse what is no vector."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.kinds import QUERY_ROLE, TASK, Embedder, Kind
from taskdistill.evaluate.reading import LabeledData, PairData, RankingData, SetData
from taskdistill.metrics import few_per_label
from taskdistill.tasks import Role, Task


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """The vectors of one set by one model: `sides` names each matrix, whose rows are in the order of the data."""

    sides: Mapping[str, NDArray[np.float32]]
    texts: int
    seconds: float
    cut: int = 0
    """Texts longer than the model reads, where it counts them."""

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return int(next(iter(self.sides.values())).shape[1])


Tell = Callable[[float], None]
"""Called with the share of a set's characters that is encoded, from 0 to 1."""

SLICE = 400_000
"""Characters encoded in one call: a few seconds of work, after which progress can be told."""


@dataclass
class _TextEmbedder:
    """Encodes for one set, holding the model to one dimension."""

    embedder: Embedder
    kind: Kind
    total: int
    tell: Tell | None
    dim: int | None = None
    texts: int = 0
    characters: int = 0
    seconds: float = 0.0
    cut: int = 0
    sides: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def add(self, side: str, texts: Sequence[str], role: Role = Role.DOCUMENT) -> None:
        start, before = time.perf_counter(), getattr(self.embedder, "cut", 0)
        self.sides[side] = vectors = encode_texts(
            self.embedder, texts, TASK[self.kind], role, self._told
        )
        self.seconds += time.perf_counter() - start
        self.cut += getattr(self.embedder, "cut", 0) - before
        self.texts += len(set(texts))
        self.dim = check_vectors(self.embedder.name, texts, vectors, self.dim)

    def _told(self, characters: int) -> None:
        self.characters += characters
        if self.tell is not None:
            self.tell(min(1.0, self.characters / max(1, self.total)))


def encode_texts(
    embedder: Embedder,
    texts: Sequence[str],
    task: Task,
    role: Role,
    report: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Encode texts, each distinct one once, the longest first, some hundred thousand characters a call.

    Args:
        report: Called with the characters of every call that is done.

    Returns:
        (n, dim) vectors in the order of the texts.

    Raises:
        BadInput: If the model returns what cannot be scored.
    """
    distinct = sorted(dict.fromkeys(texts), key=len, reverse=True)
    place = {text: i for i, text in enumerate(distinct)}
    result: NDArray[np.float32] = np.empty((0, 0), np.float32)
    for start, stop in _slices(distinct):
        some = distinct[start:stop]
        vectors = np.asarray(embedder.encode(some, task=task.value, prompt_name=role.value))
        dim = check_vectors(embedder.name, some, vectors, result.shape[1] if start else None)
        if not start:
            result = np.empty((len(distinct), dim), np.float32)
        result[start:stop] = vectors
        if report is not None:
            report(sum(map(len, some)))
    return result[[place[text] for text in texts]]


def _slices(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = characters = 0
    for i, text in enumerate(texts):
        if characters and characters + len(text) > SLICE:
            yield start, i
            start, characters = i, 0
        characters += len(text)
    if start < len(texts):
        yield start, len(texts)


def check_vectors(
    name: str, texts: Sequence[str], vectors: NDArray[Any], dim: int | None = None
) -> int:
    """Refuse vectors that cannot be scored: NaN, a wrong count, or a dimension that changes.

    Args:
        dim: Dimensions the model gave before, or None.

    Raises:
        BadInput: If they cannot be scored; the first text at fault is named.
    """
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise BadInput(
            f"model {name!r} returned an array of shape {vectors.shape} for {len(texts)} texts; one vector a text is needed"
        )
    if dim is not None and vectors.shape[1] != dim:
        raise BadInput(
            f"model {name!r} returned vectors of {dim} and then of {vectors.shape[1]} dimensions; one dimension for all texts is needed"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        place, count = (
            texts[int(np.argmin(finite))][:60],
            f"{(~finite).sum()} of {len(texts)} texts",
        )
        raise BadInput(
            f"model {name!r} returned NaN or infinity for {count}, the first {place!r}; check its weights"
        )
    return int(vectors.shape[1])


def encode_set(
    embedder: Embedder,
    kind: Kind,
    data: SetData,
    *,
    full_train: bool = False,
    tell: Tell | None = None,
) -> EncodedSet:
    """Encode every text of a set with the adapter and prompts of its kind (paper, section 8.1).

    Args:
        full_train: Whether all training rows of a classification set are encoded, or only the few that are drawn.

    Returns:
        Its vectors: `queries` and `documents`; `first` and `second`; `texts` and `train`; or `human` and `machine`.

    Raises:
        BadInput: If the model returns what cannot be scored.
    """
    if isinstance(data, RankingData):
        queries, documents = list(data.queries.values()), list(data.documents.values())
        reader = _TextEmbedder(embedder, kind, _characters(queries) + _characters(documents), tell)
        reader.add("queries", queries, QUERY_ROLE[kind])
        reader.add("documents", documents)
        return EncodedSet(reader.sides, reader.texts, reader.seconds, reader.cut)
    if isinstance(data, PairData):
        sides = {"first": data.first, "second": data.second}
    elif isinstance(data, LabeledData):
        train = (
            [data.train.texts[i] for i in training_rows(data, kind, full_train)]
            if data.train
            else []
        )
        sides = {"texts": data.texts, "train": train}
    else:
        sides = {
            "human": [t for row in data.human for t in row],
            "machine": [t for row in data.machine for t in row],
        }
    reader = _TextEmbedder(
        embedder, kind, _characters([text for texts in sides.values() for text in texts]), tell
    )
    _together(reader, sides)
    return EncodedSet(reader.sides, reader.texts, reader.seconds, reader.cut)


def _characters(texts: Sequence[str]) -> int:
    return sum(map(len, set(texts)))


def training_rows(data: LabeledData, kind: Kind, full_train: bool) -> list[int]:
    """Return the training rows that are encoded, in ascending order.

    Returns:
        Indices of training rows: all of them, or those that some experiment draws.
    """
    assert data.train is not None
    if full_train or kind is Kind.MULTILABEL:
        return list(range(len(data.train.labels)))
    sampled: set[int] = set()
    for rows in {tuple(rows) for rows in language_training_rows(data).values()}:
        for sample in few_per_label([data.train.labels[i] for i in rows]):
            sampled.update(rows[i] for i in sample)
    return sorted(sampled)


def language_training_rows(data: LabeledData) -> dict[str, list[int]]:
    """Return which training rows belong to each language of the test rows: its own where it has two labels, else all.

    Returns:
        Language to indices of training rows; one language `""` where the test rows have one only.
    """
    assert data.train is not None
    everything = list(range(len(data.train.labels)))
    result = {}
    for language in dict.fromkeys(data.languages):
        language_rows = [i for i in everything if data.train.languages[i] == language]
        result[language] = (
            language_rows
            if len({str(data.train.labels[i]) for i in language_rows}) > 1
            else everything
        )
    return result if len(result) > 1 else dict.fromkeys(result, everything)


def _together(reader: _TextEmbedder, sides: Mapping[str, Sequence[str]]) -> None:
    """Encode several sides in one call, so that a text on two of them is encoded once."""
    reader.add("", [text for texts in sides.values() for text in texts])
    vectors = reader.sides.pop("")
    start = 0
    for side, texts in sides.items():
        reader.sides[side] = vectors[start : start + len(texts)]
        start += len(texts)
