"""A torch profiler trace of some steps of a phase, written into the run folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM, COUNTED = 2, 3
"""Steps before the trace, and in it."""
ROWS = 40
"""Operators in the table beside the trace."""


@contextmanager
def profiled(folder: Path | None, name: str, steps: int) -> Iterator[Callable[[], None]]:
    """Trace a few steps of all threads.

    Args:
        folder: Where `<name>.json.gz` (for chrome://tracing or Perfetto) and `<name>.txt` (operators by their own time) are
            written; None traces nothing.
        name: Of the phase.
        steps: Steps that will be run.

    Yields:
        To be called after every step.
    """
    if folder is None or steps < 1:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def write(found: profile) -> None:
        found.export_chrome_trace(str(folder / f"{name}.json.gz"))
        table = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)  # type: ignore[no-untyped-call]
        (folder / f"{name}.txt").write_text(f"{table}\n", "utf-8")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Profiler won't be using warmup")  # a phase of one step has none
        when = schedule(wait=0, warmup=min(WARM, steps - 1), active=COUNTED, repeat=1)
    with profile(
        activities=activities,
        schedule=when,
        on_trace_ready=write,
        experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True),
    ) as found:
        yield found.step
