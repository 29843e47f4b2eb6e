"""Where the time of a run went, and which share of this machine's rate training reached."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from taskdistill.device import CPU, synchronize
from taskdistill.report.pages import Reached, TrainingTime
from taskdistill.train.log import read_lines

PARTS = (
    "data",
    "tokenise",
    "teacher",
    "forward",
    "loss",
    "backward",
    "exchange",
    "optimiser",
    "checkpoint",
    "evaluation",
    "model folder",
)
"""Order of the parts in tables."""
SETUP = {"data and models": "data"}
SHAPES = ((512, 384, 1536), (1024, 384, 1536), (1024, 1024, 1024))
"""Rows, inner size and columns of the products that are timed; the best counts."""
QUICK = 1e12
"""Operations a second above which an accelerator is timed with products 8 times as long and as
wide.
"""


def matrix_rate(
    seconds: float = 0.5,
    threads: int | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Measure a device's matrix-multiply rate at the sizes that small encoders have.

    `threads`: intra-op threads of a CPU; None for torch's own number. Returns floating-point
    operations per second, of the quickest product.
    """
    before, best = torch.get_num_threads(), 0.0
    torch.set_num_threads(threads or before)

    def rate(rows: int, inner: int, columns: int, scale: int, spent: float, least: int) -> float:
        a = torch.randn(scale * rows, scale * inner, device=device).to(dtype)
        b = torch.randn(scale * inner, scale * columns, device=device).to(dtype)
        end, count, fastest = time.perf_counter() + spent, 0, 0.0
        while time.perf_counter() < end or count < least:
            start = time.perf_counter()
            a @ b
            synchronize(device)
            fastest, count = (
                max(fastest, 2 * scale**3 * rows * inner * columns / (time.perf_counter() - start)),
                count + 1,
            )
        return fastest

    try:
        scale = 1
        if device.type != CPU.type and rate(*SHAPES[0], 1, 0.0, 2) > QUICK:
            scale = 8  # small products do not fill a card
        for shape in SHAPES:
            best = max(best, rate(*shape, scale, seconds / len(SHAPES), 3))
    finally:
        torch.set_num_threads(before)
    return best


def where_time_went(log: Path, rate: float) -> TrainingTime:
    """Sum a run's log over all the commands that worked on it.

    Returns `seconds` by part, `phases` with the seconds of their passes and the share of the rate
    reached in them and in whole steps, `reached` for all phases together, and the rate. A phase
    without matrices, such as the static one, reaches None.
    """
    parts, phases = dict[str, float](), dict[str, dict[str, float]]()
    for _, record in read_lines(log):
        seconds = record.get("seconds")
        if "step" in record and isinstance(seconds, dict):
            phase = phases.setdefault(record["phase"], {"passes": 0.0, "steps": 0.0, "work": 0.0})
            for part, spent in seconds.items():
                parts[part] = parts.get(part, 0.0) + spent
            phase["passes"] += seconds.get("forward", 0.0) + seconds.get("backward", 0.0)
            phase["steps"] += sum(seconds.values())
            phase["work"] += record.get("work", 0.0)
        elif isinstance(seconds, int | float):
            part = _part(record)
            if part is not None:
                parts[part] = parts.get(part, 0.0) + seconds
    known = [part for part in PARTS if part in parts] + sorted(parts.keys() - set(PARTS))
    total_time = {
        key: sum(phase[key] for phase in phases.values() if phase["work"] > 0)
        for key in ("passes", "steps", "work")
    }
    return {
        "seconds": {part: round(parts[part], 2) for part in known},
        "matrix_gflops": round(rate / 1e9, 1),
        "reached": _reached(total_time, rate),
        "phases": {
            name: {
                "step_seconds": round(phase["steps"], 2),
                "gflop": round(phase["work"] / 1e9, 1),
                **_reached(phase, rate),
            }
            for name, phase in phases.items()
        },
    }


def _part(record: dict[str, Any]) -> str | None:
    """Name what a line without a step spent its time on.

    Phases as a whole are the sum of their steps.
    """
    if "saved" in record:
        return "checkpoint"
    if "evaluated" in record:
        return "evaluation"
    name = SETUP.get(record.get("part", ""), record.get("part"))
    return name if name in PARTS else None


def _reached(spent: dict[str, float], rate: float) -> Reached:
    def share(key: str) -> float | None:
        if not (spent[key] > 0 and spent["work"] > 0):
            return None
        return round(spent["work"] / spent[key] / rate, 3)

    return {"passes": share("passes"), "steps": share("steps")}
