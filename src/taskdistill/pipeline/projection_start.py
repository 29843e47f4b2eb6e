"""The projection of a run: drawn, the identity, or fitted to the teacher before step 1."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.placement import on_device
from taskdistill.errors import WorkFailed
from taskdistill.io.folders import open_folder, write_folder
from taskdistill.model.model import Model
from taskdistill.model.projection import Projection
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.resume import is_finished, resume_meta
from taskdistill.train.context import Phase
from taskdistill.train.leading import by_first
from taskdistill.train.memory import is_out_of_memory
from taskdistill.train.projection_fit import FittedProjection, Method, fit_projection
from taskdistill.train.targets import teacher_vectors

KIND = "projection"
SAMPLE = 5_000
"""Compared texts of the phase on which the map is fitted; ten times the widest common space, so
that a ridge has little left to do.
"""


def start_projection(
    run: RunContext,
    phase: Phase,
    student: Model,
    projection: Projection | None,
    *,
    dims: Sequence[int],
    init: str,
) -> None:
    """Give a phase's projection its first weights, the same on every process.

    `run`: the run; its teacher stores are filled. The fit is kept in RUN/projections, so that a
    continued run starts from the same. `projection`: overwritten if the start is a fitted one; None
    where the recipe wants none. `init`: `projection_init` of the recipe, resolved.
    """
    if projection is None or init not in get_args(Method):
        return
    folder = run.out / "projections" / phase.name
    by_first(
        run.processes,
        lambda: _make(
            folder, run, phase, student, dims, "rotation" if init == "rotation" else "least_squares"
        ),
    )
    # Read back by the first process too: all of them start from what the file holds.
    with run.processes.together():
        open_folder(folder, KIND, "delete this folder to fit the projection again")
        tensors = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            projection.weight.copy_(tensors["weight"])
            projection.bias.copy_(tensors["bias"])


def _make(
    folder: Path, run: RunContext, phase: Phase, student: Model, dims: Sequence[int], method: Method
) -> None:
    """Fit the projection and write it, unless the run has done so before."""
    if is_finished(run, phase.name, folder, KIND):
        return
    start = time.monotonic()
    run.progress.stage("fitting the projection to the teacher's vectors")
    try:
        fitted = _fit(run, phase, student, dims, method)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise WorkFailed(
            f"{phase.name}: memory ran out while the projection was fitted to the teacher's "
            "vectors; give the process more memory, lower "
            f"{phase.name}.max_length, or set stage1.projection_init: default, which fits nothing"
        ) from None
    _write(folder, fitted, run, phase.name)
    run.timed("projection", start)


def _fit(
    run: RunContext, phase: Phase, student: Model, dims: Sequence[int], method: Method
) -> FittedProjection:
    vectors, targets = sample_vectors(run, phase, student)
    widths = phase.heads.widths or (targets.shape[1],)
    fitted = fit_projection(vectors, targets, dims, widths=widths, method=method)
    shown = ", ".join(f"{dim}: {cosine:.3f}" for dim, cosine in fitted.cosines.items())
    run.progress.note(
        f"{phase.name}: projection fitted on {len(vectors):,} texts ({method}); held-out cosine "
        f"by size: {shown}"
    )
    return fitted


def sample_vectors(
    run: RunContext, phase: Phase, student: Model, count: int = SAMPLE
) -> tuple[Tensor, Tensor]:
    """Embed texts of a phase as its steps will, and look up what the teacher says of them.

    `count`: texts, about; steps are taken at even distances over the phase, so that all its sources
    are there. Returns vectors of the student, `(n, D)`, and of the teachers, `(n, T)`.
    """
    first = phase.prepare(phase.plan.at(phase.starts_at))
    steps = min(phase.settings.steps, -(-count // max(1, len(first.distilled))))
    texts, targets = dict[tuple[str, str], int](), list[Tensor]()
    for step in np.unique(np.linspace(0, phase.settings.steps - 1, steps).astype(int)).tolist():
        prepared = phase.prepare(phase.plan.at(phase.starts_at + step))
        if not prepared.distilled:
            continue
        rows = teacher_vectors(phase, prepared)
        for (place, _), row in zip(prepared.distilled, rows, strict=True):
            role, text = prepared.texts[place]
            if (role.value, text) not in texts:
                texts[role.value, text] = len(texts)
                targets.append(row)
    vectors = torch.empty(len(texts), student.module.embedding_dim)
    with on_device(student.module, run.device):
        encoder = Encoder(student, threads=run.threads)
        for prompt_name in dict.fromkeys(name for name, _ in texts):
            places = [i for (name, _), i in texts.items() if name == prompt_name]
            chosen = [text for name, text in texts if name == prompt_name]
            encoded = encoder.encode_reporting(
                chosen, task=None, prompt_name=prompt_name, max_length=phase.settings.max_length
            ).vectors
            vectors[places] = torch.from_numpy(np.asarray(encoded, dtype=np.float32))
    return vectors, torch.stack(targets)


def _write(folder: Path, fitted: FittedProjection, run: RunContext, name: str) -> None:
    facts = {
        "cosines": {str(dim): round(cosine, 4) for dim, cosine in fitted.cosines.items()},
        "ridge": fitted.ridge,
    }
    with write_folder(folder, KIND, meta={**resume_meta(run, name), **facts}) as beside:
        save_file(
            {"weight": fitted.weight.contiguous(), "bias": fitted.bias.contiguous()},
            beside / "weights.safetensors",
        )
