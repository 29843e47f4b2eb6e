"""From trained weights to a model folder: int8 ranges, space ids, golden vectors, and the folder itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.model.folder import write_model
from taskdistill.model.golden import FILE, embed_with, golden_vectors
from taskdistill.model.model import Model, ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.card import run_card
from taskdistill.pipeline.context import RunContext, resume_meta
from taskdistill.quantization import fit_ranges, ranges_to_json, truncate
from taskdistill.tasks import Role
from taskdistill.types import RowKind, TeacherSide

CALIBRATION_TEXTS = 800
"""Texts whose vectors decide the int8 ranges."""


def finish_model(run: RunContext, student: Model) -> None:
    """Write RUN/model.

    Args:
        student: The trained student with its adapters; its settings are completed.
    """
    start = time.monotonic()
    run.progress.stage("calibrating int8 and writing the model folder")
    student.settings = replace(student.settings, teacher=_teacher_facts(run))
    texts = calibration_texts(run)
    encoder = Encoder(student, threads=run.threads)
    student.settings = replace(
        student.settings, int8_ranges=int8_ranges(encoder, texts, [None, *encoder.tasks])
    )
    if run.recipe.student.binary_offsets:
        sides = {Role.QUERY: query_texts(run) or texts, Role.DOCUMENT: texts}
        student.settings = replace(
            student.settings, binary_offsets=binary_offsets(encoder, sides, [None, *encoder.tasks])
        )
    write_model(
        run.out / "model",
        student,
        inputs=_inputs(run),
        extra_files=_files(student, run_card(run, student, None)),
        replace_existing=True,
    )
    run.timed("model folder", start)


def finish_static(
    run: RunContext, table: StaticModel, tokenizer: TextTokenizer, folder: Path, texts: list[str]
) -> None:
    """Write the instant student's folder.

    Args:
        texts: Texts it was trained on, from which int8 is calibrated.
    """
    name = run.recipe.name if run.recipe.stage1 is None else f"{run.recipe.name}-static"
    dims = tuple(
        sorted(
            {dim for dim in run.recipe.student.matryoshka_dims if dim < table.embedding_dim}
            | {table.embedding_dim}
        )
    )
    settings = ModelSettings(
        max_length=1_000_000, matryoshka_dims=dims, teacher=_teacher_facts(run)
    )
    model = Model(table.eval(), tokenizer, settings, name=name, source=folder)
    ranges = int8_ranges(Encoder(model, threads=1), texts[:CALIBRATION_TEXTS], [None])
    model.settings = replace(model.settings, int8_ranges=ranges)
    if run.recipe.student.binary_offsets:
        sides = dict.fromkeys((Role.QUERY, Role.DOCUMENT), texts[:CALIBRATION_TEXTS])
        model.settings = replace(
            model.settings, binary_offsets=binary_offsets(Encoder(model, threads=1), sides, [None])
        )
    write_model(
        folder,
        model,
        inputs=resume_meta(run, "static"),
        extra_files=_files(model, run_card(run, model, None)),
    )


def _files(model: Model, text: str) -> dict[str, str]:
    golden = golden_vectors(embed_with(model), model.module.tasks)
    return {"README.md": text, FILE: json.dumps(golden, ensure_ascii=False, allow_nan=False) + "\n"}


def add_scores(run: RunContext, model: Model, results: Mapping[str, Any]) -> None:
    """Write RUN/model again with a card that holds its scores; weights and hash stay the same."""
    inputs = _inputs(run) if run.recipe.stage1 is not None else resume_meta(run, "static")
    write_model(
        run.out / "model",
        model,
        inputs=inputs,
        extra_files=_files(model, run_card(run, model, results)),
        replace_existing=True,
    )


def int8_ranges(encoder: Encoder, texts: list[str], tasks: list[str | None]) -> dict[str, Any]:
    """Fit the ranges of int8 codes for every task and trained size.

    Args:
        tasks: Adapters; None for the base.

    Returns:
        Task (or `base`) to size to ranges as plain data.
    """
    result: dict[str, Any] = {}
    for task in tasks:
        vectors = encoder.encode_reporting(texts, task=task).vectors
        result[task or "base"] = ranges_to_json(fit_ranges(vectors, encoder.matryoshka_dims))
    return result


def binary_offsets(
    encoder: Encoder, sides: Mapping[Role, list[str]], tasks: list[str | None]
) -> dict[str, Any]:
    """Fit what is taken from vectors before their signs: the mean of each side, so that each bit is set for about half of its texts.

    Args:
        tasks: Adapters; None for the base.

    Returns:
        Task (or `base`) to side to size to the mean unit vector.
    """
    result: dict[str, Any] = {}
    for task in tasks:
        for role, texts in sides.items():
            vectors = encoder.encode_reporting(texts, task=task, prompt_name=role.value).vectors
            means = {
                str(dim): np.round(truncate(vectors, dim).mean(0).astype(np.float64), 7).tolist()
                for dim in encoder.matryoshka_dims
            }
            result.setdefault(task or "base", {})[role.value] = means
    return result


def query_texts(run: RunContext) -> list[str]:
    """Draw queries of the training data.

    Returns:
        At most `CALIBRATION_TEXTS` distinct first texts of pairs that are no translations; none where there are no such pairs.
    """
    pairs = [
        dataset
        for _, dataset in sorted(run.inputs.datasets.items())
        if dataset.kind is RowKind.PAIRS
    ]
    texts = list(
        dict.fromkeys(
            row.query
            for dataset in pairs
            if dataset.teacher_reads is TeacherSide.BOTH
            for row in dataset.rows
        )
    )
    rng = np.random.default_rng(run.recipe.seed)
    chosen = (
        rng.choice(len(texts), size=min(CALIBRATION_TEXTS, len(texts)), replace=False)
        if texts
        else np.zeros(0, np.int64)
    )
    return [texts[i] for i in sorted(chosen.tolist())]


def calibration_texts(run: RunContext) -> list[str]:
    """Draw texts of the training data.

    Returns:
        At most `CALIBRATION_TEXTS` texts, the same for the same data and seed.
    """
    from taskdistill.data.rows import row_texts

    rng = np.random.default_rng(run.recipe.seed)
    rows = [row for _, dataset in sorted(run.inputs.datasets.items()) for row in dataset.rows]
    chosen = rng.choice(len(rows), size=min(CALIBRATION_TEXTS, len(rows)), replace=False)
    return [row_texts(rows[i])[-1] for i in sorted(chosen.tolist())]


def _teacher_facts(run: RunContext) -> dict[str, Any]:
    identity = run.teacher.identity
    if run.further:
        return {
            "model": " + ".join(teacher.identity.model for _, teacher, _ in run.teachers()),
            "revision": None,
            "kind": "several",
            "embedding_dim": sum(
                stores["document"].embedding_dim or 0 for _, _, stores in run.teachers()
            ),
            "space_id": "",
            "trained_on": run.recipe.teacher.trained_on,
        }
    return {
        "model": identity.model,
        "revision": identity.revision,
        "kind": identity.kind,
        "embedding_dim": run.stores["document"].embedding_dim,
        "space_id": getattr(run.teacher, "space_id", ""),
        "former_space_ids": list(getattr(run.teacher, "former_space_ids", ())),
        "trained_on": run.recipe.teacher.trained_on,
    }


def _inputs(run: RunContext) -> dict[str, str]:
    return {"recipe": run.recipe.digest(), "data": run.inputs.digest()}
