"""Scores while a phase trains, given by a callback, and the weights that scored best.

Training never evaluates by itself: it asks the callback after every so many steps, always behind a
checkpoint, so that the scores of a continued run are those of an undisturbed one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from taskdistill.errors import BadInput
from taskdistill.io.atomic import restore
from taskdistill.io.folders import (
    open_folder,
    read_manifest,
    remove_folder,
    require_field,
    require_same,
    write_folder,
)
from taskdistill.io.outputs import remove_names
from taskdistill.train.checkpoint import list_checkpoints, snapshot_folder
from taskdistill.train.fsdp import copy_full_
from taskdistill.train.log import Log, read_lines

KIND = "best"
ScoreNow = Callable[[], Mapping[str, float]]
"""Scores the model as it is: metric to value, higher is better."""


@dataclass(frozen=True, slots=True)
class Validation:
    """What is scored while a phase trains."""

    every: int
    """Steps between two evaluations; the state before the first update and the last one are always
    scored.
    """
    score: ScoreNow
    keep: str | None = None
    """Metric whose best weights end the phase; None only logs."""
    main: Mapping[str, str] = field(default_factory=dict)
    """Set to the metric that stands for it."""

    def due(self, step: int, steps: int) -> bool:
        """Say whether the model is scored after some updates.

        Returns True before the first update, at every multiple of `every`, and at the end.
        """
        return step % self.every == 0 or step == steps


def best_folder(checkpoints: Path) -> Path:
    """Say where a phase's best weights are kept."""
    return checkpoints.with_name(f"{checkpoints.name}.best")


def remove_state(checkpoints: Path) -> None:
    """Remove what a phase has saved while it trained; what somebody else has put there stays."""
    for folder in (
        *list_checkpoints(checkpoints),
        best_folder(checkpoints),
        snapshot_folder(checkpoints),
    ):
        remove_folder(folder)
    remove_names(checkpoints, ())


def read_scores(log: Log, phase: str) -> dict[int, dict[str, float]]:
    """Read the scores of a phase so far."""
    lines = (record for _, record in read_lines(log.path) if record.get("phase") == phase)
    return {int(record["evaluated"]): record["scores"] for record in lines if "evaluated" in record}


def evaluate_now(
    during: Validation,
    step: int,
    weights: Mapping[str, Tensor],
    log: Log,
    phase: str,
    checkpoints: Path,
    meta: Mapping[str, Any],
) -> dict[str, float]:
    """Score the model, keep its weights if they are the best so far, and log both.

    `meta`: what must be the same when the weights are read again. Raises BadInput if `keep` names
    no metric that was scored.
    """
    start = time.monotonic()
    scores = {name: float(value) for name, value in during.score().items()}
    main = {name: scores[metric] for name, metric in during.main.items()}
    record: dict[str, Any] = {"phase": phase, "evaluated": step, "scores": scores, "main": main}
    if during.keep is not None:
        if during.keep not in scores:
            raise BadInput(
                f"evaluation.during.keep is {during.keep!r}, but {phase} scores only"
                f" {', '.join(scores)}"
            )
        before = best_so_far(checkpoints, meta)
        record["best"] = before is None or before.step >= step or scores[during.keep] > before.score
        if record["best"]:
            log_record = {"step": step, "metric": during.keep, "score": scores[during.keep]}
            with write_folder(
                best_folder(checkpoints), KIND, meta={**meta, **log_record}, replace=True
            ) as folder:
                save_file(dict(weights), folder / "weights.safetensors")
    log.write(record | {"seconds": time.monotonic() - start})
    return scores


@dataclass(frozen=True, slots=True)
class Best:
    """The state of a phase that scored best."""

    step: int
    """Updates done; 0 is the state before the first one."""
    metric: str
    score: float


def best_so_far(checkpoints: Path, meta: Mapping[str, Any]) -> Best | None:
    """Say which state has scored best.

    `meta`: what must be the same as when it was kept. Returns the state, or None where none of this
    run is kept. Raises BadInput if what is kept is damaged.
    """
    folder = best_folder(checkpoints)
    if not restore(folder):
        return None
    manifest = read_manifest(folder, KIND)
    if any(manifest.get(key) != value for key, value in meta.items()):
        return None
    return _best(folder, manifest)


def _best(folder: Path, manifest: Mapping[str, Any]) -> Best:
    step, metric = (
        require_field(folder, manifest, "step", int),
        require_field(folder, manifest, "metric", str),
    )
    return Best(step, metric, require_field(folder, manifest, "score", float))


def drop_best_after(checkpoints: Path, step: int) -> str | None:
    """Drop best weights of a step that is about to be run again; only a deleted checkpoint makes
    that happen.

    Returns a note, or None if nothing had to go.
    """
    folder = best_folder(checkpoints)
    if (
        not restore(folder)
        or (at := require_field(folder, read_manifest(folder, KIND), "step", int)) <= step
    ):
        return None
    remove_folder(folder)
    return f"dropped the best weights of step {at}, which is run again"


def load_best(
    checkpoints: Path, parameters: Mapping[str, nn.Parameter], meta: Mapping[str, Any]
) -> Best:
    """Put the best weights in place of the last ones.

    `meta`: what must be the same as when they were kept. Raises BadInput if the folder is missing
    or damaged, or of another run.
    """
    folder = best_folder(checkpoints)
    manifest = open_folder(folder, KIND, f"delete it and {checkpoints} to train the phase again")
    require_same(folder, manifest, meta)
    weights = load_file(folder / "weights.safetensors")
    for name, parameter in parameters.items():
        copy_full_(parameter, weights[name])
    return _best(folder, manifest)
