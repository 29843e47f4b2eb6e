"""Worker threads of a training step, and what they use again from step to step."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Made = TypeVar("Made")


class TableGradient:
    """The gradient of a token table in one buffer, of which only the rows of the step before are cleared."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._filled = list[Tensor]()

    def of(self, table: Tensor, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Add up the gradients of looked-up rows.

        Args:
            table: The table, `(vocabulary, D)`.
            parts: Token ids `(tokens,)` with the gradients of their rows `(tokens, D)`.

        Returns:
            `(vocabulary, D)`; valid until the next call.
        """
        if self._buffer is None or self._buffer.shape != table.shape or self._buffer.dtype != table.dtype:
            self._buffer, self._filled = torch.zeros_like(table), []
        for ids in self._filled:
            self._buffer.index_fill_(0, ids, 0.0)
        for ids, gradient in parts:
            self._buffer.index_add_(0, ids, gradient)
        self._filled = [ids for ids, _ in parts]
        return self._buffer


class Workers:
    """Threads that run micro-batches, one intra-op thread each, and what they use again from step to step."""

    def __init__(self, count: int) -> None:
        """Start the threads.

        Args:
            count: How many; 1 runs everything in the calling thread with all its intra-op threads.
        """
        self.count = count
        self.table_gradient = TableGradient()
        self.halvings = 0
        """How often micro-batches are halved because they did not fit into memory."""
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def map(self, work: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
        """Run work on some items and yield results in their order.

        Args:
            work: Called from any thread.
            items: What it is called with.

        Yields:
            What work returned; after a failure no thread is left at work.
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
def workers(count: int) -> Iterator[Workers]:
    """Give worker threads and stop them at the end.

    Beside several workers the calling thread keeps to one intra-op thread as well: an operator that waits for a second one
    which the machine has given to another program costs more than it could save.

    Args:
        count: How many.

    Yields:
        The threads.
    """
    made, before = Workers(count), torch.get_num_threads()
    if count > 1:
        torch.set_num_threads(1)
    try:
        yield made
    finally:
        made.close()
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one; otherwise it maps and clears the same pages again in every step.

    Peak memory is the same. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((-8, 1), (-3, 1 << 30), (-1, (1 << 31) - 1)):  # arenas, mapping threshold, trimming threshold
            mallopt(parameter, value)
