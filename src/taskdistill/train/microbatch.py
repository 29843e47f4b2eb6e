"""Where a batch is cut into micro-batches, and those into smaller pieces when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PIECE_TOKENS = 192
"""A micro-batch is not made smaller than this only to give every worker one."""


TOGETHER = 2
"""Workers that a batch is always cut for; one is treated as two, and more share its micro-batches
or parts of them (`spread`).
"""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A micro-batch, or a part of one."""

    number: int
    """Of the micro-batch; decides its dropout masks."""
    rows: np.ndarray
    """Places of its texts in the batch, in the order of `pack`."""
    first: int
    """Token of the micro-batch that it begins with."""
    whole: int
    """Tokens of the micro-batch."""


def micro_batches(lengths: np.ndarray, budget: int, workers: int) -> list[np.ndarray]:
    """Cut a batch into micro-batches of nearly equal token counts, as many as keep every worker
    busy.

    `lengths`: tokens of each text, `(n,)`. `budget`: most tokens of a micro-batch; a single longer
    text is one of its own. `workers`: threads of all processes together. One is treated as two, so
    that both cut alike. Returns places of the texts of each micro-batch, each in the order of
    `pack`: shortest texts first.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    total, together = int(ends[-1]), max(TOGETHER, workers)
    pieces = -(-total // budget)
    pieces = max(pieces, min(-(-pieces // together) * together, total // PIECE_TOKENS))
    while True:
        middles = ends - lengths[order] / 2
        cuts = np.searchsorted(middles, np.arange(1, pieces) * total / pieces)
        result = [part for part in np.split(order, cuts) if len(part)]
        if pieces >= len(order) or all(
            len(part) == 1 or lengths[part].sum() <= budget for part in result
        ):
            return [part[np.argsort(lengths[part], kind="stable")] for part in result]
        pieces += together


def spread(batches: Sequence[np.ndarray], lengths: np.ndarray, workers: int) -> int:
    """Say how often micro-batches are halved so that many workers are busy.

    Micro-batches are cut as for two workers whatever their number, because dropout masks are drawn
    for whole micro-batches: so the numbers of a step do not depend on how many threads and
    processes work on it. `batches`: what `micro_batches` returned for two workers. `lengths`:
    tokens of each text, `(n,)`. Returns the fewest halvings that come within a tenth of the
    shortest time, in pieces of at least `PIECE_TOKENS`.
    """
    if workers <= TOGETHER or not batches:
        return 0
    max_halvings = max(
        0, int(np.log2(max(1.0, float(lengths.sum()) / (PIECE_TOKENS * len(batches)))))
    )
    rounds = [
        -(-len(batches) * 2**halvings // workers) / 2**halvings
        for halvings in range(max_halvings + 1)
    ]
    return next(halvings for halvings, time in enumerate(rounds) if time <= 1.1 * min(rounds))


def split(
    batches: Sequence[np.ndarray], numbers: Sequence[int], lengths: np.ndarray, halvings: int
) -> list[MicroBatch]:
    """Halve micro-batches some times, between texts.

    `lengths`: tokens of each text, `(n,)`. `halvings`: how often; 0 leaves each micro-batch whole.
    Returns the pieces, micro-batch by micro-batch, each in stream order; a single text stays whole.
    """
    micro_batches = []
    for number in numbers:
        rows = batches[number]
        ends = np.cumsum(lengths[rows])
        total = int(ends[-1])
        cuts = np.searchsorted(
            ends - lengths[rows] / 2, np.arange(1, 2**halvings) * total / 2**halvings
        )
        for part in np.split(np.arange(len(rows)), cuts):
            if len(part):
                micro_batches.append(
                    MicroBatch(
                        number, rows[part], int(ends[part[0]] - lengths[rows[part[0]]]), total
                    )
                )
    return micro_batches
