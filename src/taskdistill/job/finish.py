"""From trained weights to a model folder: int8 ranges, space ids, golden vectors, and the folder itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.compress import fit_ranges, ranges_to_json
from taskdistill.encode.encoder import Encoder
from taskdistill.folders import read_manifest
from taskdistill.job.state import Run, resume_meta
from taskdistill.model.folder import Model, Settings, base_space_id, write_model
from taskdistill.model.golden import FILE, embed_with, golden_vectors
from taskdistill.model.student import StaticModel
from taskdistill.model.text import TextTokenizer

CALIBRATION_TEXTS = 800
"""Texts whose vectors decide the int8 ranges."""


def finish_model(run: Run, student: Model) -> None:
    """Write RUN/model.

    Args:
        run: The run.
        student: The trained student with its adapters; its settings are completed.
    """
    run.watcher.stage("calibrating int8 and writing the model folder")
    student.settings = replace(student.settings, teacher=_teacher_facts(run))
    student.settings = replace(student.settings, space_id=base_space_id(student))
    texts = calibration_texts(run)
    encoder = Encoder(student, threads=run.threads)
    student.settings = replace(student.settings, int8_ranges=int8_ranges(encoder, texts, [None, *encoder.tasks]))
    write_model(
        run.out / "model", student, inputs=_inputs(run), extra_files=_files(student, card(run, student, None)), replace_existing=True
    )
    student.hash = read_model_hash(run.out / "model")


def finish_static(run: Run, table: StaticModel, tokenizer: TextTokenizer, folder: Path, texts: list[str]) -> None:
    """Write the instant student's folder.

    Args:
        run: The run.
        table: The trained token table.
        tokenizer: Its tokenizer.
        folder: Where.
        texts: Texts it was trained on, from which int8 is calibrated.
    """
    dims = tuple(sorted({dim for dim in run.recipe.student.matryoshka_dims if dim < table.embedding_dim} | {table.embedding_dim}))
    settings = Settings(max_length=1_000_000, matryoshka_dims=dims, teacher=_teacher_facts(run))
    model = Model(table.eval(), tokenizer, settings, name=f"{run.recipe.name}-static", source=folder)
    model.settings = replace(settings, space_id=base_space_id(model))
    ranges = int8_ranges(Encoder(model, threads=1), texts[:CALIBRATION_TEXTS], [None])
    model.settings = replace(model.settings, int8_ranges=ranges)
    write_model(folder, model, inputs=resume_meta(run, "static"), extra_files=_files(model, card(run, model, None)))


def _files(model: Model, text: str) -> dict[str, str]:
    golden = golden_vectors(embed_with(model), model.module.tasks)
    return {"README.md": text, FILE: json.dumps(golden, ensure_ascii=False, allow_nan=False) + "\n"}


def add_scores(run: Run, model: Model, results: Mapping[str, Any]) -> None:
    """Write RUN/model again with a card that holds its scores; weights and hash stay the same.

    Args:
        run: The run.
        model: The finished student.
        results: What `evaluate_models` returned.
    """
    write_model(run.out / "model", model, inputs=_inputs(run), extra_files=_files(model, card(run, model, results)), replace_existing=True)


def card(run: Run, model: Model, results: Mapping[str, Any] | None) -> str:
    """Write the model card: what the model is, where it comes from, its scores with their command, its limits.

    Args:
        run: The run.
        model: The model.
        results: Scores, or None while there are none.

    Returns:
        Markdown.
    """
    settings, teacher = model.settings, run.recipe.teacher
    used = {name: run.recipe.data.sources[name] for name in run.inputs.datasets}
    prompts = ", ".join(f"`{text}` ({name})" for name, text in settings.prompts.items()) or "none"
    lines = [
        "---",
        "library_name: sentence-transformers",
        "tags: [sentence-transformers, feature-extraction, sentence-similarity]",
        "---",
        f"# {model.name}",
        "",
        f"A text-embedding model of {model.module.embedding_dim} dimensions, distilled from `{teacher.model}` with taskdistill.",
        "",
        f"- adapters: {', '.join(model.module.tasks) or 'none'}",
        f"- prompts: {prompts}",
        f"- longest text: {settings.max_length:,} tokens; sizes trained for: {', '.join(map(str, settings.matryoshka_dims))}",
        f"- teacher: `{teacher.model}`{f' at {teacher.revision}' if teacher.revision else ''}; its licence applies to what is made from it",
        f"- recipe: RUN/recipe.yaml, hash `{run.recipe.digest()[:16]}`; data hash `{run.inputs.digest()[:16]}`",
        "",
        "## Data",
        "",
        "| source | kind | rows used | licence | what |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {source.kind} | {len(run.inputs.datasets[name].rows):,} | {source.licence or 'not stated'} | {source.note or source.path} |"
            for name, source in used.items()
        ),
        "",
    ]
    if results is not None:
        lines += _score_lines(results)
    lines += [
        "## Limits",
        "",
        "Scores are on the sets named here only. The student saw no language that its data does not hold, and inherits what its",
        "teacher learned, including what the teacher may have seen of public test sets.",
        "",
    ]
    return "\n".join(lines)


def _score_lines(results: Mapping[str, Any]) -> list[str]:
    names = [model["name"] for model in results["models"]]
    rows = [
        f"| {each['name']} | {results['scores'][names[0]][each['name']]['metric']} | "
        + " | ".join(f"{100 * results['scores'][name][each['name']]['score']:.1f}" for name in names)
        + " |"
        for each in results["sets"]
    ]
    head = ["| set | metric | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    return ["## Scores", "", "Scores times 100, from `taskdistill train recipe.yaml --out RUN`.", "", *head, *rows, ""]


def int8_ranges(encoder: Encoder, texts: list[str], tasks: list[str | None]) -> dict[str, Any]:
    """Fit the ranges of int8 codes for every task and trained size.

    Args:
        encoder: The model.
        texts: Calibration texts.
        tasks: Adapters; None for the base.

    Returns:
        Task (or `base`) to size to ranges as plain data.
    """
    found: dict[str, Any] = {}
    for task in tasks:
        vectors = encoder.encode_reporting(texts, task=task).vectors
        found[task or "base"] = ranges_to_json(fit_ranges(vectors, encoder.matryoshka_dims))
    return found


def calibration_texts(run: Run) -> list[str]:
    """Draw texts of the training data.

    Args:
        run: The run.

    Returns:
        At most `CALIBRATION_TEXTS` texts, the same for the same data and seed.
    """
    from taskdistill.data.rows import row_texts

    rng = np.random.default_rng(run.recipe.seed)
    rows = [row for _, dataset in sorted(run.inputs.datasets.items()) for row in dataset.rows]
    chosen = rng.choice(len(rows), size=min(CALIBRATION_TEXTS, len(rows)), replace=False)
    return [row_texts(rows[i])[-1] for i in sorted(chosen.tolist())]


def read_model_hash(folder: Path) -> str:
    """Hash a written model folder as `read_model` does.

    Args:
        folder: Model folder.

    Returns:
        64 hexadecimal digits.
    """
    from taskdistill.model.folder import files_hash

    return files_hash(read_manifest(folder, "model")["files"])


def _teacher_facts(run: Run) -> dict[str, Any]:
    identity = run.teacher.identity
    return {
        "model": identity.model,
        "revision": identity.revision,
        "kind": identity.kind,
        "embedding_dim": run.stores["document"].embedding_dim,
        "space_id": getattr(run.teacher, "space_id", ""),
    }


def _inputs(run: Run) -> dict[str, str]:
    return {"recipe": run.recipe.digest(), "data": run.inputs.digest()}
