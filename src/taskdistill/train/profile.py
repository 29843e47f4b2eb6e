"""A torch profiler trace of some steps of a phase, written into the run folder."""

from __future__ import annotations

import gzip
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from taskdistill.io.outputs import check_output, write_output

WARM, COUNTED = 2, 3
"""Steps before the trace, and in it."""
ROWS = 40
"""Operators in the table beside the trace."""


MARK = "taskdistill-profile"
"""Stands at the beginning of both files, by which a later run knows them."""


def _is_profile(file: BinaryIO) -> bool:
    return MARK.encode() in file.read(64)


def check_profile(folder: Path, names: Sequence[str]) -> None:
    """Refuse to write traces in the place of somebody's files.

    `folder`: where they will be written. Raises BadInput if something else is there.
    """
    for name in names:
        check_output(folder / f"{name}.json.gz", _is_profile)
        check_output(folder / f"{name}.txt", _is_profile)


@contextmanager
def profiled(folder: Path | None, name: str, steps: int) -> Iterator[Callable[[], None]]:
    """Trace a few steps of all threads.

    `folder`: where `<name>.json.gz` (for chrome://tracing or Perfetto) and `<name>.txt` (operators
    by their own time) are written; None traces nothing.
    """
    if folder is None or steps < 1:
        yield lambda: None
        return
    check_profile(folder, [name])
    folder.mkdir(parents=True, exist_ok=True)
    activities = [
        ProfilerActivity.CPU,
        *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
    ]

    def write(profiled: profile) -> None:
        with tempfile.TemporaryDirectory() as place:
            profiled.export_chrome_trace(str(Path(place) / "trace.json"))
            trace = (Path(place) / "trace.json").read_bytes()
        packed = io.BytesIO()
        with gzip.GzipFile(MARK, "wb", fileobj=packed, mtime=0) as stream:
            stream.write(trace)
        write_output(folder / f"{name}.json.gz", packed.getvalue(), _is_profile)
        table = profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=ROWS)  # type: ignore[no-untyped-call]
        write_output(folder / f"{name}.txt", f"{MARK} of {name}\n{table}\n", _is_profile)

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Profiler won't be using warmup"
        )  # a phase of one step has none
        when = schedule(wait=0, warmup=min(WARM, steps - 1), active=COUNTED, repeat=1)
    with profile(
        activities=activities,
        schedule=when,
        on_trace_ready=write,
        experimental_config=torch._C._profiler._ExperimentalConfig(profile_all_threads=True),
    ) as profiled:
        yield profiled.step
