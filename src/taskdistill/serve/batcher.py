"""The batching queue: requests of an event loop, computed in batches by the threads of
the model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from taskdistill.errors import WorkFailed
from taskdistill.serve.engine import SHORT_WORKER_TOKENS, AdapterView, Engine
from taskdistill.serve.scheduler import EmbedJob, FairScheduler, QueuedText, ScheduledBatch

HEALTHY_SECONDS = 10.0
"""Seconds for which a computed batch counts as proof of health."""

_log = logging.getLogger(__name__)


class ServerStopping(Exception):
    """The server is stopping."""


class DynamicBatcher:
    """Accepts requests, keeps the threads busy, hands every request its vectors or its
    own error.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: FairScheduler,
        observe: Callable[[ScheduledBatch, float], None] | None = None,
    ) -> None:
        """Join a model and what waits for it.

        `scheduler`: without texts. `observe`: called in a worker thread with each batch and its
        seconds.
        """
        self._engine = engine
        self._scheduler = scheduler
        self._observe = observe
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._short_work = threading.Condition(self._lock)
        self._threads: set[threading.Thread] = set()
        self._running: dict[threading.Thread, ScheduledBatch] = {}
        self._closed = False
        self._rough = True
        """Whether the rate is of a small batch, so that the first large one replaces it."""
        self.unhealthy = False
        """Whether a worker has panicked since the last batch that succeeded."""
        self.worker_failures = 0
        self._last_success = -HEALTHY_SECONDS

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._engine.workers + self._engine.has_short_worker):
            self._start(short_only=number == self._engine.workers)

    @property
    def texts(self) -> int:
        """Texts that wait."""
        return self._scheduler.texts

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._scheduler.tokens

    @property
    def full(self) -> bool:
        """Whether not even a short text would be accepted."""
        with self._lock:
            return self._scheduler.refuses(1, 1)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        with self._lock:
            return self._scheduler.texts == 0 and not self._running

    @property
    def recently_succeeded(self) -> bool:
        """Whether the model has worked lately and nothing has gone wrong since."""
        return not self.unhealthy and time.monotonic() - self._last_success < HEALTHY_SECONDS

    def admit(self, texts: int, tokens: int) -> EmbedJob:
        """Accept a request or refuse it.

        `tokens`: about how many tokens they have. Returns the request, which counts as waiting
        until it is computed or dropped; `drop` it in any case. Raises QueueFull if too much waits.
        Raises ServerStopping if the server is stopping.
        """
        with self._lock:
            if self._closed:
                raise ServerStopping
            return self._scheduler.admit(texts, tokens)

    async def embed(
        self,
        job: EmbedJob,
        ids: list[np.ndarray],
        task: str | None,
        spans: np.ndarray | None = None,
    ) -> np.ndarray:
        """Wait for the vectors of an accepted request.

        `ids`: token ids of each text, at least one text. `task`: adapter, or None for the base.
        `spans`: of a single text, `(chunks, 2)` of tokens, to get the vectors of its chunks instead
        of its own. Returns float32 `(texts, dim)` or `(chunks, dim)`, not cut and not scaled.
        Raises WorkFailed if the model failed at one of these texts. Raises ServerStopping if the
        server stopped before they were computed.
        """
        job.future = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._closed or job.dropped:
                raise ServerStopping
            self._scheduler.put(job, ids, task, time.monotonic(), spans)
            self._work.notify(-(-job.tokens // self._engine.budget))
            self._short_work.notify()
        vectors: np.ndarray = await job.future
        return vectors

    async def probe(self, ids: list[np.ndarray], seconds: float) -> bool:
        """Run the model with some texts, ahead of whatever waits and however much that is."""
        job = EmbedJob(texts=0, tokens=0, probe=True)
        try:
            await asyncio.wait_for(self.embed(job, ids, None), seconds)
        except (WorkFailed, ServerStopping, TimeoutError):
            return False
        finally:
            self.drop(job)
        return True

    async def measure(self, ids: list[np.ndarray], seconds: float) -> float | None:
        """Learn how fast the model is before anything waits for it; the first run, which also sets
        the model up, counts only if it is slow.

        `ids`: token ids of some texts, at most a batch. Returns tokens a second of all workers;
        None if the model did not answer.
        """
        tokens, rate = sum(map(len, ids)), None
        end = time.monotonic() + seconds
        for _ in range(2):
            started = time.monotonic()
            if not await self.probe(ids, max(0.0, end - started)):
                break
            spent = time.monotonic() - started
            rate = self._engine.workers * tokens / max(spent, 1e-6)
            if spent > seconds / 4:
                break
        with self._lock:
            if rate is not None:
                self._scheduler.rate, self._rough = rate, True
            return self._scheduler.rate

    def drop(self, job: EmbedJob) -> int:
        """Free the place of a request that nobody waits for.

        `job`: the request; one that is computed or dropped already has no place. Returns texts that
        will not be computed.
        """
        with self._lock:
            return self._scheduler.drop(job)

    def close(self, seconds: float = 5.0) -> None:
        """Stop the threads after the batches they are at, and fail whatever still waits."""
        with self._lock:
            self._closed = True
            while (batch := self._scheduler.take(1 << 62, float("inf"))[0]) is not None:
                for item in batch.items:
                    self._finish(item.job, ServerStopping())
            self._work.notify_all()
            self._short_work.notify_all()
            threads = list(self._threads)
        deadline = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, *, short_only: bool) -> None:
        thread = threading.Thread(
            target=self._compute,
            args=(short_only,),
            name="express" if short_only else "lane",
            daemon=True,
        )
        self._threads.add(thread)
        thread.start()

    def _compute(self, short_only: bool) -> None:
        """Compute batches until the queue is closed; a thread that has seen a panic is replaced by
        a new one.
        """
        torch.set_num_threads(1)
        me = threading.current_thread()
        batch: ScheduledBatch | None = None
        try:
            view = self._engine.view()
            while (batch := self._next(short_only)) is not None:
                started = time.monotonic()
                worker_failures = self.worker_failures
                self._attempt(view, batch.task, batch.items)
                self._finished(batch, time.monotonic() - started)
                if self.worker_failures != worker_failures:
                    break
        except BaseException as error:
            self._worker_failed(error)
            with self._lock:
                for item in batch.items if batch else ():
                    self._finish(item.job, WorkFailed(f"a worker failed ({type(error).__name__})"))
            time.sleep(0.1)
        finally:
            with self._lock:
                self._running.pop(me, None)
                self._threads.discard(me)
                if not self._closed:
                    self._start(short_only=short_only)

    def _worker_failed(self, error: BaseException) -> None:
        self.unhealthy = True
        self.worker_failures += 1
        _log.error("a worker panicked (%s) and is replaced", type(error).__name__)

    def _next(self, short_only: bool) -> ScheduledBatch | None:
        budget = (
            min(SHORT_WORKER_TOKENS, self._engine.budget) if short_only else self._engine.budget
        )
        changed = self._short_work if short_only else self._work
        with self._lock:
            while not self._closed:
                pause = None
                if not short_only or any(not batch.short for batch in self._running.values()):
                    batch, pause = self._scheduler.take(
                        budget, time.monotonic(), short_only=short_only
                    )
                    if batch is not None:
                        self._running[threading.current_thread()] = batch
                        if not batch.short:
                            self._short_work.notify()
                        return batch
                changed.wait(pause)
            return None

    def _attempt(self, view: AdapterView, task: str | None, items: list[QueuedText]) -> None:
        """Compute texts; if that fails, compute the halves, until a text that fails is alone."""
        items = [item for item in items if not item.job.dropped]
        if not items:
            return
        try:
            if items[0].spans is None:
                vectors = list(view.embed([item.ids for item in items], task))
            else:
                vectors = [
                    view.embed_chunks(item.ids, item.spans, task)
                    for item in items
                    if item.spans is not None
                ]
        except BaseException as error:
            if not isinstance(error, Exception):
                self._worker_failed(error)
                view = self._engine.view()
            if len(items) > 1:
                self._attempt(view, task, items[: len(items) // 2])
                self._attempt(view, task, items[len(items) // 2 :])
                return
            _log.error("a text of %d tokens failed: %s", len(items[0].ids), type(error).__name__)
            with self._lock:
                self._finish(
                    items[0].job, WorkFailed(f"the model failed at a text ({type(error).__name__})")
                )
            return
        self._last_success = time.monotonic()
        self.unhealthy = False
        with self._lock:
            for item, vector in zip(items, vectors, strict=True):
                self._keep(item, vector)

    def _keep(self, item: QueuedText, vector: np.ndarray) -> None:
        job = item.job
        if job.dropped:
            return
        if item.spans is not None:
            job.vectors = vector
        else:
            if job.vectors is None:
                job.vectors = np.empty((job.left, len(vector)), dtype=np.float32)
            job.vectors[item.index] = vector
        job.left -= 1
        if job.left == 0:
            self._finish(job, None)

    def _finish(self, job: EmbedJob, error: Exception | None) -> None:
        """Hand a request its vectors or its error; called with the lock held."""
        if job.dropped:
            return
        self._scheduler.drop(job)

        def resolve() -> None:
            if not job.future.done():
                job.future.set_exception(error) if error else job.future.set_result(job.vectors)

        with suppress(RuntimeError):  # the loop is closed
            job.future.get_loop().call_soon_threadsafe(resolve)

    def _finished(self, batch: ScheduledBatch, seconds: float) -> None:
        with self._lock:
            self._running.pop(threading.current_thread(), None)
            large, before = batch.tokens >= self._engine.budget // 2, self._scheduler.rate
            if seconds > 0 and (large or before is None):
                rate = self._engine.workers * batch.tokens / seconds
                self._scheduler.rate = (
                    rate if before is None or self._rough else 0.8 * before + 0.2 * rate
                )
                self._rough = not large
        if self._observe is not None and not all(item.job.probe for item in batch.items):
            self._observe(batch, seconds)
