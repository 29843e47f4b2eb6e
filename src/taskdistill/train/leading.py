"""What the first process of a run does alone, while the others wait for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from taskdistill.train.distributed import FAILED_ELSEWHERE, LostProcess, ProcessGroup

T = TypeVar("T")


def by_first(processes: ProcessGroup, work: Callable[[], T]) -> T:
    """Let the first process do something alone, however long it takes, and give every process what
    came of it.

    `processes`: all of them; each comes here. `work`: returns plain data; run on the first process
    only. Raises LostProcess on the others, if it failed; the first process raises what it met.
    """
    if not processes.is_main:
        done, value = processes.broadcast((False, None))
        if not done:
            raise LostProcess(FAILED_ELSEWHERE)
        return value  # type: ignore[return-value]
    try:
        value = work()
    except Exception:
        with suppress(
            LostProcess
        ):  # the others are gone; what is raised here is what is to be read
            processes.broadcast((False, None))
        raise
    return processes.broadcast((True, value))[1]
