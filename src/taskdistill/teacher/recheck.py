"""A second look at what a teacher gives: vectors that a cheap check can show wrong are not stored.

A model whose weights are known by their hash gives the same vector for a text whenever it is asked.
Behind an endpoint nothing is known: it may return vectors in the order in which it found it
convenient to compute them, one vector for all, or those of another model since a minute ago, each
in a flawless reply. So one text of every request is sent once more, among the texts of the next
one, with a text that the store has already; both answers must agree. Of 248 texts that makes about
five more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.teacher.protocol import Teacher, unit_rows

Floats = npt.NDArray[np.float32]

SAME_MODEL_COSINE = 0.99
"""A teacher without a hash of its weights must give a text again at least this similar."""

SAMPLES = 8
"""Most texts of a piece that are asked for again; where its requests are more, some of them."""

EQUAL_COSINE = 0.9995
"""Vectors at least this similar count as one."""

LEAST_EQUAL = 4
"""So many different texts must have one vector before that is no accident."""

_REFERENCES = 8


class Disagreement(WorkFailed):
    """A teacher gave another vector for a text than before."""


@runtime_checkable
class InRequests(Protocol):
    """A teacher that cuts texts into requests, each of which may fail or lie by itself."""

    def requests(self, texts: Sequence[str]) -> list[int]:
        """Say in which requests texts would be sent. Returns texts of each request, in order."""

    def embed_apart(self, groups: Sequence[Sequence[str]], *, retry: bool) -> Floats:
        """Embed groups of texts, each in a request of its own.

        Returns Float32 (n, dim) unit rows, group after group.
        """


def embed_rows(teacher: Teacher, texts: Sequence[str]) -> Floats:
    """Embed texts, and refuse anything but one row a text."""
    vectors = teacher.embed(texts)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise BadInput(
            f"the teacher {teacher.identity.model!r} returned vectors of shape"
            f" {vectors.shape} for {len(texts)} texts; it must return one row a text; nothing of"
            " this batch was stored"
        )
    return vectors


class Recheck:
    """Texts of a fill that are asked for again, and what was said of them first."""

    def __init__(self, teacher: Teacher, seed: int) -> None:
        """Begin with nothing to ask."""
        self._teacher = teacher
        self._rng = np.random.default_rng(seed)
        self._anchor: tuple[str, Floats] | None = None
        self._open: list[tuple[str, Floats]] = []
        self.repeated = 0
        """Texts that were sent once more."""

    def anchor(self, text: str, row: npt.NDArray[np.floating]) -> None:
        """Compare with a text that the store has from now on."""
        self._anchor = text, unit_rows(row[None])[0]

    def embed(self, texts: Sequence[str]) -> Floats:
        """Embed new texts, and with them those of the texts before that are asked for again.

        Returns vectors of the new texts as the teacher gave them; those before them are now
        confirmed. Raises Disagreement if the teacher gives another vector for a text than before.
        """
        again = self._again() if self._open else []
        vectors = embed_rows(self._teacher, [*texts, *(text for text, _ in again)])
        self._compare(again, vectors[len(texts) :])
        result = vectors[: len(texts)]
        self._sample(texts, result)
        return result

    def confirm(self, *, retry: bool) -> None:
        """Ask for texts of the last piece again, one of them alone.

        Raises Disagreement if the teacher gives another vector for a text than before. Raises
        WorkFailed if it cannot be asked.
        """
        again = self._again()
        if not again:
            return
        groups = (
            [[again[0][0]], [text for text, _ in again[1:]]] if len(again) > 1 else [[again[0][0]]]
        )
        if isinstance(self._teacher, InRequests):
            vectors = self._teacher.embed_apart(groups, retry=retry)
        else:
            vectors = np.concatenate([self._teacher.embed(group) for group in groups])
        self._compare(again, vectors)

    def _again(self) -> list[tuple[str, Floats]]:
        again = [*self._open, *([self._anchor] if self._anchor is not None else [])]
        return [again[at] for at in self._rng.permutation(len(again))]

    def _sample(self, texts: Sequence[str], vectors: Floats) -> None:
        """Choose a text of every request to be asked for again."""
        unit = unit_rows(vectors)
        usable = _usable(unit)
        sizes = (
            self._teacher.requests(texts) if isinstance(self._teacher, InRequests) else [len(texts)]
        )
        ends = np.cumsum(sizes)
        places = [
            start + np.flatnonzero(usable[start:end])
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
        places = [place for place in places if len(place)]
        chosen = [
            int(self._rng.choice(places[at])) for at in self._rng.permutation(len(places))[:SAMPLES]
        ]
        self._open = [(texts[at], unit[at]) for at in chosen] if len(texts) > 1 else []

    def _compare(self, again: list[tuple[str, Floats]], vectors: Floats) -> None:
        self.repeated += len(again)
        now = unit_rows(vectors)
        for (text, then), row in zip(again, now, strict=True):
            cosine = float(then @ row) if len(then) == len(row) else float("nan")
            if not cosine >= SAME_MODEL_COSINE:
                raise Disagreement(
                    f"the teacher {self._teacher.identity.model!r} gave another vector for"
                    f" {text[:40]!r} when it was asked again: the cosine is {cosine:.3f}, at least"
                    f" {SAME_MODEL_COSINE} is needed; its vectors come in a wrong order, depend on"
                    " the texts beside them, or are another model's since (then give"
                    " teacher.revision another value); what was not confirmed is not stored"
                )
        if self._open:
            self._anchor = self._anchor or self._open[0]
        self._open = []


def refuse_equal(
    model: str, texts: Sequence[str], vectors: Floats, shown: Callable[[str], str] = str
) -> None:
    """Refuse vectors that are the same for different texts.

    `vectors`: (n, dim) unit rows; zero and not finite ones are left out. Raises WorkFailed if half
    of the texts, and at least four, have one vector.
    """
    first = {
        " ".join(texts[at].casefold().split()): at
        for at in reversed(np.flatnonzero(_usable(vectors)).tolist())
    }
    places = sorted(first.values())
    if len(places) < LEAST_EQUAL:
        return
    rows = vectors[places]
    for reference in rows[:: max(1, len(rows) // _REFERENCES)]:
        same = np.flatnonzero(rows @ reference > EQUAL_COSINE)
        if len(same) >= max(LEAST_EQUAL, len(rows) / 2):
            one, other = (shown(texts[places[at]][:40]) for at in same[:2])
            raise WorkFailed(
                f"the teacher {model!r} gave one vector for {len(same)} of {len(rows)} different"
                f" texts, such as {one!r} and {other!r}; none of them is stored; look at the"
                " teacher before running again"
            )


def _usable(rows: Floats) -> npt.NDArray[np.bool_]:
    usable: npt.NDArray[np.bool_] = np.logical_and(np.isfinite(rows).all(axis=1), rows.any(axis=1))
    return usable
