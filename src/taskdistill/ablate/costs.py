"""What the teacher costs, and how many steps contrast alone gets for the same."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from taskdistill.ablate.context import ExperimentContext
from taskdistill.errors import BadInput
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.model.backbone import load_backbone, resolve
from taskdistill.model.flops import matrix_parameters
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.teacher.protocol import apply_template
from taskdistill.types import Pooling

SAMPLE = 256
"""Texts on which the teacher's CPU-seconds are measured."""

FILE = "teacher-cost.json"
SAME = 1.02
"""Up to this factor the steps count as equal, and no longer arm is run."""


def student_flops(
    module: TransformerModel | StaticModel, records: Iterable[Mapping[str, Any]]
) -> float:
    """Add up the floating-point work of training steps.

    Returns what the log counted; for a static table three additions a token and dimension (forward,
    backward, gradient).
    """
    if isinstance(module, StaticModel):
        return float(3 * module.embedding_dim * sum(record["tokens"] for record in records))
    return float(sum(record["work"] for record in records))


def teacher_cost(context: ExperimentContext, steps: int) -> dict[str, Any]:
    """Measure what the teacher's vectors of one run cost, each distinct text once; kept on disk, so
    that it is measured once.

    Returns `texts` and `tokens` of a run, `cpu_seconds` and `flops` in all; the last two None where
    the teacher does not run here.
    """
    path = context.out / FILE
    if path.is_file():
        result: dict[str, Any] = read_sealed(path, "remove it to measure again")
        return result
    recipe = context.experiment.recipe
    texts = [
        apply_template(context.stores[view].instruction, text)
        for view, some in context.teacher_texts(recipe.seed, steps).items()
        for text in some
    ]
    sample = [texts[i] for i in np.linspace(0, len(texts) - 1, min(SAMPLE, len(texts))).astype(int)]
    ids = context.base.tokenizer.ids(sample, prompt="", max_length=recipe.teacher.max_length).ids
    tokens = float(np.mean([len(row) for row in ids])) * len(texts)
    seconds = flops = None
    if recipe.teacher.kind == "local":
        began = time.process_time()
        context.teacher.embed(sample)
        seconds = (time.process_time() - began) * len(texts) / len(sample)
        try:
            module = TransformerModel(
                load_backbone(resolve(recipe.teacher.model, recipe.teacher.revision)), Pooling.MEAN
            )
            flops = 2.0 * matrix_parameters(module) * tokens
        except BadInput:
            flops = None
    result = {"texts": len(texts), "tokens": round(tokens), "cpu_seconds": seconds, "flops": flops}
    write_sealed(path, result)
    return result


def matched_factor(
    kind: str, teacher: dict[str, Any], combined: dict[str, float], contrast: dict[str, float]
) -> float | None:
    """Say how many times the steps contrast alone gets so that it costs as much as both losses with
    their teacher.

    `combined`: `student_flops` and `cpu_seconds` of DC, mean over seeds. `contrast`: the same of C.
    Returns (cost of DC + cost of the teacher) / cost of C at equal steps; None where the teacher's
    cost is not known.
    """
    name, budget_key = (
        ("flops", "student_flops") if kind == "flops" else ("cpu_seconds", "cpu_seconds")
    )
    if teacher[name] is None:
        return None
    return (combined[budget_key] + float(teacher[name])) / contrast[budget_key]
