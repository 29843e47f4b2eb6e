"""Seconds of each part of a step, on a CPU by the monotonic clock and on a GPU by its own
events.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from taskdistill.device import synchronize

Moment = float | torch.cuda.Event


@dataclass
class Timer:
    """Seconds spent in each part of a step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what the block takes. `part`: where to count it."""
        start = time.monotonic()
        yield
        self.add(part, time.monotonic() - start)

    def add(self, part: str, seconds: float) -> None:
        """Count seconds. `part`: where to count them."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @contextmanager
    def shared(
        self, marks: Sequence[tuple[str, Moment, Moment]], device: torch.device
    ) -> Iterator[None]:
        """Divide the seconds of a block among parts that several threads worked on at once, by what
        the threads spent on each.

        `marks`: part, beginning and end of every piece of work; filled by the block.
        """
        start = time.monotonic()
        yield
        settle(device)
        wall, spent = time.monotonic() - start, dict[str, float]()
        for part, first, last in marks:
            spent[part] = spent.get(part, 0.0) + between(first, last)
        total = sum(spent.values())
        for part, seconds in spent.items():
            self.add(part, wall * seconds / total if total > 0 else wall / len(spent))


def moment(device: torch.device) -> Moment:
    """Mark a moment in this thread's work.

    `device`: where the work is done. Returns to be given to `between`.
    """
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()  # type: ignore[no-untyped-call]
    return event


def between(first: Moment, second: Moment) -> float:
    """Return the seconds between two moments; on a GPU its work must have been waited for."""
    if isinstance(first, float) and isinstance(second, float):
        return second - first
    assert not isinstance(first, float) and not isinstance(second, float)
    return float(first.elapsed_time(second)) / 1000  # type: ignore[no-untyped-call]


def settle(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given. `device`: a CPU needs no waiting."""
    synchronize(device)
