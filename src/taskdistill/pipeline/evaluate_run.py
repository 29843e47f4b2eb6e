"""Scores of a finished run: teacher, untrained student, base, adapters, instant student."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.models.encoder import EncoderEmbedder, TeacherEmbedder
from taskdistill.evaluate.protocol import Embedder
from taskdistill.evaluate.records import Results
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.evaluate.set_runner import EvalOptions
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.model.backbone import load_backbone, resolve
from taskdistill.model.model import Model, memory_files
from taskdistill.pipeline.check import evaluation_sets
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.profile import matrix_rate, where_time_went
from taskdistill.pipeline.save_model import add_scores, calibration_texts
from taskdistill.pipeline.setup import start_student
from taskdistill.pipeline.student_vocab import with_student_vocab
from taskdistill.report.pages import (
    ADAPTERS,
    BASE,
    STATIC,
    TEACHER,
    UNTRAINED,
    ModelSpeed,
    RunMetrics,
    profile_table,
    write_page,
)
from taskdistill.train.arithmetic import choose_arithmetic
from taskdistill.train.course import courses
from taskdistill.versions import versions

SPEED_TEXTS = 300
"""Texts on which the speed of each model is measured."""


def first_result(run: RunContext, static: Path) -> None:
    """Score the instant student beside its teacher as soon as it is there.

    The first result of a run.
    """
    dev = run.recipe.evaluation.dev
    root = Path(run.recipe.evaluation.root or run.inputs.root)
    sets = find_eval_sets(root, dev[:1], split="dev") if dev else _sets(run)[:1]
    if not sets:
        return
    run.progress.stage("first result: the instant student beside its teacher")
    student = EncoderEmbedder(Encoder.load(static, threads=run.threads), name=STATIC)
    models: list[Embedder] = [_teacher(run), student]
    folder = run.out / "evaluation"
    results = evaluate_models(
        models, sets, folder, _options(run), reference=TEACHER, progress=run.count
    )
    _show(run, "First result", results)


def assess_run(run: RunContext, model: Model, static: Path | None) -> RunMetrics:
    """Score every model of a run, and write its report and the scores of its card.

    `static`: folder of the instant student, if there is one. Returns the content of metrics.json.
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
    stores = {id(store): store for store in run.stores.values()}.values()  # prompts may share one
    metrics: RunMetrics = {
        "name": run.recipe.name,
        "results": results,
        "speed": _speeds(run, encoders),
        "data": run.inputs.counts(),
        "facts": run.facts | {"teacher_texts": sum(map(len, stores))},
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
    write_page(run.out, metrics, run.recipe)
    add_scores(run, model, results)
    _show(run, "Results", results)
    columns, rows, lines = profile_table(metrics["time"])
    run.progress.table("Where the time went", columns, rows)
    for line in [*lines, f"memory: {metrics['peak_megabytes']:,.0f} MB at most"]:
        run.progress.note(line)
    return {**metrics}


def _arithmetic(run: RunContext) -> torch.dtype:
    return choose_arithmetic(run.recipe.precision, run.device).compute or torch.float32


def _students(
    run: RunContext, encoder: Encoder, static: Path | None, models: list[Embedder]
) -> dict[str, Encoder]:
    """Add the students that are scored beside the teacher, and name their encoders."""
    untrained = start_student(run.recipe)
    if run.recipe.student.vocabulary is not None:
        untrained = with_student_vocab(untrained, run.out)
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


def _speeds(run: RunContext, encoders: dict[str, Encoder]) -> dict[str, ModelSpeed]:
    """Measure texts per second of each model."""
    texts = calibration_texts(run)[:SPEED_TEXTS]
    embeds: dict[str, Callable[[list[str]], object]] = {}
    if run.teacher.identity.kind == "local":
        embeds[TEACHER] = run.teacher.embed
    for name, encoder in encoders.items():
        if name != UNTRAINED:
            embeds[name] = encoder.encode_reporting
    rates: dict[str, list[float]] = {name: [] for name in embeds}
    # In turn, three times, and the median: what else the machine does slows all of them alike.
    for _ in range(3):
        for name, embed in embeds.items():
            start = time.perf_counter()
            embed(texts)
            rates[name].append(len(texts) / (time.perf_counter() - start))
    sizes = {
        name: sum(
            p.numel() for key, p in encoder.model.module.named_parameters() if "lora_" not in key
        )
        for name, encoder in encoders.items()
    }
    if run.recipe.student.init == "teacher" and TEACHER in embeds:
        teacher = load_backbone(resolve(run.recipe.teacher.model))
        sizes[TEACHER] = sum(p.numel() for p in teacher.parameters())
    return {
        name: {
            "texts_per_second": round(float(np.median(rate)), 1),
            "parameters": sizes.get(name),
            "megabytes": round(sizes[name] * 4 / 1e6, 1) if name in sizes else None,
        }
        for name, rate in rates.items()
    }


def _show(run: RunContext, title: str, results: Results) -> None:
    """Show a table: one row a set, one column a model, scores times 100."""
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
    for name in names:
        retention = results["retention"].get(name)
        if retention and (mean := retention["mean"]) is not None:
            run.progress.note(
                f"{name}: keeps {100 * mean:.1f} % of the teacher, mean over the sets"
            )
