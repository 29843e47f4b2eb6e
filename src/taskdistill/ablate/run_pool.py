"""Cells run in turn here, or several at once in processes of one thread each that stop when their
parent does.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from taskdistill.ablate.context import ExperimentContext, open_context
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.ablate.training_run import result_of, run_training
from taskdistill.errors import WorkFailed
from taskdistill.progress import Progress, Stop
from taskdistill.train.context import Interrupted

STOPPED = "stopped; what is finished is kept, run the same command again to continue"

_POLL = 0.5
"""Seconds between looks at what the processes tell."""

_STRIDE = 20
"""Steps between two tellings of a process."""


@dataclass(kw_only=True)
class RunPool:
    """Runs cells; with several jobs its processes stay from one stage of the experiment to the
    next.

    Attributes:
        should_stop: Asked all the time; true saves every running cell and stops.
        reopen: Keyword arguments with which another process opens its context.
    """

    context: ExperimentContext
    jobs: int
    progress: Progress
    should_stop: Stop
    reopen: dict[str, Any]
    _pool: ProcessPoolExecutor | None = None
    _notes: Any = None
    _stop: Any = None
    _done: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> RunPool:
        """Start nothing: processes start with the first cells."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let running cells save and end the processes."""
        if self._pool is not None:
            if kind is not None:
                self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, specs: Sequence[TrainingRun]) -> list[dict[str, Any]]:
        """Run cells, those that others start from first; finished ones are left as they are.

        Returns their results, in order. Raises Interrupted if a stop was asked for. Raises
        WorkFailed if a cell cannot be finished.
        """
        requested = list(dict.fromkeys(specs))
        needed = list(
            dict.fromkeys(shared for spec in requested if (shared := spec.needs()) is not None)
        )
        for wave in (needed, requested):
            todo = [spec for spec in wave if result_of(self.context, spec) is None]
            if self.jobs == 1:
                self._in_turn(todo)
            elif todo:
                self._at_once(todo)
        results = [result_of(self.context, spec) for spec in specs]
        return [result for result in results if result is not None]

    def _in_turn(self, specs: Sequence[TrainingRun]) -> None:
        done, total = 0, sum(spec.trained_steps(self.context) for spec in specs)
        for spec in specs:
            if self.should_stop():
                raise Interrupted(STOPPED)
            details = partial(_count, self.progress, done, total)
            run_training(
                self.context,
                spec,
                should_stop=self.should_stop,
                on_steps=details,
                note=self.progress.note,
            )
            done += spec.trained_steps(self.context)
            self.progress.count(done, total)

    def _at_once(self, specs: Sequence[TrainingRun]) -> None:
        if self._pool is None:
            spawning = multiprocessing.get_context("spawn")
            self._notes, self._stop = spawning.Queue(), spawning.Event()
            self._pool = ProcessPoolExecutor(
                self.jobs, spawning, _start, (self.reopen, self._notes, self._stop)
            )
        steps = {spec.key: spec.trained_steps(self.context) for spec in specs}
        self._done = {}
        running: dict[Future[None], TrainingRun] = {
            self._pool.submit(_work, spec): spec for spec in specs
        }
        try:
            while running:
                ended, _ = wait(running, _POLL, FIRST_COMPLETED)
                for future in ended:
                    spec = running.pop(future)
                    future.result()
                    self._done[spec.key] = steps[spec.key]
                self._listen(steps)
        except BrokenProcessPool:
            raise WorkFailed(
                "a process that trained an arm was ended from outside; run the same command again"
                " to continue"
            ) from None

    def _listen(self, steps: dict[str, int]) -> None:
        while True:
            try:
                kind, key, value = self._notes.get_nowait()
            except queue.Empty:
                break
            if kind == "note":
                self.progress.note(value)
            elif key in steps:
                self._done[key] = max(value, self._done.get(key, 0))
        if self.should_stop():
            self._stop.set()
        self.progress.count(sum(self._done.values()), sum(steps.values()))


def _count(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress.count(before + done, total)


@dataclass
class _Worker:
    """What a process of the crew holds."""

    context: ExperimentContext
    told: Any
    stop: Any


_here: list[_Worker] = []


def _start(reopen: dict[str, Any], details: Any, stop: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _here[:] = [_Worker(open_context(**reopen), details, stop)]


def _work(spec: TrainingRun) -> None:
    (here,) = _here

    def should_stop() -> bool:
        parent = multiprocessing.parent_process()
        return bool(here.stop.is_set()) or parent is None or not parent.is_alive()

    def on_steps(done: int, total: int) -> None:
        if done % _STRIDE == 0 or done == total:
            here.told.put(("steps", spec.key, done))

    def note(text: str) -> None:
        here.told.put(("note", spec.key, text))

    if should_stop():
        raise Interrupted(STOPPED)
    run_training(here.context, spec, should_stop=should_stop, on_steps=on_steps, note=note)
