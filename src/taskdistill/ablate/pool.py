"""Cells run in turn here, or several at once in processes of one thread each that stop when their parent does."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from taskdistill.ablate.bench import Bench, open_bench
from taskdistill.ablate.cells import Cell, result_of, run_cell
from taskdistill.ablate.settings import Experiment
from taskdistill.errors import WorkFailed
from taskdistill.job.watch import Stop, Watcher
from taskdistill.train.loop import Interrupted

_POLL = 0.5
"""Seconds between looks at what the processes tell."""

_STRIDE = 20
"""Steps between two tellings of a process."""


def run_cells(bench: Bench, cells: Sequence[Cell], jobs: int, watcher: Watcher, should_stop: Stop, reopen: dict[str, Any]) -> None:
    """Run cells, those that others start from first; finished ones are left as they are.

    Args:
        bench: The bench of this process.
        cells: The cells.
        jobs: How many run at once.
        watcher: Told how far all of them are, in steps.
        should_stop: Asked all the time; true saves every running cell and stops.
        reopen: Keyword arguments with which another process opens its own bench.

    Raises:
        Interrupted: If a stop was asked for.
        WorkFailed: If a cell cannot be finished.
    """
    wanted = list(dict.fromkeys(cells))
    needed = list(dict.fromkeys(shared for cell in wanted if (shared := cell.needs()) is not None))
    for wave in (needed, wanted):
        todo = [cell for cell in wave if result_of(bench, cell) is None]
        total = sum(cell.trained_steps(bench) for cell in todo)
        if not todo:
            continue
        if jobs == 1 or len(todo) == 1:
            _in_turn(bench, todo, total, watcher, should_stop)
        else:
            _at_once(todo, {cell.key: cell.trained_steps(bench) for cell in todo}, jobs, watcher, should_stop, reopen)


def _in_turn(bench: Bench, cells: Sequence[Cell], total: int, watcher: Watcher, should_stop: Stop) -> None:
    done = 0
    for cell in cells:
        if should_stop():
            raise Interrupted("stopped; what is finished is kept, run the same command again to continue")
        run_cell(
            bench, cell, should_stop=should_stop, on_steps=lambda n, _, before=done: watcher.count(before + n, total), note=watcher.note
        )  # type: ignore[misc]
        done += cell.trained_steps(bench)
        watcher.count(done, total)


def _at_once(cells: Sequence[Cell], steps: dict[str, int], jobs: int, watcher: Watcher, should_stop: Stop, reopen: dict[str, Any]) -> None:
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    stop = context.Event()
    done: dict[str, int] = {}
    total = sum(steps.values())

    def listen() -> None:
        while True:
            try:
                kind, key, value = told.get_nowait()
            except queue.Empty:
                break
            if kind == "note":
                watcher.note(value)
            else:
                done[key] = value
        if should_stop():
            stop.set()
        watcher.count(sum(done.values()), total)

    pool = ProcessPoolExecutor(min(jobs, len(cells)), context, _start, (reopen, told, stop))
    try:
        running: dict[Future[None], Cell] = {pool.submit(_work, cell): cell for cell in cells}
        while running:
            ended, _ = wait(running, _POLL, FIRST_COMPLETED)
            listen()
            for future in ended:
                cell = running.pop(future)
                future.result()
                done[cell.key] = steps[cell.key]
    except BrokenProcessPool:
        raise WorkFailed("a process that trained an arm was ended from outside; run the same command again to continue") from None
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_bench: Bench | None = None
_told: Any = None
_stop: Any = None


def _start(reopen: dict[str, Any], told: Any, stop: Any) -> None:
    global _bench, _told, _stop
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _told, _stop = told, stop
    _bench = open_bench(**reopen)


def _work(cell: Cell) -> None:
    assert _bench is not None

    def should_stop() -> bool:
        parent = multiprocessing.parent_process()
        return bool(_stop.is_set()) or parent is None or not parent.is_alive()

    def on_steps(done: int, total: int) -> None:
        if done % _STRIDE == 0 or done == total:
            _told.put(("steps", cell.key, done))

    if should_stop():
        raise Interrupted("stopped; what is finished is kept, run the same command again to continue")
    run_cell(_bench, cell, should_stop=should_stop, on_steps=on_steps, note=lambda text: _told.put(("note", cell.key, text)))


def reopening(experiment: Experiment, out: Path, recipe_folder: Path, api_key: str | None) -> tuple[dict[str, Any], Callable[[], Bench]]:
    """Say how other processes open their bench, and open one here.

    Args:
        experiment: The experiment.
        out: Its folder.
        recipe_folder: Where relative paths of the recipe start.
        api_key: Key of an HTTP teacher.

    Returns:
        Keyword arguments of `open_bench`, and a function that calls it with them.
    """
    arguments: dict[str, Any] = {"experiment": experiment, "out": out, "recipe_folder": recipe_folder, "api_key": api_key}
    return arguments, lambda: open_bench(**arguments)
