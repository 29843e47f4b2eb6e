"""One model behind the server: from checked texts to raw vectors, and whether it is well."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import WorkFailed, did_you_mean
from taskdistill.serve.batcher import DynamicBatcher, ServerStopping
from taskdistill.serve.engine import EncoderEngine
from taskdistill.serve.errors import ApiError
from taskdistill.serve.metrics import Metrics
from taskdistill.serve.scheduler import FairScheduler, QueueFull
from taskdistill.serve.settings import ServerSettings

CHARACTERS_PER_TOKEN = 3
"""For the estimate by which a request is accepted, before it is tokenised."""

CHARACTERS_OF_A_TOKEN = 32
"""For the bound on a document that is tokenised in one go: longer words do not occur in a text that
a model reads.
"""

TOKENISED_CHARACTERS = 32_768
"""Characters tokenised in one go, so that a small request waits for little."""

INLINE_CHARACTERS = 1024
"""Characters tokenised on the event loop while the tokenising thread has nothing to do: handing
them over would take longer.
"""

PROBE_SECONDS = 5.0

MEASURED_TOKENS = 512
"""Tokens by which the model's rate is measured at the start."""

MEASURE_SECONDS = 10.0
"""Longest time that measuring the rate delays the start; a model that needs longer accepts little
until a batch was measured.
"""

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """The vectors of one request."""

    vectors: np.ndarray
    """float32 `(texts, D)`, not cut and not scaled."""
    tokens: int
    cut: list[int]
    """Which texts lost their end."""


def overloaded(seconds: float) -> ApiError:
    """Make the answer to a request that finds no place.

    Returns a 429 with Retry-After between 1 and 60 seconds.
    """
    wait = max(1, min(60, math.ceil(seconds)))
    return ApiError(429, "the server has as much to do as it accepts; try again", retry_after=wait)


class EmbeddingService:
    """The encoder, its queue and its counters."""

    def __init__(self, encoder: Encoder, settings: ServerSettings, metrics: Metrics) -> None:
        """Join an encoder and limits; `start` makes the threads."""
        self.encoder = encoder
        self.settings = settings
        self.engine = EncoderEngine(encoder)
        self.metrics = metrics
        scheduler = FairScheduler(
            texts=settings.queue_texts,
            tokens=settings.queue_tokens,
            seconds=settings.queue_seconds,
            unmeasured=settings.unmeasured_tokens,
            max_wait=settings.max_wait_ms / 1000,
        )
        self.batcher = DynamicBatcher(self.engine, scheduler, self.metrics.batch)
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._tokenised = 0
        self._probing = asyncio.Lock()

    def start(self) -> None:
        """Start the threads."""
        self.batcher.start()

    async def measure(self) -> None:
        """Learn how fast the model is, so that the first clients are not promised more than it can
        do.
        """
        length = min(self.encoder.max_length, MEASURED_TOKENS // 4)
        ids = (await self._tokenise(["measure " * length], "", length))[0][0]
        count = max(1, min(MEASURED_TOKENS, self.engine.budget) // max(1, len(ids)))
        rate = await self.batcher.measure(
            [ids if len(ids) else np.zeros(1, np.int32)] * count, MEASURE_SECONDS
        )
        _log.info("%s tokens/s measured at the start", "no" if rate is None else f"{rate:,.0f}")

    def stop(self) -> None:
        """Stop the threads."""
        self.batcher.close()
        self._tokenising.shutdown(wait=False, cancel_futures=True)

    def check(self, model: str | None, task: str | None, dimensions: int | None) -> None:
        """Refuse what this model cannot give, before anything is computed.

        Raises ApiError 404 for another model, 400 for an unknown task or a size out of range.
        """
        name = self.encoder.name
        if model is not None and model != name:
            raise ApiError(
                404,
                f"there is no model of this name here; the model served is {name!r}",
                param="model",
                code="model_not_found",
            )
        if task is not None and task not in self.encoder.tasks:
            hint = (
                did_you_mean(task[:60], self.encoder.tasks)
                if self.encoder.tasks
                else "; it has no adapters, so leave the task out"
            )
            raise ApiError(
                400, f"this model has no adapter for task {task[:60]!r}{hint}", param="task"
            )
        if dimensions is not None and not 1 <= dimensions <= self.encoder.embedding_dim:
            raise ApiError(
                400,
                f"dimensions is {dimensions}; give 1 to {self.encoder.embedding_dim}",
                param="dimensions",
            )

    async def embed(
        self,
        texts: list[str],
        *,
        task: str | None,
        prompt: str,
        truncate: bool,
        field: str,
        late_chunking: bool = False,
    ) -> EmbeddingResult:
        """Compute the vectors of one request.

        `task`: adapter, or None for the base. `truncate`: whether the end of a text too long is cut
        off. `field`: where the texts were given, for errors. `late_chunking`: whether the texts are
        read as one document, so that each vector has seen all of them. Returns raw vectors, tokens
        read, and which texts were cut. Raises ApiError 429 if too much waits, 400 and 413 for texts
        too long, 500 if the model failed, 503 if the server is stopping.
        """
        max_length = self.encoder.max_length
        guess = sum(min(max_length, 2 + len(text) // CHARACTERS_PER_TOKEN) for text in texts)
        try:
            job = self.batcher.admit(len(texts), min(guess, self.settings.request_tokens))
        except QueueFull as full:
            raise overloaded(full.seconds) from None
        except ServerStopping:
            raise ApiError(503, "the server is stopping", retry_after=1, close=True) from None
        try:
            spans: np.ndarray | None = None
            cut: list[int] = []
            if late_chunking:
                ids, spans = await self._join(texts, prompt, max_length, field)
            else:
                ids, cut = await self._tokenise(texts, prompt, max_length)
            total = sum(map(len, ids))
            if cut and not truncate:
                raise ApiError(
                    400,
                    f"{field}[{cut[0]}] is longer than the {max_length:,} tokens that the model"
                    " reads; shorten it or send truncate: true",
                    param=field,
                    code="context_length_exceeded",
                )
            if total > self.settings.request_tokens:
                raise ApiError(
                    413,
                    f"{field} has {total:,} tokens, the limit is {self.settings.request_tokens:,} a"
                    " request",
                    param=field,
                )
            if not all(map(len, ids)):
                place = next(i for i, row in enumerate(ids) if not len(row))
                raise ApiError(
                    400,
                    f"{field}[{place}] has no token that this model knows; leave it out",
                    param=field,
                    code="empty_input",
                )
            return EmbeddingResult(await self.batcher.embed(job, ids, task, spans), total, cut)
        except WorkFailed as error:
            raise ApiError(500, f"{error}; the other requests are not affected") from None
        except ServerStopping:
            raise ApiError(
                503, "the server stopped before this was computed", retry_after=1, close=True
            ) from None
        except asyncio.CancelledError:
            self.metrics.dropped.inc(self.batcher.drop(job))
            raise
        finally:
            self.batcher.drop(job)

    async def healthy(self) -> bool:
        """Say whether the model works; run it with one short text unless it has just worked.

        Returns False after a panic until the model has worked again, and if it does not answer in
        five seconds.
        """
        if self.batcher.recently_succeeded:
            return True
        async with self._probing:
            if self.batcher.recently_succeeded:
                return True
            ids = (await self._tokenise(["a"], "", self.encoder.max_length))[0][0]
            return await self.batcher.probe(
                [ids if len(ids) else np.zeros(1, np.int32)], PROBE_SECONDS
            )

    async def _join(
        self, texts: list[str], prompt: str, max_length: int, field: str
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Tokenise texts as one document; what the model cannot read in one go is refused, as a
        chunk must not be without its tokens.
        """
        characters = sum(map(len, texts))
        message = (
            f"late_chunking reads all of {field} as one text, of which the model reads"
            f" {max_length:,} tokens at most"
        )
        if characters > CHARACTERS_OF_A_TOKEN * max_length:
            raise ApiError(
                400,
                f"{message}; send fewer of its {characters:,} characters",
                param=field,
                code="context_length_exceeded",
            )
        document = await self._in_turn(self.engine.joined, texts, prompt)
        if len(document.ids) > max_length:
            raise ApiError(
                400,
                f"{message}; send fewer of its {len(document.ids):,}",
                param=field,
                code="context_length_exceeded",
            )
        return [document.ids], document.spans

    async def _tokenise(
        self, texts: list[str], prompt: str, max_length: int
    ) -> tuple[list[np.ndarray], list[int]]:
        """Tokenise a few texts at a time, so that requests take turns."""
        ids: list[np.ndarray] = []
        cut: list[int] = []
        start = 0
        while start < len(texts):
            stop, size = start, 0
            while stop < len(texts) and (
                stop == start or size + len(texts[stop]) <= TOKENISED_CHARACTERS
            ):
                size += len(texts[stop])
                stop += 1
            if size <= INLINE_CHARACTERS and self._tokenised == 0:
                rows, truncated = self.engine.tokens(texts[start:stop], prompt, max_length)
            else:
                rows, truncated = await self._in_turn(
                    self.engine.tokens, texts[start:stop], prompt, max_length
                )
            ids += rows
            cut += [start + int(i) for i in truncated.nonzero()[0]]
            start = stop
        return ids, cut

    async def _in_turn(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do something in the tokenising thread, behind what it has to do already."""
        self._tokenised += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._tokenising, work, *arguments
            )
        finally:
            self._tokenised -= 1
