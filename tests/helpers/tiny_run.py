"""The main job on tiny things: run here, or in a child process that kills itself at a chosen
moment.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskdistill.io import atomic, folders
from taskdistill.pipeline import train as job
from taskdistill.progress import SilentProgress
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.train.log import Log, read_lines


class Recorder(SilentProgress):
    """Keeps what the job tells."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.records: list[Mapping[str, Any]] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)


def train(raw: dict[str, Any], out: Path, **options: Any) -> Recorder:
    """Run a recipe without scoring the model at its end."""
    progress = Recorder()
    job.train(
        parse_recipe(raw), out, progress=progress, assess=lambda *_: {"done": True}, **options
    )
    return progress


def stop_before(number: int) -> Callable[[], bool]:
    """A stop that is asked for at the given question, counted from 0."""
    asked = iter(range(1_000_000))
    return lambda: next(asked) >= number


def steps(out: Path) -> dict[str, list[tuple[int, float | None]]]:
    """Phase to its logged steps and losses, in the order of the lines."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for _, record in read_lines(out / "log.jsonl"):
        if "step" in record:
            found.setdefault(record["phase"], []).append((record["step"], record["loss"]))
    return found


def weights(out: Path) -> dict[str, str]:
    """Every file of weights of a run's phases and model, to its hash."""
    files = sorted(
        [
            *out.glob("phases/*/*.safetensors"),
            *out.glob("model/**/*.safetensors"),
            *out.glob("static-model/*.safetensors"),
        ]
    )
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def child(raw: dict[str, Any], out: str, kind: str, moment: float) -> None:
    """Run until the process kills itself: at a sync, at a line of the log, or after some seconds.

    A kill at a sync falls between the steps of writing a folder: files written, manifest written,
    renamed, old ones removed.
    """
    left = [moment]

    def count_down() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "sync":
        sync = atomic.sync
        atomic.sync = folders.sync = lambda path: (count_down(), sync(path))[1]
    elif kind == "line":
        write = Log.write
        Log.write = lambda log, record: (write(log, record), count_down())[0]
    elif kind == "seconds":
        threading.Timer(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    train(raw, Path(out))
