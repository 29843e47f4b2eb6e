"""The model that answers now, and how another takes its place while requests run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from taskdistill.encode.check import golden_cosine
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.projected import in_space
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.serve.metrics import Metrics
from taskdistill.serve.service import EmbeddingService
from taskdistill.serve.settings import ServerSettings

_POLL = 0.05
_GRACE = 1.0
"""Seconds in which a request that has chosen its model, and has no place in its queue yet, gets
one.
"""

_log = logging.getLogger(__name__)


class ModelHolder:
    """One service at a time; a request keeps to the one that it began with."""

    def __init__(
        self,
        encoder: Encoder,
        settings: ServerSettings,
        *,
        space_ids: Sequence[str] = (),
        load: Callable[[], Encoder] | None = None,
    ) -> None:
        """Serve a model.

        `space_ids`: space of the index that is served beside it, by its own id and those of earlier
        versions; none without one. `load`: reads the model again; None if it cannot be. Raises
        BadInput if the model cannot ask the index.
        """
        self.settings, self.space_ids, self._load = settings, tuple(space_ids), load
        if space_ids:
            in_space(encoder, *space_ids)
        self.metrics = Metrics()
        self.now = EmbeddingService(encoder, settings, self.metrics)
        self.metrics.watch(lambda: self.now.batcher)
        self.draining = False
        self.reloaded: str | None = None
        """Outcome of the last reload: ok, same, refused; None before the first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the threads and measure how fast they are."""
        self._loop = asyncio.get_running_loop()
        self.now.start()
        await self.now.measure()

    def stop(self) -> None:
        """Stop the threads of the model that answers; one that was replaced has finished or is
        given up.
        """
        self.now.stop()

    async def healthy(self) -> bool:
        """Say whether the model works."""
        return not self.draining and await self.now.healthy()

    def ask_reload(self) -> None:
        """Begin to read the model again; may be called from a signal handler. While one reload
        runs, another is left out.
        """
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self.reload())

    async def reload(self) -> None:
        """Read the model again and let it answer from now on; if anything is wrong with it, the old
        one stays and the log says why.

        Requests that have begun are finished by the model that they began with.
        """
        if self.draining or self._load is None:
            return
        try:
            fresh = await asyncio.to_thread(self._checked)
        # whatever a broken folder makes a library raise must not reach the model that answers
        except Exception as error:
            reason = (
                str(error)
                if isinstance(error, BadInput | WorkFailed)
                else f"{type(error).__name__}: {error}"
            )
            _log.error("the model was not replaced, the old one keeps answering: %s", reason)
            self._tell("refused")
            return
        old = self.now
        if fresh is None:
            _log.warning(
                "the model's folder has not changed (hash %s)",
                (old.encoder.model_hash or "none")[:12],
            )
            self._tell("same")
            return
        if self.draining:
            return
        fresh.start()
        await fresh.measure()
        self.now = fresh
        _log.warning(
            "the model was replaced: hash %s, before %s",
            fresh.encoder.model_hash[:12],
            (old.encoder.model_hash or "none")[:12],
        )
        self._tell("ok")
        retiring = asyncio.get_running_loop().create_task(self._retire(old))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    def _checked(self) -> EmbeddingService | None:
        """Load the model in a thread and run it; None if it is the one that answers already."""
        assert self._load is not None
        encoder, old = self._load(), self.now.encoder
        if encoder.model_hash and encoder.model_hash == old.model_hash:
            return None
        if self.space_ids:
            in_space(encoder, *self.space_ids)
        for task in (None, *encoder.tasks):
            golden_cosine(encoder, task)
        missing = sorted(set(old.tasks) - set(encoder.tasks))
        if missing:
            raise BadInput(
                f"the new model has no adapter for {', '.join(missing)}, which clients use; start"
                " another server for it"
            )
        return EmbeddingService(encoder, self.settings, self.metrics)

    def _tell(self, outcome: str) -> None:
        self.reloaded = outcome
        self.metrics.reloads.labels(outcome).inc()

    async def _retire(self, old: EmbeddingService) -> None:
        await asyncio.sleep(_GRACE)
        while not old.batcher.idle:
            await asyncio.sleep(_POLL)
        await asyncio.to_thread(old.stop)
