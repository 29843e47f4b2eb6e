"""What waits for the model: bounded, fair between requests, ready as batches of one task within a
token budget.

Every text gets a tag: the clock when its request was accepted plus `PATIENCE` times the tokens of
that request up to and including this text. The clock counts the tokens handed out. The smallest tag
goes first, so a short request overtakes the tail of a long one, but no text is overtaken for longer
than its own tag allows.

Texts of at most `SHORT` tokens never share a batch with longer ones, so that they need not wait for
them to be computed.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PATIENCE = 4
"""Tokens of others that may overtake, for each token of one's own request."""

UNMEASURED_TOKENS = 4096
"""Most tokens that wait while it is not known how fast the model is."""

SHORT = 128
"""Most tokens of a short text."""

Group = tuple[str, bool, bool]
"""Task (empty for none), whether the texts are short, whether they are read in chunks: what a batch
has in common.
"""


class QueueFull(Exception):
    """Too much waits already."""

    def __init__(self, seconds: float) -> None:
        """Say when there may be room. `seconds`: estimated seconds until then."""
        super().__init__("the queue is full")
        self.seconds = seconds


@dataclass(eq=False, slots=True, kw_only=True)
class EmbedJob:
    """One accepted request."""

    texts: int
    """Texts that count as waiting."""
    tokens: int
    """Tokens that count as waiting: an estimate until the texts are tokenised."""
    clock: int = 0
    probe: bool = False
    """Whether the server asks for itself."""
    dropped: bool = False
    left: int = 0
    """Texts without a vector yet."""
    vectors: np.ndarray | None = None
    future: Any = None
    """Of the event loop; holds the vectors, `(texts, dim)`."""


@dataclass(frozen=True, order=True, slots=True, kw_only=True)
class QueuedText:
    """One waiting text; ordered by tag, then by arrival."""

    tag: int
    number: int
    job: EmbedJob = field(compare=False)
    index: int = field(compare=False)
    """Place of the text in its request."""
    ids: np.ndarray = field(compare=False)
    since: float = field(compare=False)
    spans: np.ndarray | None = field(compare=False, default=None)
    """Where the chunks of a text begin and end, `(chunks, 2)` of tokens, if each gets a vector."""


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """Texts to be computed together."""

    task: str | None
    items: list[QueuedText]
    tokens: int
    short: bool


class FairScheduler:
    """The waiting texts; not thread-safe, the queue holds its lock around every call."""

    def __init__(
        self,
        *,
        texts: int,
        tokens: int,
        seconds: float,
        unmeasured: int = UNMEASURED_TOKENS,
        max_wait: float = 0.0,
    ) -> None:
        """Set the bounds.

        `seconds`: longest estimated wait accepted; 0 for any. `unmeasured`: most tokens waiting
        while no rate was measured and no wait can be estimated. `max_wait`: seconds that a batch
        which is not full waits for company.
        """
        self._bounds = (texts, tokens, seconds)
        self._unmeasured = unmeasured
        self._max_wait = max_wait
        self._heaps: dict[Group, list[QueuedText]] = {}
        self._sizes: dict[Group, int] = {}
        self._numbers = 0
        self._dead = 0
        self.texts = 0
        self.tokens = 0
        self.clock = 0
        self.rate: float | None = None
        """Tokens per second of all workers; None until a batch was measured."""

    def admit(self, texts: int, tokens: int) -> EmbedJob:
        """Accept a request or refuse it; an accepted one is never refused later.

        `tokens`: about how many tokens they have. Raises Full if it does not fit behind what waits
        already.
        """
        if self.refuses(texts, tokens):
            raise QueueFull(self.tokens / self.rate if self.rate else 0.0)
        self.texts += texts
        self.tokens += tokens
        return EmbedJob(texts=texts, tokens=tokens, clock=self.clock)

    def refuses(self, texts: int, tokens: int) -> bool:
        """Say whether a request would be refused.

        `tokens`: about how many tokens they have. Returns True if it does not fit behind what waits
        already; a request that nothing is ahead of is never too long.
        """
        max_texts, max_tokens, seconds = self._bounds
        if self.texts + texts > max_texts:
            return True
        ahead = self.tokens + tokens
        in_time = (
            max_tokens
            if seconds == 0
            else self._unmeasured
            if self.rate is None
            else seconds * self.rate
        )
        return self.tokens > 0 and ahead > min(in_time, max_tokens)

    def put(
        self,
        job: EmbedJob,
        ids: list[np.ndarray],
        task: str | None,
        now: float,
        spans: np.ndarray | None = None,
    ) -> None:
        """Let the texts of an accepted request wait for a batch.

        `ids`: token ids of each text; their number may differ from what was announced. `task`:
        adapter, or None for the base. `spans`: of a single text, if each of its chunks gets a
        vector.
        """
        total = sum(len(row) for row in ids)
        self.texts += len(ids) - job.texts
        self.tokens += total - job.tokens
        job.texts, job.tokens, job.left = len(ids), total, len(ids)
        so_far = 0
        for index, row in enumerate(ids):
            so_far += len(row)
            self._numbers += 1
            group = (task or "", len(row) <= SHORT, spans is not None)
            item = QueuedText(
                tag=job.clock + PATIENCE * so_far,
                number=self._numbers,
                job=job,
                index=index,
                ids=row,
                since=now,
                spans=spans,
            )
            heapq.heappush(self._heaps.setdefault(group, []), item)
            self._sizes[group] = self._sizes.get(group, 0) + len(row)

    def drop(self, job: EmbedJob) -> int:
        """Free the place of a request that nobody waits for, or that has failed.

        `job`: the request; dropping it twice changes nothing.
        """
        if job.dropped:
            return 0
        job.dropped = True
        texts, job.texts = job.texts, 0
        self.texts -= texts
        self.tokens -= job.tokens
        self._dead += texts if job.left else 0
        job.tokens = 0
        if self._dead > self.texts + 1000:
            self._sweep()
        return texts

    def take(
        self, budget: int, now: float, *, short_only: bool = False
    ) -> tuple[ScheduledBatch | None, float | None]:
        """Hand out the next batch.

        `budget`: most tokens; a single longer text is a batch of its own. Returns the batch, or
        None; and if none is ready although texts wait, the seconds until one will be.
        """
        groups = sorted(
            (heap[0], group) for group, heap in self._live() if group[1] or not short_only
        )
        soonest: float | None = None
        for _, group in groups:
            heap = self._heaps[group]
            ripe = self._max_wait - (now - heap[0].since)
            if self._sizes[group] >= budget or ripe <= 0:
                return self._cut(group, heap, budget), None
            soonest = ripe if soonest is None else min(soonest, ripe)
        return None, soonest

    def _live(self) -> list[tuple[Group, list[QueuedText]]]:
        for group in list(self._heaps):
            heap = self._heaps[group]
            while heap and heap[0].job.dropped:
                self._forget(group, heapq.heappop(heap))
            if not heap:
                del self._heaps[group], self._sizes[group]
        return list(self._heaps.items())

    def _cut(self, group: Group, heap: list[QueuedText], budget: int) -> ScheduledBatch:
        items: list[QueuedText] = []
        total = 0
        while heap and (heap[0].job.dropped or not items or total + len(heap[0].ids) <= budget):
            item = heapq.heappop(heap)
            if item.job.dropped:
                self._forget(group, item)
                continue
            size = len(item.ids)
            items.append(item)
            total += size
            item.job.texts -= 1
            item.job.tokens -= size
            self.texts -= 1
            self.tokens -= size
            self._sizes[group] -= size
        self.clock += total
        return ScheduledBatch(group[0] or None, items, total, group[1])

    def _forget(self, group: Group, item: QueuedText) -> None:
        self._sizes[group] -= len(item.ids)
        self._dead -= 1

    def _sweep(self) -> None:
        """Remove the texts of dropped requests, so that clients that come and go cannot fill the
        memory.
        """
        for group, heap in list(self._heaps.items()):
            waiting = [item for item in heap if not item.job.dropped]
            heapq.heapify(waiting)
            self._heaps[group] = waiting
            self._sizes[group] = sum(len(item.ids) for item in waiting)
        self._dead = 0
