"""From trained weights to a model folder.

Calibration, golden vectors, card and write, the one way for every maker of models.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from taskdistill.data.rows import row_texts
from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.records import Results
from taskdistill.model.folder import write_model
from taskdistill.model.golden import FILE, embed_with, golden_vectors
from taskdistill.model.model import Model
from taskdistill.model.settings import CalibrationByTask, ModelSettings, TeacherFacts
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.card import run_card
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.resume import resume_meta
from taskdistill.quantization import fit_ranges, ranges_to_json, truncate
from taskdistill.tasks import Role
from taskdistill.types import RowKind, TeacherSide

T = TypeVar("T")

CALIBRATION_TEXTS = 800
"""Texts whose vectors decide int8 ranges and binary offsets."""

STATIC_MAX_LENGTH = 1_000_000
"""A static embedding sums its tokens, so that no text is too long for it."""


def fit_calibration(
    encoder: Encoder,
    documents: Sequence[str],
    queries: Sequence[str] = (),
    *,
    tasks: Sequence[str | None],
    offsets: bool,
) -> dict[str, CalibrationByTask]:
    """Fit what quantized vectors need to know of a model.

    `queries`: for the offsets of queries; none takes the documents. `tasks`: adapters; None for the
    base. `offsets`: whether binary offsets are fitted beside int8 ranges. Returns the settings of a
    model that hold it, each a mapping from task or `base`: `int8_ranges` to size to ranges,
    `binary_offsets` to role to size to the mean unit vector, so that each bit is set for about half
    of the texts.
    """
    documents = list(documents)
    fitted: dict[str, CalibrationByTask] = {"int8_ranges": {}}
    for task in tasks:
        vectors = encoder.encode_reporting(documents, task=task).vectors
        ranges = ranges_to_json(fit_ranges(vectors, encoder.matryoshka_dims))
        fitted["int8_ranges"][task or "base"] = ranges
    if offsets:
        texts_of = {Role.QUERY: list(queries) or documents, Role.DOCUMENT: documents}
        fitted["binary_offsets"] = {
            task or "base": {
                role.value: _mean_vectors(encoder, texts, task, role)
                for role, texts in texts_of.items()
            }
            for task in tasks
        }
    return fitted


def _mean_vectors(
    encoder: Encoder, texts: list[str], task: str | None, role: Role
) -> dict[str, list[float]]:
    vectors = encoder.encode_reporting(texts, task=task, prompt_name=role.value).vectors
    return {
        # Summed in double precision and rounded: the same offsets whatever the order of the
        # batches.
        str(dim): np.round(truncate(vectors, dim).mean(0).astype(np.float64), 7).tolist()
        for dim in encoder.matryoshka_dims
    }


def recalibrate(
    model: Model, documents: Sequence[str], queries: Sequence[str] = (), *, threads: int | None
) -> None:
    """Fit anew what a model's settings hold of its vectors, after its weights have changed."""
    settings = model.settings
    if not (settings.int8_ranges or settings.binary_offsets):
        return
    fitted = fit_calibration(
        Encoder(model, threads=threads),
        documents[:CALIBRATION_TEXTS],
        queries[:CALIBRATION_TEXTS],
        tasks=[None, *model.module.tasks],
        offsets=bool(settings.binary_offsets),
    )
    model.settings = _with_calibration(settings, fitted)


def _with_calibration(
    settings: ModelSettings, fitted: Mapping[str, CalibrationByTask]
) -> ModelSettings:
    offsets = fitted.get("binary_offsets", {})
    return replace(settings, int8_ranges=fitted["int8_ranges"], binary_offsets=offsets)


def write_with_card(
    folder: Path,
    model: Model,
    card: str,
    *,
    meta: Mapping[str, object] | None = None,
    inputs: Mapping[str, str] | None = None,
    replace_existing: bool = False,
) -> None:
    """Write a model folder with its golden vectors and its card.

    `inputs`: name to hash of what the model was made from.
    """
    golden = golden_vectors(embed_with(model), model.module.tasks)
    files = {
        "README.md": card,
        FILE: json.dumps(golden, ensure_ascii=False, allow_nan=False) + "\n",
    }
    write_model(
        folder,
        model,
        meta=meta,
        inputs=inputs,
        extra_files=files,
        replace_existing=replace_existing,
    )


def save_student(run: RunContext, student: Model) -> None:
    """Calibrate the trained student and write RUN/model; the student's settings are completed."""
    start = time.monotonic()
    run.progress.stage("calibrating int8 and writing the model folder")
    encoder = Encoder(student, threads=run.threads)
    fitted = fit_calibration(
        encoder,
        calibration_texts(run),
        _calibration_queries(run) if run.recipe.student.binary_offsets else (),
        tasks=[None, *encoder.tasks],
        offsets=run.recipe.student.binary_offsets,
    )
    settings = replace(student.settings, teacher=_teacher_facts(run))
    student.settings = _with_calibration(settings, fitted)
    _write_run_model(run, student, run_card(run, student, None))
    run.timed("model folder", start)


def save_static(
    run: RunContext, table: StaticModel, tokenizer: TextTokenizer, folder: Path, texts: list[str]
) -> None:
    """Write the instant student's folder, calibrated on the texts that it was trained on."""
    dims = {dim for dim in run.recipe.student.matryoshka_dims if dim < table.embedding_dim}
    settings = ModelSettings(
        max_length=STATIC_MAX_LENGTH,
        matryoshka_dims=tuple(sorted(dims | {table.embedding_dim})),
        teacher=_teacher_facts(run),
    )
    name = run.recipe.name if run.recipe.stage1 is None else f"{run.recipe.name}-static"
    model = Model(
        module=table.eval(), tokenizer=tokenizer, settings=settings, name=name, source=folder
    )
    fitted = fit_calibration(
        Encoder(model, threads=1),
        texts[:CALIBRATION_TEXTS],
        tasks=[None],
        offsets=run.recipe.student.binary_offsets,
    )
    model.settings = _with_calibration(settings, fitted)
    card = run_card(run, model, None)
    write_with_card(folder, model, card, inputs=resume_meta(run, "static"))


def add_scores(run: RunContext, model: Model, results: Results) -> None:
    """Write RUN/model again with a card that holds its scores; weights and hash stay the same."""
    _write_run_model(run, model, run_card(run, model, results))


def _write_run_model(run: RunContext, model: Model, card: str) -> None:
    if run.recipe.stage1 is None:
        inputs = resume_meta(run, "static")
    else:
        inputs = {"recipe": run.recipe.digest(), "data": run.inputs.digest()}
    write_with_card(run.out / "model", model, card, inputs=inputs, replace_existing=True)


def calibration_texts(run: RunContext) -> list[str]:
    """Draw texts of the training data.

    At most `CALIBRATION_TEXTS`, the same for the same data and seed.
    """
    rows = [row for _, dataset in sorted(run.inputs.datasets.items()) for row in dataset.rows]
    return [row_texts(row)[-1] for row in _sample(rows, run.recipe.seed)]


def _calibration_queries(run: RunContext) -> list[str]:
    """Draw distinct queries of pairs that are no translations."""
    datasets = [dataset for _, dataset in sorted(run.inputs.datasets.items())]
    queries = dict.fromkeys(
        row.query
        for dataset in datasets
        if dataset.kind is RowKind.PAIRS and dataset.teacher_reads is TeacherSide.BOTH
        for row in dataset.rows
    )
    return _sample(list(queries), run.recipe.seed)


def _sample(items: list[T], seed: int) -> list[T]:
    """Draw items without replacement, in their order."""
    if not items:
        return []
    size = min(CALIBRATION_TEXTS, len(items))
    chosen = np.random.default_rng(seed).choice(len(items), size=size, replace=False)
    return [items[i] for i in sorted(chosen.tolist())]


def _teacher_facts(run: RunContext) -> TeacherFacts:
    trained_on = run.recipe.teacher.trained_on
    if run.further:
        widths = [stores["document"].embedding_dim or 0 for _, _, stores in run.teachers]
        return {
            "model": " + ".join(teacher.identity.model for _, teacher, _ in run.teachers),
            "revision": None,
            "kind": "several",
            "embedding_dim": sum(widths),
            "space_id": "",
            "trained_on": trained_on,
        }
    identity = run.teacher.identity
    return {
        "model": identity.model,
        "revision": identity.revision,
        "kind": identity.kind,
        "embedding_dim": run.stores["document"].embedding_dim,
        "space_id": getattr(run.teacher, "space_id", ""),
        "former_space_ids": list(getattr(run.teacher, "former_space_ids", ())),
        "trained_on": trained_on,
    }
