"""Turn the texts of an evaluation set into vectors, each distinct text once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.set_data import SetData
from taskdistill.evaluate.task_type import AnyTask, Vectors
from taskdistill.tasks import Role, Task

CHARACTERS_PER_CALL = 400_000
"""A few seconds of work, after which progress is reported."""

ShareDone = Callable[[float], None]
"""Called with the share of a set's characters that is encoded, from 0 to 1."""


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """The vectors of one set by one model, with how many distinct texts they took and how long."""

    sides: Vectors
    texts: int
    seconds: float
    cut: int = 0
    """Texts longer than the model reads, where it counts them."""

    @property
    def dim(self) -> int:
        """Dimensions of the vectors."""
        return int(next(iter(self.sides.values())).shape[1])


def encode_set(
    embedder: Embedder,
    task: AnyTask,
    data: SetData,
    *,
    known: Vectors | None = None,
    progress: ShareDone | None = None,
) -> EncodedSet:
    """Encode every text of a set with the adapter and prompts of its type (paper, section 8.1).

    Sides of one role are encoded in one call, so that a text on two of them is encoded once; sides
    in `known` are taken as they are. Raises BadInput if the model returns what cannot be scored.
    """
    texts, sides = task.sides(data), dict(known or {})
    by_role: dict[Role, list[str]] = {}
    for side, (_, role) in texts.items():
        if side not in sides:
            by_role.setdefault(role, []).append(side)
    joined = {
        role: [text for side in names for text in texts[side][0]] for role, names in by_role.items()
    }
    total = sum(len(text) for group in joined.values() for text in set(group))
    done = 0

    def report(characters: int) -> None:
        nonlocal done
        done += characters
        if progress is not None:
            progress(min(1.0, done / max(1, total)))

    start, cut_before = time.perf_counter(), getattr(embedder, "cut", 0)
    dim = next((x.shape[1] for x in sides.values()), None)
    for role, group in joined.items():
        vectors = encode_texts(embedder, group, task.adapter, role, report)
        dim = check_vectors(embedder.name, group, vectors, dim)
        sizes = [len(texts[side][0]) for side in by_role[role]]
        sides |= zip(by_role[role], np.split(vectors, np.cumsum(sizes)[:-1]), strict=True)
    return EncodedSet(
        {side: sides[side] for side in texts},
        sum(len(set(group)) for group in joined.values()),
        time.perf_counter() - start,
        getattr(embedder, "cut", 0) - cut_before,
    )


def encode_texts(
    embedder: Embedder,
    texts: Sequence[str],
    task: Task,
    role: Role,
    report: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Encode texts, each distinct one once, the longest first.

    Returns (n, dim) vectors in the order of the texts; `report` takes the characters of every call.
    Raises BadInput if the model returns what cannot be scored.
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
        if characters and characters + len(text) > CHARACTERS_PER_CALL:
            yield start, i
            start, characters = i, 0
        characters += len(text)
    if start < len(texts):
        yield start, len(texts)


def check_vectors(
    name: str, texts: Sequence[str], vectors: NDArray[np.floating], dim: int | None = None
) -> int:
    """Return the dimension of vectors, `dim` where the model gave some before.

    Raises BadInput if they cannot be scored: NaN, a wrong count, or another dimension.
    """
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise BadInput(
            f"model {name!r} returned an array of shape {vectors.shape} for {len(texts)} texts;"
            " one vector a text is needed"
        )
    if dim is not None and vectors.shape[1] != dim:
        raise BadInput(
            f"model {name!r} returned vectors of {dim} and then of {vectors.shape[1]} dimensions;"
            " one dimension for all texts is needed"
        )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise BadInput(
            f"model {name!r} returned NaN or infinity for {(~finite).sum()} of {len(texts)} texts,"
            f" the first {texts[int(np.argmin(finite))][:60]!r}; check its weights"
        )
    return int(vectors.shape[1])
