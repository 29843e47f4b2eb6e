"""One export: model read, reference computed, files written, compared, sealed, certified."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from taskdistill.errors import BadInput, WorkFailed, did_you_mean
from taskdistill.export.base import ExportFormat, ExportJob
from taskdistill.export.parity import FILE, ParityCertificate, write_readme
from taskdistill.io.atomic import check_free
from taskdistill.io.folders import write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.model.backbone import resolve
from taskdistill.model.families import reach
from taskdistill.model.folder import read_model
from taskdistill.model.golden import BASE, SAME_SPACE, Embed, check_golden, embed_with, read_golden
from taskdistill.model.lora import merge
from taskdistill.model.model import Model
from taskdistill.model.reference_texts import TEXTS
from taskdistill.model.student import TransformerModel
from taskdistill.registry import Registry

FORMATS: Registry[ExportFormat] = Registry("taskdistill.export.formats", "FORMAT", noun="format")

WINDOW_MARGIN = 40
"""Tokens by which the longest text of a comparison exceeds the model's largest attention window."""


def export(
    model: str | Path,
    format_name: str,
    out: Path,
    *,
    task: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ParityCertificate:
    """Write a model in a format that other programs load, with a certificate of how close it comes.

    Args:
        out: Folder to write; it must not exist.
        task: Adapter to merge; None for the base model. The jina-v5 format takes every adapter and
            no task.
        progress: Called with (steps done, steps in all): read, reference, written and compared.

    Raises:
        BadInput: If the format, the task or the model does not go with the others, or a package is
            missing.
        WorkFailed: If a file that must equal the reference does not; nothing is left behind.
    """
    writer = FORMATS[format_name]
    check_free(out)
    step = progress or (lambda done, total: None)
    step(0, 3)
    source = read_model(resolve(model))
    if Path(model) != source.source:
        source.name = str(model)
    _check_task(source, format_name, writer, task)
    writer.check(source)
    step(1, 3)
    adapters = list(source.module.tasks)
    tasks: list[str | None] = [*adapters] if writer.all_tasks else [task]
    embed = embed_with(source)
    # Before the adapter is merged: afterwards the model in memory is another one.
    golden = _check_reference(source, tasks, embed)
    texts = _compared_texts(source)
    reference = {name: embed(texts, name) for name in tasks}
    step(2, 3)
    content = f"base and adapters {', '.join(adapters)}"
    if not writer.all_tasks:
        content = f"adapter `{task}`, merged into the base" if task else "base"
        _merge_adapter(source, task)
    meta = {
        "format": format_name,
        "name": source.name,
        "task": task,
        "prompts": source.settings.prompts,
        "max_length": source.settings.max_length,
    }
    with write_folder(out, "export", meta=meta, inputs={"model": source.hash}) as folder:
        job = ExportJob(model=source, task=task, folder=folder, reference=reference, texts=texts)
        writer.write(job)
        wrong = [result for result in job.results if result.required and result.verdict != "equal"]
        if wrong:
            worst = min(wrong, key=lambda result: result.smallest_cosine)
            raise WorkFailed(
                f"{worst.file} differs from the model: smallest cosine {worst.smallest_cosine:.6f},"
                f" largest difference {worst.largest_difference:.2e} with {worst.checked_with}; "
                "nothing was written"
            )
        certificate = ParityCertificate(
            format=format_name,
            model=source.name,
            model_hash=source.hash,
            results=job.results,
            notes=job.notes,
            golden=golden,
        )
        (folder / FILE).write_text(dump_json(certificate.to_json()), "utf-8")
        write_readme(
            folder,
            source,
            certificate,
            task=task,
            adapters=adapters,
            content=content,
            usage=writer.usage.format(prompt=job.prompt, task=adapters[0] if adapters else ""),
        )
    step(3, 3)
    return certificate


def _compared_texts(model: Model) -> tuple[str, ...]:
    """Give the fixed texts, and one longer than any attention window of the model."""
    if not isinstance(model.module, TransformerModel):
        return TEXTS
    limit = model.settings.max_length
    needed = min(limit, reach(model.module.backbone.config) + WINDOW_MARGIN)
    tokenize = model.tokenizer.ids
    if needed <= max(map(len, tokenize(list(TEXTS), prompt="", max_length=limit).ids)):
        return TEXTS
    long = ""
    for text in itertools.cycle(TEXTS):
        long = f"{long} {text}"
        if len(tokenize([long], prompt="", max_length=needed).ids[0]) >= needed:
            return (*TEXTS, long.strip())
    raise AssertionError("unreachable")


def _check_reference(source: Model, tasks: Sequence[str | None], embed: Embed) -> dict[str, float]:
    """Compare the reference with the golden vectors of its folder, before it is relied on."""
    golden = read_golden(source.source)
    if golden is None:
        return {}
    smallest = check_golden(golden, embed, {task or BASE for task in tasks})
    for name, cosine in smallest.items():
        if cosine < SAME_SPACE:
            raise WorkFailed(
                f"{source.name} does not give the golden vectors of {name} that its folder keeps "
                f"(smallest cosine {cosine:.6f}); nothing was written: run `taskdistill info "
                "--verify` on it, and copy or make it again"
            )
    return smallest


def _merge_adapter(model: Model, task: str | None) -> None:
    """Merge one adapter into the base of a model in memory and drop all adapters."""
    if isinstance(model.module, TransformerModel):
        merge(model.module.backbone, task or "")
        model.module.tasks.clear()
    model.adapter_configs.clear()
    model.projection = None


def _check_task(model: Model, format_name: str, writer: ExportFormat, task: str | None) -> None:
    tasks = model.module.tasks
    if writer.all_tasks:
        if task is not None:
            raise BadInput(
                f"format {format_name} holds every adapter, so task {task!r} has no effect; leave "
                "it out"
            )
        if not tasks:
            raise BadInput(
                f"format {format_name} needs adapters, {model.name} has none; export it as "
                "sentence-transformers"
            )
    elif task is not None and task not in tasks:
        hint = "; it has no adapters, so leave the task out"
        if tasks:
            hint = did_you_mean(task, tasks)
        raise BadInput(f"{model.name} has no adapter for task {task!r}{hint}")
