"""One export: the model read, its reference vectors computed, files written, compared, and sealed together with the certificate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from taskdistill.errors import BadInput, WorkFailed, did_you_mean
from taskdistill.export.parity import FILE, ParityResult, certificate
from taskdistill.export.readme import write_readme
from taskdistill.io.atomic import check_free
from taskdistill.io.folders import write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.model.backbone import resolve
from taskdistill.model.families import reach
from taskdistill.model.folder import Model, read_model
from taskdistill.model.golden import BASE, SAME_SPACE, Embed, check_golden, embed_with, read_golden
from taskdistill.model.lora import merge
from taskdistill.model.reference_texts import TEXTS
from taskdistill.model.student import TransformerModel

FORMATS: Mapping[str, str] = {
    "sentence-transformers": "taskdistill.export.formats.sentence_transformers",
    "jina-v5": "taskdistill.export.formats.jina_v5",
    "onnx": "taskdistill.export.formats.onnx",
    "openvino": "taskdistill.export.formats.openvino",
    "gguf": "taskdistill.export.formats.gguf",
}
"""Format to the module whose `check(model)` refuses what it cannot hold, and whose `write(export)` makes its files."""

BEYOND = 40
"""Tokens by which the longest text of a comparison exceeds the model's largest window."""

ALL_TASKS = frozenset({"jina-v5"})
"""Formats that hold every adapter, so that no task is chosen."""


@dataclass
class ExportJob:
    """What a format's writer is given and fills."""

    model: Model
    """The model; for a format of one task, with that task's adapter already merged into the base."""
    task: str | None
    folder: Path
    reference: Mapping[str | None, np.ndarray]
    """Task to the reference's unit vectors of `texts`."""
    texts: Sequence[str] = TEXTS
    """What every file is compared on."""
    results: list[ParityResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def export(
    model: str | Path,
    format_name: str,
    task: str | None,
    out: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a model in a format that other programs load, with a certificate of how close it comes.

    Args:
        model: Model folder or Hub id.
        format_name: One of `FORMATS`.
        task: Adapter to merge; None for the base model. The jina-v5 format takes every adapter and no task.
        out: Folder to write; it must not exist.
        progress: Called with (steps done, steps in all): read, reference, written and compared.

    Returns:
        The content of the certificate, `parity.json`.

    Raises:
        BadInput: If the format, the task or the model does not go with the others, or a package is missing.
        WorkFailed: If a file that shall equal the reference does not; nothing is left behind.
    """
    if format_name not in FORMATS:
        raise BadInput(f"unknown format {format_name!r}{did_you_mean(format_name, FORMATS)}")
    check_free(out)
    step = progress or (lambda done, total: None)
    step(0, 3)
    source = read_model(resolve(model))
    if Path(model) != source.source:
        source.name = str(model)
    _check_task(source, format_name, task)
    writer = import_module(FORMATS[format_name])
    writer.check(source)
    step(1, 3)
    adapters = list(source.module.tasks)
    tasks: list[str | None] = [*adapters] if format_name in ALL_TASKS else [task]
    embed = embed_with(source)
    golden = _kept(source, tasks, embed)
    texts = compared_texts(source)
    reference = {name: embed(texts, name) for name in tasks}
    step(2, 3)
    if format_name not in ALL_TASKS:
        merge_adapter(source, task)
    meta = {
        "format": format_name,
        "name": source.name,
        "task": task,
        "prompts": source.settings.prompts,
        "max_length": source.settings.max_length,
    }
    with write_folder(out, "export", meta=meta, inputs={"model": source.hash}) as folder:
        made = ExportJob(source, task, folder, reference, texts)
        writer.write(made)
        parity = dict(certificate(format_name, source.name, source.hash, made.results, made.notes))
        parity["golden"] = golden
        wrong = [r for r in made.results if r.required and r.verdict != "equal"]
        if wrong:
            worst = min(wrong, key=lambda r: r.smallest_cosine)
            raise WorkFailed(
                f"{worst.file} differs from the model: smallest cosine {worst.smallest_cosine:.6f}, largest difference "
                f"{worst.largest_difference:.2e} with {worst.checked_with}; nothing was written"
            )
        (folder / FILE).write_text(dump_json(parity), "utf-8")
        write_readme(folder, source, format_name, task, adapters, parity["results"])
    step(3, 3)
    return parity


def compared_texts(model: Model) -> tuple[str, ...]:
    """Choose the texts on which an export is compared: the fixed ones, and one longer than any window of the model."""
    if not isinstance(model.module, TransformerModel):
        return TEXTS
    needed = min(model.settings.max_length, reach(model.module.backbone.config) + BEYOND)
    if needed <= max(
        map(
            len,
            model.tokenizer.ids(list(TEXTS), prompt="", max_length=model.settings.max_length).ids,
        )
    ):
        return TEXTS
    long = ""
    for text in itertools.cycle(TEXTS):
        long = f"{long} {text}"
        if len(model.tokenizer.ids([long], prompt="", max_length=needed).ids[0]) >= needed:
            return (*TEXTS, long.strip())
    raise AssertionError("unreachable")


def _kept(source: Model, tasks: Sequence[str | None], embed: Embed) -> dict[str, float]:
    """Compare the reference itself with the golden vectors that the folder keeps, before anything is made of it."""
    golden = read_golden(source.source)
    if golden is None:
        return {}
    wanted = {task or BASE for task in tasks}
    vectors = {name: rows for name, rows in golden["vectors"].items() if name in wanted}
    found = check_golden({**golden, "vectors": vectors}, embed)
    for name, cosine in found.items():
        if cosine < SAME_SPACE:
            raise WorkFailed(
                f"{source.name} does not give the golden vectors of {name} that its folder keeps (smallest cosine {cosine:.6f}); nothing was "
                f"written: run `taskdistill info --verify` on it, and copy or make it again"
            )
    return found


def merge_adapter(model: Model, task: str | None) -> None:
    """Merge one adapter into the base of a model in memory and forget all adapters.

    Args:
        model: The model, changed in place.
        task: Adapter; None merges nothing.
    """
    if isinstance(model.module, TransformerModel):
        merge(model.module.backbone, task or "")
        model.module.tasks.clear()
    model.adapter_configs.clear()
    model.projection = None


def _check_task(model: Model, format_name: str, task: str | None) -> None:
    if format_name in ALL_TASKS:
        if task is not None:
            raise BadInput(
                f"format {format_name} holds every adapter, so task {task!r} has no effect; leave it out"
            )
        if not model.module.tasks:
            raise BadInput(
                f"format {format_name} needs adapters, {model.name} has none; export it as sentence-transformers"
            )
    elif task is not None and task not in model.module.tasks:
        hint = (
            did_you_mean(task, model.module.tasks)
            if model.module.tasks
            else "; it has no adapters, so leave the task out"
        )
        raise BadInput(f"{model.name} has no adapter for task {task!r}{hint}")
