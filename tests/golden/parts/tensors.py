"""Hashes of the weights of every checkpoint, phase and model of a tiny recipe: one and two threads,
two processes, interrupted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from golden import entry
from golden.compare import SCORES
from golden.summaries import weights_below
from golden.workshop import Workshop

TOLERANCE = SCORES
STOP_AFTER = 4
"""Steps between two interruptions: in the midst of phases, between checkpoints and at them."""
MOST_RUNS = 40
PROCESS_SECONDS = 1_500.0
"""Two processes wait for each other, which takes long where many other programs run."""


def record(workshop: Workshop) -> dict[str, Any]:
    """How it was trained, and file, to the summary of its weights."""
    found: dict[str, Any] = {}
    for name, threads in (("one thread", 1), ("two threads", 2)):
        out = workshop.path(f"tensors/{threads}")
        train(workshop, out, threads)
        found |= _named(name, out)
    out = workshop.path("tensors/processes")
    found |= _named("two processes", processes(workshop, out))
    out, run = workshop.path("tensors/resumed"), 0
    while interrupted(workshop, out):
        run += 1
        found[f"interruption {run:02}: checkpoints"] = {
            name: summary
            for name, summary in weights_below(out).items()
            if any(part.startswith("step-") for part in Path(name).parts)
        }
        if run > MOST_RUNS:
            raise RuntimeError("the run is interrupted for ever")
    return found | _named("resumed", out)


def train(workshop: Workshop, out: Path, threads: int, **options: Any) -> None:
    """Run the tiny recipe without scoring its model."""
    recipe = entry.load_recipe(workshop.recipe_file, [f"threads={threads}"])
    entry.train_recipe(recipe, out, assess=lambda *_: {"scores": "not taken"}, **options)


def interrupted(workshop: Workshop, out: Path) -> bool:
    """Run until the next stop, and say whether it was one."""
    asked = iter(range(1_000_000))
    try:
        train(workshop, out, 1, should_stop=lambda: next(asked) >= STOP_AFTER)
    except entry.Interrupted:
        return True
    return False


def processes(workshop: Workshop, out: Path) -> Path:
    """Run the tiny recipe on two processes; returns the run's folder."""
    out.mkdir()
    (out / "recipe.json").write_text(json.dumps(workshop.recipe()))
    entry.run_processes(2, "train", str(out), limit=PROCESS_SECONDS)
    return out / "run"


def _named(name: str, out: Path) -> dict[str, Any]:
    return {f"{name}: {path}": summary for path, summary in weights_below(out).items()}
