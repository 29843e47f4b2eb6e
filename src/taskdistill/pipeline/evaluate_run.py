"""Scores of a finished run: teacher, untrained student, base, adapters and the instant student, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.models.encoder import EncoderEmbedder, TeacherEmbedder
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.evaluate.set_runner import EvalOptions
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.io.folders import versions
from taskdistill.model.model import Model
from taskdistill.model.space_id import memory_files
from taskdistill.pipeline.check import evaluation_sets
from taskdistill.pipeline.profile import matrix_rate, where_time_went
from taskdistill.pipeline.save_model import add_scores, calibration_texts
from taskdistill.pipeline.setup import start_student
from taskdistill.pipeline.student_vocab import with_own_vocabulary
from taskdistill.recipe.recipe import dump_recipe
from taskdistill.report.pages import (
    ADAPTERS,
    BASE,
    STATIC,
    TEACHER,
    UNTRAINED,
    profile_table,
    write_page,
)
from taskdistill.train.arithmetic import choose_arithmetic
from taskdistill.train.course import courses

if TYPE_CHECKING:
    from taskdistill.pipeline.context import RunContext

SPEED_TEXTS = 300
"""Texts on which the speed of each model is measured."""


def evaluation_root(run: RunContext) -> Path:
    """Say where the evaluation sets are.

    Returns:
        `evaluation.root`, or the training data's folder.
    """
    return Path(run.recipe.evaluation.root or run.inputs.root)


def first_result(run: RunContext, static: Path) -> None:
    """Score the instant student beside its teacher as soon as it is there: the first result of a run."""
    dev = run.recipe.evaluation.dev
    sets = find_eval_sets(evaluation_root(run), dev[:1], split="dev") if dev else _sets(run)[:1]
    if not sets:
        return
    run.progress.stage("first result: the instant student beside its teacher")
    models: list[Embedder] = [
        _teacher(run),
        EncoderEmbedder(Encoder.load(static, threads=run.threads), name=STATIC),
    ]
    results = evaluate_models(
        models, sets, run.out / "evaluation", _options(run), reference=TEACHER, progress=run.count
    )
    _show(run, "First result", results)


def assess_run(run: RunContext, model: Model, static: Path | None) -> dict[str, Any]:
    """Score every model of a run on the recipe's evaluation sets and write the report.

    Args:
        run: The run; RUN/report.html is written.
        static: Folder of the instant student, if there is one.
    """
    start = time.monotonic()
    if run.recipe.stage1 is not None:
        model.module.to(run.device)
    encoder = Encoder(model, threads=run.threads)
    run.progress.note(f"scores are taken on {encoder.placement}")
    models: list[Embedder] = [_teacher(run)]
    if run.recipe.stage1 is None:
        encoders = {STATIC: encoder}
        models.append(EncoderEmbedder(encoder, name=STATIC))
    else:
        encoders = _students(run, encoder, static, models)
    run.progress.stage("evaluation")
    results = evaluate_models(
        models,
        _sets(run),
        run.out / "evaluation",
        _options(run),
        reference=TEACHER,
        progress=run.count,
        note=run.progress.note,
    )
    run.timed("evaluation", start)
    metrics: dict[str, Any] = {
        "name": run.recipe.name,
        "results": results,
        "speed": _speeds(run, encoders),
        "data": run.inputs.counts(),
        "facts": run.facts
        | {
            "teacher_texts": sum(
                len(store) for store in {id(store): store for store in run.stores.values()}.values()
            )
        },
        "course": {course.phase: course.as_dict() for course in courses(run.log)},
        "time": where_time_went(
            run.log.path,
            matrix_rate(threads=run.threads, device=run.device, dtype=_arithmetic(run)),
        ),
        "seconds": {part: round(seconds, 1) for part, seconds in run.seconds().items()},
        "peak_megabytes": run.peak(),
        "recipe": run.recipe.model_dump(mode="json"),
        "versions": versions(),
    }
    write_page(run.out, metrics, dump_recipe(run.recipe))
    add_scores(run, model, results)
    _show(run, "Results", results)
    columns, rows, lines = profile_table(metrics["time"])
    run.progress.table("Where the time went", columns, rows)
    for line in [*lines, f"memory: {metrics['peak_megabytes']:,.0f} MB at most"]:
        run.progress.note(line)
    return metrics


def _arithmetic(run: RunContext) -> torch.dtype:
    return choose_arithmetic(run.recipe.precision, run.device).compute or torch.float32


def _students(
    run: RunContext, encoder: Encoder, static: Path | None, models: list[Embedder]
) -> dict[str, Encoder]:
    """Add the students that are scored beside the teacher, and name their encoders."""
    untrained = start_student(run.recipe)
    if run.recipe.student.vocabulary is not None:
        untrained = with_own_vocabulary(untrained, run.out)
    untrained.settings.prompts.clear()
    untrained.files = memory_files(untrained)
    untrained.module.to(run.device)
    encoders = {UNTRAINED: Encoder(untrained, threads=run.threads), BASE: encoder}
    if static is not None:
        encoders = {STATIC: Encoder.load(static, threads=run.threads), **encoders}
        models.append(EncoderEmbedder(encoders[STATIC], name=STATIC))
    models += [
        EncoderEmbedder(encoders[UNTRAINED], name=UNTRAINED),
        EncoderEmbedder(encoder, name=BASE, adapters=False),
    ]
    if encoder.tasks:
        models.append(EncoderEmbedder(encoder, name=ADAPTERS))
    return encoders


def _teacher(run: RunContext) -> TeacherEmbedder:
    embedder = TeacherEmbedder(run.teacher, run.stores)
    embedder.name = TEACHER
    return embedder


def _sets(run: RunContext) -> list[EvalSet]:
    return evaluation_sets(run.recipe, Path(run.inputs.root))


def _options(run: RunContext) -> EvalOptions:
    recipe = run.recipe
    dims = recipe.evaluation.dims or recipe.student.matryoshka_dims
    return EvalOptions(
        max_queries=recipe.evaluation.max_queries,
        seed=recipe.seed,
        full_train=recipe.evaluation.full_train,
        dims=tuple(dims),
        precisions=tuple(recipe.evaluation.precisions),
    )


def _speeds(run: RunContext, encoders: dict[str, Encoder]) -> dict[str, dict[str, float | None]]:
    """Measure texts per second in turn, each model three times, and keep the median."""
    texts = calibration_texts(run)[:SPEED_TEXTS]
    ways: dict[str, Any] = {}
    if run.teacher.identity.kind == "local":
        ways[TEACHER] = lambda: run.teacher.embed(texts)
    for name, encoder in encoders.items():
        if name != UNTRAINED:
            ways[name] = lambda encoder=encoder: encoder.encode_reporting(texts)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(3):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            rates[name].append(len(texts) / (time.perf_counter() - start))
    sizes = {name: _parameters(encoder) for name, encoder in encoders.items()}
    if run.recipe.student.init == "teacher" and TEACHER in ways:
        from taskdistill.model.backbone import load_backbone, resolve

        sizes[TEACHER] = sum(
            p.numel() for p in load_backbone(resolve(run.recipe.teacher.model)).parameters()
        )
    return {
        name: {
            "texts_per_second": round(float(np.median(rate)), 1),
            "parameters": sizes.get(name),
            "megabytes": _megabytes(sizes.get(name)),
        }
        for name, rate in rates.items()
    }


def _parameters(encoder: Encoder) -> int:
    return sum(
        p.numel() for name, p in encoder.model.module.named_parameters() if "lora_" not in name
    )


def _megabytes(parameters: int | None) -> float | None:
    return None if parameters is None else round(parameters * 4 / 1e6, 1)


def _show(run: RunContext, title: str, results: dict[str, Any]) -> None:
    """Give the watcher a table: one row a set, one column a model, scores times 100."""
    names = [model["name"] for model in results["models"]]
    rows = []
    for each in results["sets"]:
        scores = [results["scores"][name][each["name"]] for name in names]
        rows.append(
            [
                each["name"],
                scores[0]["metric"],
                *(f"{100 * score['score']:.1f}" for score in scores),
            ]
        )
    run.progress.table(title, ["set", "metric", *names], rows)
    for name, share in _shares(results, names):
        run.progress.note(f"{name}: keeps {share} of the teacher, mean over the sets")


def _shares(results: dict[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    result = []
    for name in names:
        mean = results["retention"].get(name, {}).get("mean")
        if mean is not None:
            result.append((name, f"{100 * mean:.1f} %"))
    return result
