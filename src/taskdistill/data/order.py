"""The order of a data set's rows in one epoch: a seeded permutation in which texts do not meet
themselves in a batch.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

import numpy as np

from taskdistill.data.dedup import fold_text
from taskdistill.data.rows import Dataset, Pair, ScoredPair

NEAR = 64
"""How many batches are tried for a row that fits into none of those left open."""
FEW = 4
"""Rows are exchanged only if at most so many batches' worth is left; more cannot be kept apart
anyway.
"""
LOOK_AHEAD = 2
"""How many batches' worth of put-off rows are tried again for each batch."""


def generator(*key: object) -> np.random.Generator:
    """Return a counter-based random generator that depends on the key alone."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def text_ids(dataset: Dataset) -> list[tuple[int, int]]:
    """Number the distinct normalised texts of pairs.

    Returns for each row the numbers of its query and of its positive.
    """
    known: dict[str, int] = {}
    return [
        (
            known.setdefault(fold_text(row.query), len(known)),
            known.setdefault(fold_text(row.positive), len(known)),
        )
        for row in dataset.rows
    ]


def epoch_order(
    dataset: Dataset,
    ids: Sequence[tuple[int, int]],
    batch_size: int,
    rng: np.random.Generator,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """Arrange one epoch into batches.

    Every row occurs at least once; the last batch is filled up with rows from all of the epoch. In
    batches of pairs no normalised query or positive occurs in two rows, and a batch of scored rows
    holds two distinct scores, as far as the rows allow it: a row that does not fit is put off to a
    later batch. `ids`: what `text_ids` returned for pairs; unused for other kinds. `batch_size`:
    rows per batch, at most the rows of the data set. `candidates`: row numbers to arrange; None:
    all. Only for lone and labelled texts. Returns row numbers, shape (batches, batch_size).
    """
    permutation = rng.permutation(len(dataset.rows) if candidates is None else candidates)
    first = dataset.rows[0]
    if not isinstance(first, Pair | ScoredPair):
        return _fill_up(permutation, batch_size, rng)
    fillers = rng.permutation(len(dataset.rows)).tolist()
    if isinstance(first, Pair):
        return np.array(_arrange(permutation.tolist(), fillers, batch_size, ids))
    scores = [row.score for row in dataset.rows]
    order = _fill_up(permutation, batch_size, rng)
    _mix_scores(order, scores, fillers)
    return order


def _fill_up(permutation: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    short = -len(permutation) % batch_size
    spare = permutation[: len(permutation) - (batch_size - short)] if short else permutation[:0]
    return np.concatenate([permutation, rng.permutation(spare)[:short]]).reshape(-1, batch_size)


def _mix_scores(order: np.ndarray, scores: Sequence[float], fillers: Sequence[int]) -> None:
    """Give every batch with a single score a row with another one: exchanged with a later batch if
    possible, else extra.
    """
    for number, batch in enumerate(order):
        only = scores[batch[0]]
        if any(scores[row] != only for row in batch):
            continue
        for later in order[number + 1 :]:
            column = next((i for i, row in enumerate(later) if scores[row] != only), None)
            if column is not None and batch[-1] not in later:
                batch[-1], later[column] = later[column], batch[-1]
                break
        else:
            batch[-1] = next(row for row in fillers if scores[row] != only)


class _OpenBatch:
    """A batch of pairs being filled; `held` are the numbers of its texts."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.held: set[int] = set()

    def fits(self, ids: tuple[int, int]) -> bool:
        return ids[0] not in self.held and ids[1] not in self.held

    def add(self, row: int, ids: tuple[int, int]) -> None:
        self.rows.append(row)
        self.held.update(ids)


def _arrange(
    permutation: list[int], fillers: list[int], size: int, ids: Sequence[tuple[int, int]]
) -> list[list[int]]:
    batches = [_OpenBatch() for _ in range(-(-len(permutation) // size))]
    put_off: deque[int] = deque()
    coming = iter(permutation)
    for batch in batches:
        again = min(len(put_off), LOOK_AHEAD * size)
        while len(batch.rows) < size:
            row = put_off.popleft() if again > 0 else next(coming, -1)
            again -= 1
            if row < 0:
                break
            if batch.fits(ids[row]):
                batch.add(row, ids[row])
            else:
                put_off.append(row)
    unfilled = [batch for batch in batches if len(batch.rows) < size]
    few = len(put_off) <= FEW * size
    for row in put_off:
        batch = next((batch for batch in unfilled[:NEAR] if batch.fits(ids[row])), unfilled[0])
        if batch.fits(ids[row]) or not (few and _exchange(row, batch, batches, ids)):
            batch.add(row, ids[row])
        if len(batch.rows) == size:
            unfilled.remove(batch)
    for batch in unfilled:
        _fill(batch, fillers, size, ids)
    return [batch.rows for batch in batches]


def _exchange(
    row: int, target: _OpenBatch, batches: Sequence[_OpenBatch], ids: Sequence[tuple[int, int]]
) -> bool:
    """Put the row in place of a member of another batch that fits into the target, and that member
    into the target.
    """
    for other in batches[:NEAR]:
        if other is target:
            continue
        for place, member in enumerate(other.rows):
            if target.fits(ids[member]) and not (other.held - set(ids[member])) & set(ids[row]):
                other.rows[place] = row
                other.held = other.held - set(ids[member]) | set(ids[row])
                target.add(member, ids[member])
                return True
    return False


def _fill(batch: _OpenBatch, fillers: list[int], size: int, ids: Sequence[tuple[int, int]]) -> None:
    """Fill up with rows that share no text with the batch, then with any row that is not in it."""
    for row in fillers:
        if len(batch.rows) == size:
            return
        if batch.fits(ids[row]):
            batch.add(row, ids[row])
    present = set(batch.rows)
    batch.rows += [row for row in fillers if row not in present][: size - len(batch.rows)]
