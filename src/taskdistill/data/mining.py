"""Hard negatives for pairs: what lies near a query without being an answer to it, by exact search
in bounded memory.

A candidate is never a negative of a query where its normalised text equals the query, one of the
query's known positives in any row (its siblings), or a positive of a query that shares a positive
with it. What is left is ranked by cosine; a window of ranks is taken, and of it what lies far
enough below the row's own positive.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from taskdistill.data.dedup import exact_key
from taskdistill.data.order import generator
from taskdistill.data.rows import Pair
from taskdistill.errors import BadInput

QUERIES, CANDIDATES = 512, 16_384
"""Queries and candidates whose similarities are held at once: 32 MiB of float32."""

RELATIVE_MARGIN = 0.05
"""A text that scores above 95 % of a query's own positive is more often an answer nobody marked
than a hard negative (NV-Retriever, arXiv 2407.15831, whose percentage to the positive was best
at 95 %).
"""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningSettings:
    """What counts as a hard negative."""

    negatives: int = 7
    """Most negatives of a row, those that it came with included."""
    first: int = 1
    """First rank of the window, from 1."""
    last: int = 100
    """Last rank of the window."""
    margin: float | None = None
    """A negative's cosine is at most the positive's minus this."""
    relative_margin: float | None = RELATIVE_MARGIN
    """A negative's cosine is at most the positive's minus this share of the positive's size,
    whatever its sign; None for no such limit.
    """
    max_score: float | None = None
    """A negative's cosine is at most this."""
    min_score: float | None = None
    """A negative's cosine is at least this."""
    pick: Literal["hardest", "random"] = "hardest"
    """Which of the window: the nearest, or drawn by the seed."""
    seed: int = 17

    def fields(self) -> dict[str, Any]:
        """Return the settings as plain data.

        Raises BadInput if no candidate could ever be taken.
        """
        if self.negatives < 1:
            raise BadInput(f"--negatives is {self.negatives}; give at least 1")
        if not 1 <= self.first <= self.last:
            raise BadInput(
                f"ranks {self.first} to {self.last} are no window; the first must be at least 1 and"
                " not above the last"
            )
        if self.last - self.first + 1 < self.negatives:
            raise BadInput(
                f"ranks {self.first} to {self.last} hold fewer than the {self.negatives} negatives"
                " wanted; widen the window"
            )
        for name in ("margin", "relative_margin", "max_score", "min_score"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise BadInput(f"--{name.replace('_', '-')} is {value}; give a finite number")
        for name in ("margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise BadInput(
                    f"--{name.replace('_', '-')} is {value}; it must not be negative, or positives"
                    " would be passed"
                )
        if self.relative_margin is not None and self.relative_margin >= 1:
            raise BadInput(
                f"--relative-margin is {self.relative_margin}; it is a share of the positive's"
                " cosine: 0.05 stands for 5 %"
            )
        if (
            self.max_score is not None
            and self.min_score is not None
            and self.min_score > self.max_score
        ):
            raise BadInput(
                f"--min-score {self.min_score} is above --max-score {self.max_score}; no candidate"
                " lies between"
            )
        return asdict(self)


class Vectors(Protocol):
    """Unit vectors by number, read block by block."""

    def take(self, rows: Numbers) -> NDArray[Any]:
        """Return float vectors (n, D) of the given numbers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Relations:
    """Distinct queries and candidates of a set of pairs, and what is no negative of what."""

    queries: list[str]
    candidates: list[str]
    query_of: Numbers
    """Query of each row, `(rows,)`."""
    positive_of: Numbers
    """Candidate that is each row's positive, `(rows,)`."""
    listed: list[Numbers]
    """Candidates that each row already has as negatives."""
    excluded: list[Numbers]
    """Candidates that are no negatives of each query, ascending."""
    siblings: int
    """How many of those are other positives of the query or of one that shares a positive with it.
    """
    merged: int
    """Texts that were left out of the candidates because another one equals them."""


def build_relations(rows: Sequence[Pair], others: Sequence[str] = ()) -> Relations:
    """Number the distinct texts of pairs and find what is no negative of what.

    `rows`: pairs; their positives and the negatives that they came with are candidates. Returns the
    relations. Texts are the same if they are equal after normalisation, without punctuation at
    their end.
    """
    queries, query_texts = dict[str, int](), list[str]()
    candidates, candidate_texts, read = dict[str, int](), list[str](), 0

    def number(text: str, known: dict[str, int], texts: list[str]) -> int:
        key = exact_key(text) or text
        if key not in known:
            known[key] = len(known)
            texts.append(text)
        return known[key]

    query_of, positive_of, mined_rows = list[int](), list[int](), list[Numbers]()
    for row in rows:
        query_of.append(number(row.query, queries, query_texts))
        positive_of.append(number(row.positive, candidates, candidate_texts))
        mined_rows.append(
            np.array(
                [number(text, candidates, candidate_texts) for text in row.negatives],
                dtype=np.int64,
            )
        )
        read += 1 + len(row.negatives)
    for text in others:
        number(text, candidates, candidate_texts)
        read += 1
    positives: list[set[int]] = [set() for _ in query_texts]
    askers: dict[int, set[int]] = {}
    for query, positive in zip(query_of, positive_of, strict=True):
        positives[query].add(positive)
        askers.setdefault(positive, set()).add(query)
    excluded, siblings = list[Numbers](), 0
    for key, query in queries.items():
        near = {
            positive
            for positive_text in positives[query]
            for other in askers[positive_text]
            for positive in positives[other]
        }
        siblings += len(near) - 1
        itself = {candidates[key]} if key in candidates else set()
        excluded.append(np.array(sorted(near | itself), dtype=np.int64))
    return Relations(
        queries=query_texts,
        candidates=candidate_texts,
        query_of=np.array(query_of, dtype=np.int64),
        positive_of=np.array(positive_of, dtype=np.int64),
        listed=mined_rows,
        excluded=excluded,
        siblings=siblings,
        merged=read - len(candidate_texts),
    )


def top_k(
    queries: NDArray[np.float32],
    candidates: Vectors,
    count: int,
    excluded: Sequence[Numbers],
    limit: int,
    usable: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float32], Numbers]:
    """Find the nearest candidates of some queries, exactly, block by block.

    `queries`: unit rows, `(n, D)`. `excluded`: ascending numbers of candidates that each query must
    not find. `limit`: how many each query finds at most. `usable`: candidates that have a vector,
    `(count,)`; None: all. Returns cosines `(n, most)`, descending, and candidates; where fewer are
    left the cosine is minus infinity. Of equal cosines the lower number comes first.
    """
    top = np.full((len(queries), limit), -np.inf, np.float32)
    result = np.zeros((len(queries), limit), np.int64)
    for start in range(0, count, CANDIDATES):
        stop = min(start + CANDIDATES, count)
        scores = queries @ np.asarray(candidates.take(np.arange(start, stop)), dtype=np.float32).T
        if usable is not None:
            scores[:, ~usable[start:stop]] = -np.inf
        for row, out in enumerate(excluded):
            first, last = np.searchsorted(out, (start, stop))
            scores[row, out[first:last] - start] = -np.inf
        keep = min(limit, stop - start)
        places = (
            np.argpartition(-scores, keep - 1, axis=1)[:, :keep]
            if keep < stop - start
            else np.tile(np.arange(keep), (len(scores), 1))
        )
        both = np.concatenate([top, np.take_along_axis(scores, places, axis=1)], axis=1)
        numbers = np.concatenate([result, places + start], axis=1)
        order = np.lexsort((numbers, -both), axis=1)[:, :limit]
        top, result = (
            np.take_along_axis(both, order, axis=1),
            np.take_along_axis(numbers, order, axis=1),
        )
    return top, result


@dataclass(frozen=True)
class MinedBlock:
    """The negatives of the rows of one block of queries."""

    rows: Numbers
    counts: Numbers
    """Negatives of each row."""
    negatives: Numbers
    """Candidates, row after row."""
    reasons: dict[str, int]


def mine_block(
    relations: Relations,
    queries: Vectors,
    candidates: Vectors,
    block: Numbers,
    settings: MiningSettings,
    usable: NDArray[np.bool_] | None = None,
) -> MinedBlock:
    """Mine the rows of a block of queries.

    `relations`: what is no negative of what. `usable`: candidates that have a vector; None: all.
    Returns the negatives that are added to each row, and how many candidates were passed over for
    what reason.
    """
    rows = np.flatnonzero((relations.query_of >= block[0]) & (relations.query_of <= block[-1]))
    vectors = np.asarray(queries.take(block), dtype=np.float32)
    top, result = top_k(
        vectors,
        candidates,
        len(relations.candidates),
        [relations.excluded[query] for query in block],
        settings.last,
        usable,
    )
    place = {int(query): i for i, query in enumerate(block)}
    places = np.array([place[int(relations.query_of[row])] for row in rows], dtype=np.int64)
    positive_vectors = np.asarray(candidates.take(relations.positive_of[rows]), dtype=np.float32)
    positive = (vectors[places] * positive_vectors).sum(1) if len(rows) else np.zeros(0, np.float32)
    chosen, reasons = list[Numbers](), Counter[str]()
    for row, at, score in zip(rows.tolist(), places.tolist(), positive.tolist(), strict=True):
        room = settings.negatives - len(relations.listed[row])
        usable_row = usable is None or bool(usable[relations.positive_of[row]])
        chosen.append(
            _choose(top[at], result[at], score, relations.listed[row], room, row, settings, reasons)
            if usable_row
            else result[at, :0]
        )
    return MinedBlock(
        rows,
        np.array([len(each) for each in chosen]),
        np.concatenate([np.zeros(0, np.int64), *chosen]),
        dict(reasons),
    )


def score_ceilings(positive: float, settings: MiningSettings) -> dict[str, float]:
    """Say below which cosine a candidate must lie.

    `positive`: cosine of the row's own positive; may be negative.
    """
    result = {}
    if settings.margin is not None:
        result["margin"] = positive - settings.margin
    if settings.relative_margin is not None:
        result["relative margin"] = positive - settings.relative_margin * abs(positive)
    if settings.max_score is not None:
        result["max score"] = settings.max_score
    return result


def _choose(
    scores: NDArray[np.float32],
    numbers: Numbers,
    positive: float,
    candidate_ids: Numbers,
    room: int,
    row: int,
    settings: MiningSettings,
    reasons: Counter[str],
) -> Numbers:
    """Take the negatives of one row from its window."""
    window = slice(settings.first - 1, settings.last)
    scores, numbers = scores[window], numbers[window]
    left = np.isfinite(scores) & ~np.isin(numbers, candidate_ids)
    for reason, ceiling in score_ceilings(positive, settings).items():
        passed = left & (scores > ceiling)
        reasons[reason] += int(passed.sum())
        left &= ~passed
    if settings.min_score is not None:
        passed = left & (scores < settings.min_score)
        reasons["min score"] += int(passed.sum())
        left &= ~passed
    places = np.flatnonzero(left)
    if settings.pick == "random" and len(places) > room:
        places = np.sort(
            generator(settings.seed, "negatives", row).permutation(places)[: max(0, room)]
        )
    return numbers[places[: max(0, room)]]


def query_blocks(count: int) -> Iterator[Numbers]:
    """Cut the queries into blocks."""
    for start in range(0, count, QUERIES):
        yield np.arange(start, min(start + QUERIES, count))


def with_negatives(row: Pair, negatives: Sequence[str]) -> Mapping[str, Any]:
    """Write a pair with its negatives in our layout.

    `found`: negatives to add behind those it came with. Returns a row of
    `pairs/<name>.<split>.jsonl.gz`.
    """
    record: dict[str, Any] = {"query": row.query, "positive": row.positive}
    if negatives := [*row.negatives, *negatives]:
        record["negatives"] = negatives
    return record | ({"lang": row.lang} if row.lang else {})
