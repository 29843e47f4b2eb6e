"""Batches by token budget over texts sorted by length, pulled by workers of one thread each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

TOKEN_BUDGET = 768
"""Tokens of one batch on a CPU: 512 to 1,024 stay in cache and were fastest; see
docs/performance.md.
"""


def token_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut texts, sorted by length, into batches of at most `budget` tokens.

    `lengths`: tokens of each text, `(n,)`. `budget`: most tokens of a batch; a single longer text
    is a batch of its own. Returns indices of the texts of each batch, longest texts first, so that
    workers end together.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start, total = [], 0, 0
    for place, index in enumerate(order):
        if place > start and total + lengths[index] > budget:
            batches.append(order[start:place])
            start, total = place, 0
        total += int(lengths[index])
    if len(order):
        batches.append(order[start:])
    return batches


def cores() -> int:
    """Return the cores that this process may use. Returns at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def single_threaded_operators() -> Iterator[None]:
    """Run torch's operators on one thread each while several workers call them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_batches(
    batches: Sequence[np.ndarray],
    work: Callable[[np.ndarray], None],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Let workers pull batches from one queue; a batch that does not fit in memory is halved and
    tried again.

    `work`: called with a batch, from any worker. `progress`: called with (texts done, texts in all)
    after every batch.
    """
    total, done, lock = sum(len(batch) for batch in batches), 0, threading.Lock()
    queue = iter(batches)

    def attempt(batch: np.ndarray) -> None:
        try:
            work(batch)
        except (MemoryError, torch.OutOfMemoryError):
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            attempt(batch[:half])
            attempt(batch[half:])

    def pull() -> None:
        nonlocal done
        torch.set_num_threads(1)
        while True:
            with lock:
                batch = next(queue, None)
            if batch is None:
                return
            attempt(batch)
            with lock:
                done += len(batch)
                if progress is not None:
                    progress(done, total)

    if workers <= 1 or len(batches) <= 1:
        for batch in batches:
            attempt(batch)
            done += len(batch)
            if progress is not None:
                progress(done, total)
        return
    with single_threaded_operators(), ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(pull) for _ in range(workers)]:
            future.result()
