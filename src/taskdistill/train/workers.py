"""Worker threads of a training step, and what they use again from step to step."""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Item = TypeVar("Item")
Output = TypeVar("Output")


class EmbeddingGradient:
    """The gradient of a token table in one buffer, of which a step touches the rows of its batch
    alone.

    A table of 150,000 x 1,024 float32 numbers is 614 MB, and a batch looks up a small part of its
    rows. Clearing and exchanging whole tables would cost more than the passes of a small step; so
    only rows are cleared and exchanged. Which rows is never exchanged nor derived from what this
    process did: every process knows all token ids of the batch, so all of them name the same rows,
    in the same order. Rows that only other processes looked up are therefore cleared in the next
    step like any other. Nothing else may be written into the buffer outside these rows; scaling it,
    as clipping does, leaves zeros zero.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._table: weakref.ref[Tensor] | None = None
        self._filled: Tensor | None = None

    def all_reduce_(
        self, table: Tensor, rows: Tensor, parts: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Add up the gradients of looked-up rows.

        `table`: the table, `(vocabulary, D)`. `rows`: distinct rows that the whole batch looks up,
        `(n,)`, those of every process among them. `parts`: token ids `(tokens,)` with the gradients
        of their rows `(tokens, D)`; all ids are among `rows`. Returns `(vocabulary, D)`; valid
        until the next call.
        """
        held, buffer = self._table() if self._table is not None else None, self._buffer
        if (
            held is not table
            or buffer is None
            or (buffer.shape, buffer.dtype, buffer.device)
            != (table.shape, table.dtype, table.device)
        ):
            self._buffer = self._filled = None  # the old one goes before the new one comes
            self._buffer = buffer = torch.zeros_like(table, requires_grad=False)
            self._table = weakref.ref(table)
        if self._filled is not None:
            buffer.index_fill_(0, self._filled, 0.0)
        self._filled = (
            rows  # before anything is added: if that fails, these rows are cleared all the same
        )
        for ids, gradient in parts:
            buffer.index_add_(0, ids, gradient)
        return buffer


class GradientSums:
    """The gradients of pieces of a batch, added up in their order."""

    def __init__(self, inner: int, table_trained: bool) -> None:
        """Begin with nothing.

        `inner`: how many of the gradients are those of parameters beside the token table.
        `table_trained`: whether the last one is that of the looked-up rows of the token table.
        """
        self._inner, self.table_trained = inner, table_trained
        self.inner: list[Tensor] = []
        self.rows: list[tuple[Tensor, Tensor]] = []

    def add(self, gradients: list[Tensor], ids: Tensor) -> None:
        """Add those of a piece.

        `gradients`: they may be changed in place. `ids`: token ids that the piece looked up,
        `(tokens,)`.
        """
        if self.table_trained:
            self.rows.append((ids, gradients[-1]))
        result = gradients[: self._inner]
        self.inner = (
            [a.add_(b) for a, b in zip(self.inner, result, strict=True)] if self.inner else result
        )


def looked_up_rows(ids: Sequence[np.ndarray], table: Tensor) -> Tensor:
    """Name the rows of a token table that a batch looks up; a mark a row is quicker than sorting
    the tokens.

    Returns `(rows,)` of int64, ascending.
    """
    seen = np.zeros(len(table), dtype=bool)
    for row in ids:
        seen[row] = True
    return torch.from_numpy(np.flatnonzero(seen)).to(table.device)


class WorkerPool:
    """Threads that run micro-batches, one intra-op thread each, and what they use again from step
    to step.
    """

    def __init__(self, count: int) -> None:
        """Start the threads.

        `count`: how many; 1 runs everything in the calling thread with all its intra-op threads.
        """
        self.count = count
        self.table_gradient = EmbeddingGradient()
        self.halvings = 0
        """How often micro-batches are halved because they did not fit into memory."""
        keep_freed_memory()
        self._pool = (
            ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
            if count > 1
            else None
        )

    def map(self, work: Callable[[Item], Output], items: Sequence[Item]) -> Iterator[Output]:
        """Run work on some items and yield results in their order.

        `items`: what it is called with. Yields what work returned; after a failure no thread is
        left at work.
        """
        if self._pool is None:
            yield from map(work, items)
            return
        futures = deque(self._pool.submit(work, item) for item in items)
        try:
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@contextmanager
def workers(count: int) -> Iterator[WorkerPool]:
    """Give worker threads and stop them at the end.

    Beside several workers the calling thread keeps to one intra-op thread as well: an operator that
    waits for a second one which the machine has given to another program costs more than it could
    save.
    """
    pool, before = WorkerPool(count), torch.get_num_threads()
    if count > 1:
        torch.set_num_threads(1)
    try:
        yield pool
    finally:
        pool.close()
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; otherwise it maps and clears the same
    pages again in every step.

    Peak memory is the same. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (-8, 1),
            (-3, 1 << 30),
            (-1, (1 << 31) - 1),
        ):  # arenas, mapping threshold, trimming threshold
            mallopt(parameter, value)
